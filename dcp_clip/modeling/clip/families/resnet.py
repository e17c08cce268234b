"""CLIP's ResNets, which pool with attention."""

from __future__ import annotations

import torch
from detectron2.layers import ShapeSpec
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.dense_attention import DenseAttention
from dcp_clip.modeling.clip.families.base import ImageTower

__all__ = ["ResNetTower"]


class ResNetTower(ImageTower):
    """RN50 to RN50x64 (arXiv 2103.00020): attention pooling with the average as the query.

    The dense features are the value path of the pooling at each position, as MaskCLIP reads these
    towers (arXiv 2112.01071). The pooling adds its position embedding first, so they contain it,
    which MaskCLIP leaves out. ``res2`` to ``res5`` are the four stages. For other sizes than that
    of training the position embedding is resized bicubically.
    """

    pooling = "attention"

    def __init__(self, visual: ModifiedResNet, dense_attention: DenseAttention):
        self.visual = visual
        stages = (visual.layer1, visual.layer2, visual.layer3, visual.layer4)
        self.shapes = {
            f"res{i + 2}": ShapeSpec(channels=stage[-1].conv3.out_channels, stride=4 << i)
            for i, stage in enumerate(stages)
        }
        self.shapes["dense"] = ShapeSpec(channels=visual.output_dim, stride=32)
        self.shapes["pooled"] = ShapeSpec(channels=visual.output_dim)
        self.size_divisibility = 32

    @staticmethod
    def matches(visual: nn.Module) -> bool:
        return isinstance(visual, ModifiedResNet)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        visual = self.visual
        out, x = {}, visual.stem(images)
        for i, stage in enumerate((visual.layer1, visual.layer2, visual.layer3, visual.layer4)):
            out[f"res{i + 2}"] = x = stage(x)
        pool, tokens = visual.attnpool, self._tokens(x)
        values = pool.v_proj(tokens)
        out["dense"] = pool.c_proj(values[:, 1:]).transpose(1, 2).unflatten(2, x.shape[-2:])
        # Only the first token, the average, is a query.
        query, key, value = (
            part.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
            for part in (pool.q_proj(tokens[:, :1]), pool.k_proj(tokens), values)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        out["pooled"] = pool.c_proj(mixed.flatten(1))
        return out

    def pooled(self, images: Tensor) -> Tensor:
        return self.encode(images)["pooled"]

    def _tokens(self, x: Tensor) -> Tensor:
        """The last grid (B, C, h, w) to (B, 1+N, C), the average first, with their positions."""
        table = self.visual.attnpool.positional_embedding
        size, side = x.shape[-2:], round((len(table) - 1) ** 0.5)
        grid = table[1:].T.unflatten(1, (side, side))[None]
        if tuple(size) != (side, side):
            grid = F.interpolate(grid.float(), size=size, mode="bicubic", align_corners=False)
        positions = torch.cat([table[:1], grid[0].flatten(1).T.to(table.dtype)])
        tokens = x.flatten(2).transpose(1, 2)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + positions.to(x.dtype)
