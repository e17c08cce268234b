"""CLIP's two towers, as every open-vocabulary segmentor starts with them."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_backbone

from .clip_loading import share_clip
from .text_encoder import TextEncoder
from .trainable import apply_freeze_policy

__all__ = ["build_towers"]


def build_towers(cfg: CfgNode) -> tuple[Backbone, TextEncoder]:
    """The backbone and the text encoder of one CLIP, which is read once, frozen as
    MODEL.CLIP.TRAIN_IMAGE and TRAIN_TEXT say.

    Raises:
        CLIPWeightsError: see :func:`load_clip`.
        ValueError: see :func:`apply_freeze_policy`.
    """
    with share_clip():
        backbone = build_backbone(cfg)
        text_encoder = TextEncoder(cfg)
    apply_freeze_policy(cfg, backbone, text_encoder)
    return backbone, text_encoder
