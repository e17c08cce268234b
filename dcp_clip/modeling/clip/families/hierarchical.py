"""timm's towers with several strides: ConvNeXt, FastViT (MobileCLIP), Swin and plain CNNs."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from dcp_clip.modeling.clip.dense_attention import DenseAttention
from dcp_clip.modeling.clip.families.base import ImageTower

__all__ = ["HierarchicalTower"]


class HierarchicalTower(ImageTower):
    """A tower that averages its last feature map and projects the average.

    The dense features are read as in FC-CLIP (arXiv 2308.02487): the final norm and projection of
    the tower are applied to each position instead of to the average. ``res2``, ``res3``, ... are
    the stages from stride 4 on, one for each stride of the tower.
    """

    pooling = "average"

    def __init__(self, visual: TimmModel, dense_attention: DenseAttention):
        trunk = visual.trunk
        info = getattr(trunk.feature_info, "info", trunk.feature_info)
        # The last feature map of each stride, because timm may list a stem of the same stride.
        last = {f["reduction"]: i for i, f in enumerate(info)}
        strides = [s for s in sorted(last) if s >= 4]
        self._indices = [last[s] for s in strides]
        channels = [info[i]["num_chs"] for i in self._indices]
        pool = getattr(trunk.head, "global_pool", None)
        if getattr(pool, "pool_type", None) != "avg" or hasattr(visual.head, "pool"):
            raise ValueError(
                "CLIPBackbone needs a tower that averages its last feature map before the "
                "projection; choose another MODEL.CLIP.NAME."
            )
        self.visual = visual
        # Swin keeps its last grid as (B, h, w, C).
        self._channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        if hasattr(trunk, "patch_embed") and hasattr(trunk, "layers"):
            _allow_any_size(trunk)
        device = next(visual.parameters()).device
        grid = torch.zeros(1, trunk.num_features, 1, 1, device=device)
        embed_dim = self._project(grid.permute(0, 2, 3, 1) if self._channels_last else grid).shape[
            1
        ]
        self.shapes = {
            f"res{i + 2}": ShapeSpec(channels=c, stride=s)
            for i, (c, s) in enumerate(zip(channels, strides, strict=True))
        }
        self.shapes["dense"] = ShapeSpec(channels=embed_dim, stride=strides[-1])
        self.shapes["pooled"] = ShapeSpec(channels=embed_dim)
        self.size_divisibility = strides[-1]

    @staticmethod
    def matches(visual: nn.Module) -> bool:
        # timm calls the stages of Swin layers; both end in a head that pools.
        trunk = getattr(visual, "trunk", None)
        return isinstance(visual, TimmModel) and (
            hasattr(trunk, "stages") or (hasattr(trunk, "layers") and hasattr(trunk, "head"))
        )

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
        """Apply to each position of the last grid what the tower applies to its average.

        Args:
            x: (B, C, h, w), or (B, h, w, C) for Swin.

        Returns:
            (B, D, h, w)
        """
        head = self.visual.trunk.head
        x = getattr(head, "norm", nn.Identity())(x)
        x = x if self._channels_last else x.permute(0, 2, 3, 1)
        x = getattr(head, "pre_logits", nn.Identity())(x)
        return self.visual.head(head.fc(x)).permute(0, 3, 1, 2)


def _allow_any_size(trunk: nn.Module) -> None:
    """Let a Swin compute the masks of its windows for every size of image."""
    trunk.patch_embed.strict_img_size = False
    for block in (m for m in trunk.modules() if hasattr(m, "dynamic_mask")):
        block.dynamic_mask = True
