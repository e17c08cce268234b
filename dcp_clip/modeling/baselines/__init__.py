"""Other segmentation heads on the same CLIP, data and schedule, to compare DCP-CLIP with.

Each is a small implementation of a published idea, written for this project. Its figures show what
the idea gives at this scale; they are not those of the published model.
"""

from dcp_clip.modeling.baselines.cost_aggregation import CostAggregationSegmentor
from dcp_clip.modeling.baselines.fpn import FPNBaseline
from dcp_clip.modeling.baselines.mask_queries import MaskQuerySegmentor
from dcp_clip.modeling.baselines.pixel_text import PixelTextSegmentor

__all__ = ["CostAggregationSegmentor", "FPNBaseline", "MaskQuerySegmentor", "PixelTextSegmentor"]
