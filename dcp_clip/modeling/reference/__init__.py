"""Heads of other kinds on the same CLIP, with the same data and schedule: what to compare with.

Each is our own, small writing of a published idea, not that project's model: its figures are those
of the idea at this scale.
"""

from .cost_aggregation import CostAggregationSegmentor
from .mask_queries import MaskQuerySegmentor
from .pixel_text import PixelTextSegmentor

__all__ = ["CostAggregationSegmentor", "MaskQuerySegmentor", "PixelTextSegmentor"]
