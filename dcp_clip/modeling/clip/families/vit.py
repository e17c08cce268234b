"""open_clip's vision transformer with a class token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.layers import ShapeSpec
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.families.base import ImageTower
from dcp_clip.modeling.clip.readings import DenseReading, read_dense_tokens

__all__ = ["ViTTokens", "ViTTower", "position_embedding", "run_vit"]


class ViTTower(ImageTower):
    """A ViT whose class token is the image embedding.

    The dense features are the patch tokens after the last block with another attention, see
    :mod:`dcp_clip.modeling.clip.readings`. ``res2`` to ``res4`` are the outputs of earlier blocks.
    All of them have the stride of the patch grid, as ``shapes`` says. Decoders project them to few
    channels before they resize them, which gives the same result and is cheaper.
    """

    def __init__(self, visual: VisionTransformer, reading: DenseReading):
        if visual.attn_pool is not None or visual.pool_type != "tok" or visual.proj is None:
            raise ValueError(
                "CLIPBackbone supports only ViT towers that pool with a class token; choose "
                "another MODEL.CLIP.NAME."
            )
        reading.check(visual.transformer.resblocks[-1])
        self.visual, self._reading = visual, reading
        depth, width = len(visual.transformer.resblocks), visual.transformer.width
        # Evenly spaced blocks after 1/4, 1/2 and 3/4 of the depth.
        self._indices = [max(depth * q // 4 - 1, 0) for q in (1, 2, 3)]
        patch = visual.patch_size[0]
        self.shapes = {
            f"res{i + 2}": ShapeSpec(channels=width, stride=patch)
            for i in range(len(self._indices))
        }
        self.shapes["dense"] = ShapeSpec(channels=visual.output_dim, stride=patch)
        self.shapes["pooled"] = ShapeSpec(channels=visual.output_dim)
        self.size_divisibility = patch

    @staticmethod
    def matches(visual: nn.Module) -> bool:
        return isinstance(visual, VisionTransformer)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        visual = self.visual
        tokens = run_vit(visual, images, self._indices)
        out = {f"res{i + 2}": tokens.patches(x) for i, x in enumerate(tokens.levels)}
        dense = tokens.last
        if self._reading.name != "clip":
            dense = read_dense_tokens(
                visual.transformer.resblocks[-1], tokens.before_last, tokens.grid, self._reading
            )
        out["dense"] = tokens.patches(visual.ln_post(dense) @ visual.proj)
        out["pooled"] = visual.ln_post(tokens.last[:, 0]) @ visual.proj
        return out

    def pooled(self, images: Tensor) -> Tensor:
        visual = self.visual
        return visual.ln_post(run_vit(visual, images, []).last[:, 0]) @ visual.proj


@dataclass
class ViTTokens:
    """The tokens of one forward pass through a ViT, class token first.

    Attributes:
        levels: list of (B, 1+N, C), the outputs of the selected blocks.
        before_last: (B, 1+N, C), the input of the last block.
        last: (B, 1+N, C), its output; the projected class token is CLIP's image embedding.
        grid: (h, w) of the N patches.
    """

    levels: list[Tensor]
    before_last: Tensor
    last: Tensor
    grid: tuple[int, int]

    def patches(self, tokens: Tensor) -> Tensor:
        """Convert tokens (B, 1+N, C) to a feature map (B, C, h, w) without the class token."""
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)


def run_vit(vit: VisionTransformer, images: Tensor, indices: list[int]) -> ViTTokens:
    """Run images through the unchanged tower.

    Args:
        vit: open_clip's tower.
        images: (B, 3, H, W), normalised; H and W are multiples of the patch size.
        indices: the blocks whose outputs become ``levels``; a block may occur twice.
    """
    x = vit.conv1(images)
    b, _, h, w = x.shape
    x = x.flatten(2).transpose(1, 2)
    cls = vit.class_embedding.to(x.dtype).expand(b, 1, -1)
    x = torch.cat([cls, x], dim=1) + position_embedding(vit, (h, w)).to(x.dtype)
    x = vit.ln_pre(vit.patch_dropout(x))
    blocks = vit.transformer.resblocks
    levels = []
    for i, block in enumerate(blocks[:-1]):
        x = block(x)
        levels += [x] * indices.count(i)
    last = blocks[-1](x)
    levels += [last] * indices.count(len(blocks) - 1)
    return ViTTokens(levels, x, last, (h, w))


def position_embedding(vit: VisionTransformer, size: tuple[int, int]) -> Tensor:
    """Return CLIP's position embeddings (1+N, C), resized bicubically to a grid (h, w)."""
    table, native = vit.positional_embedding, tuple(vit.grid_size)
    if tuple(size) == native:
        return table
    grid = table[1:].T.reshape(1, -1, *native)
    grid = F.interpolate(grid.float(), size=size, mode="bicubic", align_corners=False)
    return torch.cat([table[:1], grid.to(table.dtype).flatten(2)[0].T])
