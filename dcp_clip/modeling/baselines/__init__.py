"""Baselines: other segmentation heads with the same CLIP, data and schedule as DCP-CLIP.

Each is a small implementation of a published idea, written for this project. Its results show what
the idea achieves at this scale. They are not results of the published model.
"""

from dcp_clip.modeling.baselines.cost_aggregation import CostAggregationSegmentor
from dcp_clip.modeling.baselines.fpn import FPNSegmentor
from dcp_clip.modeling.baselines.mask_queries import MaskQuerySegmentor
from dcp_clip.modeling.baselines.pixel_text import PixelTextSegmentor

__all__ = ["CostAggregationSegmentor", "FPNSegmentor", "MaskQuerySegmentor", "PixelTextSegmentor"]
