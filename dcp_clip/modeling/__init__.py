"""The model; importing this package registers its modules with Detectron2."""

from . import (  # noqa: F401
    class_refinement,
    coarse_decoder,
    fine_decoder,
    guided_decoder,
    proposal,
    reference,
    text_guidance,
)
from .clip_backbone import CLIPBackbone
from .clip_pretraining import CLIPPretraining
from .fpn_baseline import FPNBaseline
from .meta_arch import DCPCLIP
from .text_encoder import TextEncoder

__all__ = ["CLIPBackbone", "CLIPPretraining", "DCPCLIP", "FPNBaseline", "TextEncoder"]
