"""Products of pixel embeddings and text features: the idea of LSeg (arXiv 2201.03546)."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.head_segmentor import (
    HeadSegmentor,
    Pyramid,
    conv_norm_relu,
    cosine_similarity,
)
from dcp_clip.modeling.layers import resize_to
from dcp_clip.structures import TextFeatures

__all__ = ["PixelTextHead", "PixelTextSegmentor"]


class PixelTextHead(nn.Module):
    """Adds a learned correction to CLIP's upsampled dense features.

    A feature pyramid computes the correction at stride 4. The logits of a pixel are its scaled
    cosine similarities to all categories.

    There are two differences from LSeg. The decoder is a convolutional pyramid instead of a ViT
    decoder. The correction starts at zero, so an untrained head gives CLIP's answer.
    """

    def __init__(self, input_shape: dict[str, ShapeSpec], dim: int, scale: float):
        """
        Args:
            input_shape: output shape of the backbone.
            dim: channels of the pyramid.
            scale: initial factor from cosine similarities to logits.
        """
        super().__init__()
        self.pyramid = Pyramid(input_shape, dim)
        self.refine = conv_norm_relu(dim, dim)
        self.out = nn.Conv2d(dim, input_shape["dense"].channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(
        self, features: dict[str, Tensor], text: TextFeatures, labels: Tensor | None = None
    ) -> Tensor:
        """Return logits (B, C, H/4, W/4), see :class:`HeadSegmentor`; labels are not used."""
        correction = self.out(self.refine(self.pyramid(features)["res2"]))
        dense = F.normalize(features["dense"].float(), dim=1)
        pixels = F.normalize(resize_to(dense, correction.shape[-2:]) + correction, dim=1)
        return self.scale * cosine_similarity(pixels, text)


@META_ARCH_REGISTRY.register()
class PixelTextSegmentor(HeadSegmentor):
    """CLIP's two towers and :class:`PixelTextHead`."""

    @configurable
    def __init__(self, **kwargs):
        """See :class:`HeadSegmentor`."""
        super().__init__(**kwargs)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        towers = cls.clip_config(cfg)
        shape = towers["backbone"].output_shape()
        scale = cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE
        return {"head": PixelTextHead(shape, cfg.MODEL.BASELINES.DIM, scale), **towers}
