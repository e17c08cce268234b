"""The model; importing this package registers its modules with Detectron2."""

from . import class_refinement, coarse_decoder, fine_decoder, proposal, text_guidance  # noqa: F401
from .clip_backbone import CLIPBackbone
from .fpn_baseline import FPNBaseline
from .meta_arch import DCPCLIP
from .text_encoder import TextEncoder

__all__ = ["CLIPBackbone", "DCPCLIP", "FPNBaseline", "TextEncoder"]
