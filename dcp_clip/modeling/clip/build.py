"""Build CLIP's image encoder and text encoder."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from dcp_clip.modeling.clip.freezing import freeze_tower
from dcp_clip.modeling.clip.loading import share_clip
from dcp_clip.modeling.clip.text_encoder import TextEncoder

__all__ = ["build_clip"]


def build_clip(cfg: CfgNode) -> dict:
    """Build the "backbone" and the "text_encoder" from one checkpoint, which is read once.

    MODEL.CLIP.TRAIN_IMAGE and MODEL.CLIP.TRAIN_TEXT decide which of their weights are trained.

    Raises:
        CLIPWeightsError: see :func:`load_clip`.
        ValueError: see :func:`freeze_tower`.
    """
    with share_clip():
        backbone, text_encoder = build_backbone(cfg), TextEncoder(cfg)
    freeze_tower(cfg, "TRAIN_IMAGE", backbone)
    freeze_tower(cfg, "TRAIN_TEXT", text_encoder)
    return {"backbone": backbone, "text_encoder": text_encoder}
