"""ConvNeXt and other hierarchical convolutional towers of timm."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from dcp_clip.modeling.clip.families.base import ImageTower
from dcp_clip.modeling.clip.readings import DenseReading

__all__ = ["ConvNeXtTower"]

_STRIDES = (4, 8, 16, 32)


class ConvNeXtTower(ImageTower):
    """A tower that averages its last feature map and projects the average.

    The dense features are those of FC-CLIP (arXiv 2308.02487): the final norm and projection of the
    tower are applied to each position instead of the average.
    """

    def __init__(self, visual: TimmModel, reading: DenseReading):
        info = visual.trunk.feature_info
        info = info.info if hasattr(info, "info") else info
        # The last feature map of each stride, because timm may list a stem of the same stride.
        last = {f["reduction"]: i for i, f in enumerate(info)}
        strides = [s for s in _STRIDES if s in last]
        self._indices = [last[s] for s in strides]
        channels = [info[i]["num_chs"] for i in self._indices]
        if getattr(visual.trunk.head, "global_pool", None) is None or hasattr(visual.head, "pool"):
            raise ValueError(
                "CLIPBackbone needs a tower that averages its last feature map before the "
                "projection; choose another MODEL.CLIP.NAME."
            )
        self.visual = visual
        embed_dim = self._project(torch.zeros(1, channels[-1], 1, 1)).shape[1]
        self.shapes = {
            f"res{i + 2}": ShapeSpec(channels=c, stride=s)
            for i, (c, s) in enumerate(zip(channels, strides, strict=True))
        }
        self.shapes["dense"] = ShapeSpec(channels=embed_dim, stride=strides[-1])
        self.shapes["pooled"] = ShapeSpec(channels=embed_dim)
        self.size_divisibility = strides[-1]

    @staticmethod
    def matches(visual: nn.Module) -> bool:
        return isinstance(visual, TimmModel) and hasattr(visual.trunk, "stages")

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        trunk = self.visual.trunk
        last, levels = trunk.forward_intermediates(images, indices=self._indices)
        out = {f"res{i + 2}": level for i, level in enumerate(levels)}
        out["dense"] = self._project(last)
        out["pooled"] = self.visual.head(trunk.forward_head(last))
        return out

    def pooled(self, images: Tensor) -> Tensor:
        return self.visual(images)

    def _project(self, x: Tensor) -> Tensor:
        """Apply the tower's norm and projection to each position: (B, C, h, w) to (B, D, h, w)."""
        head = self.visual.trunk.head
        x = getattr(head, "norm", nn.Identity())(x).permute(0, 2, 3, 1)
        x = getattr(head, "pre_logits", nn.Identity())(x)
        return self.visual.head(head.fc(x)).permute(0, 3, 1, 2)
