"""Data structures that the stages exchange, and the output of the model."""

from dcp_clip.structures.regions import label_regions, region_map
from dcp_clip.structures.sem_seg import SemSegLabels, SemSegProposals, output_size
from dcp_clip.structures.stages import Proposals, Refinement, TextFeatures, select_categories

__all__ = [
    "Proposals",
    "Refinement",
    "SemSegLabels",
    "SemSegProposals",
    "TextFeatures",
    "label_regions",
    "output_size",
    "region_map",
    "select_categories",
]
