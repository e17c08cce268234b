"""open_clip's vision transformer: CLIP, CLIPA and CoCa."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import ShapeSpec
from open_clip.transformer import AttentionalPooler, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.clip.dense_attention import DenseAttention, dense_tokens
from dcp_clip.modeling.clip.families.base import ImageTower
from dcp_clip.modeling.clip.families.last_block import OpenClipBlock, block_attentions

__all__ = ["ViTTokens", "ViTTower", "position_embedding", "run_vit"]


class ViTTower(ImageTower):
    """A ViT that pools by its class token, by the average of its patches, or by attention.

    The dense features are what the pooling says about one patch.

    * Class token (CLIP): the patch tokens, read through the last block with another attention: see
      :mod:`dcp_clip.modeling.clip.dense_attention`.
    * Average (CLIPA, arXiv 2305.07017): the final norm and projection of each patch token.
    * Attention (CoCa, arXiv 2205.01917): the value path of the pooling, its final norm and its
      projection, for each patch token.

    ``res2`` to ``res4`` are the outputs of earlier blocks, all on the patch grid, as ``shapes``
    says. Decoders project them to few channels first and resize then, which gives the same result
    and is cheaper.
    """

    def __init__(self, visual: VisionTransformer, dense_attention: DenseAttention):
        pooling = {"tok": "class token", "avg": "average"}.get(visual.pool_type)
        if visual.attn_pool is not None:
            pooling = None if visual.attn_pool_contrastive else "attention"
        if pooling is None or visual.proj is None:
            raise ValueError(
                "CLIPBackbone reads a ViT that projects its class token, the average of its patches"
                " or one attention pooling; this tower does something else."
            )
        self.visual, self._dense_attention, self.pooling = visual, dense_attention, pooling
        self._block = OpenClipBlock.of(visual.transformer.resblocks[-1])
        if pooling == "class token":
            self.dense_attentions = block_attentions(self._block)
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

    def encode(self, images: Tensor, attention: Tensor | None = None) -> dict[str, Tensor]:
        visual, dense_attention = self.visual, self._dense_attention
        earlier = dense_attention.earlier_blocks(len(visual.transformer.resblocks))
        tokens = run_vit(visual, images, self._indices, dense_attention.position_offset, earlier)
        out = {f"res{i + 2}": tokens.patches(x) for i, x in enumerate(tokens.levels)}
        dense = tokens.last
        if self.pooling == "attention":
            dense = attend_to_itself(visual.attn_pool, dense)
        elif self.pooling == "class token" and dense_attention.name != "clip":
            args = tokens.before_last, tokens.grid, dense_attention, tokens.earlier, attention
            dense = dense_tokens(self._block, *args)
        out["dense"] = tokens.patches(visual.ln_post(dense) @ visual.proj)
        out["pooled"] = self._pool(tokens.last)
        return out

    def pooled(self, images: Tensor) -> Tensor:
        return self._pool(
            run_vit(self.visual, images, [], self._dense_attention.position_offset).last
        )

    def _pool(self, tokens: Tensor) -> Tensor:
        """The last tokens (B, 1+N, C) to the image embedding (B, D)."""
        visual = self.visual
        if self.pooling == "class token":  # the other tokens need no norm
            return visual.ln_post(tokens[:, 0]) @ visual.proj
        return visual._pool(tokens)[0] @ visual.proj


def attend_to_itself(pool: AttentionalPooler, tokens: Tensor) -> Tensor:
    """(B, N, C) to (B, N, D): the output of the pooling for each token as its only input."""
    attn = pool.attn
    weight = attn.v_proj_weight if attn.in_proj_weight is None else attn.in_proj_weight.chunk(3)[2]
    return attn.out_proj(F.linear(pool.ln_k(tokens), weight, attn.in_proj_bias.chunk(3)[2]))


@dataclass
class ViTTokens:
    """The tokens of one forward pass through a ViT, class token first.

    Attributes:
        levels: list of (B, 1+N, C), the outputs of the selected blocks.
        earlier: the same for the blocks that the dense attention needs.
        before_last: (B, 1+N, C), the input of the last block.
        last: (B, 1+N, C), its output; the projected class token is CLIP's image embedding.
        grid: (h, w) of the N patches.
    """

    levels: list[Tensor]
    earlier: list[Tensor]
    before_last: Tensor
    last: Tensor
    grid: tuple[int, int]

    def patches(self, tokens: Tensor) -> Tensor:
        """Convert tokens (B, 1+N, C) to a feature map (B, C, h, w) without the class token."""
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)


def run_vit(
    vit: VisionTransformer,
    images: Tensor,
    indices: list[int],
    position_offset: float = 0.0,
    earlier: Sequence[int] = (),
) -> ViTTokens:
    """Run images through the unchanged tower.

    Args:
        vit: open_clip's tower.
        images: (B, 3, H, W), normalised; H and W are multiples of the patch size.
        indices: the blocks whose outputs become ``levels``; a block may occur twice.
        position_offset: see :func:`position_embedding`.
        earlier: the blocks before the last one whose outputs become ``earlier``.
    """
    x = vit.conv1(images)
    b, _, h, w = x.shape
    x = x.flatten(2).transpose(1, 2)
    cls = vit.class_embedding.to(x.dtype).expand(b, 1, -1)
    positions = position_embedding(vit, (h, w), position_offset)
    x = torch.cat([cls, x], dim=1) + positions.to(x.dtype)
    x = vit.ln_pre(vit.patch_dropout(x))
    blocks = vit.transformer.resblocks
    levels, kept = [], []
    for i, block in enumerate(blocks[:-1]):
        x = block(x)
        levels += [x] * indices.count(i)
        kept += [x] * (i in earlier)
    last = blocks[-1](x)
    levels += [last] * indices.count(len(blocks) - 1)
    return ViTTokens(levels, kept, x, last, (h, w))


def position_embedding(
    vit: VisionTransformer, size: tuple[int, int], offset: float = 0.0
) -> Tensor:
    """Return CLIP's position embeddings (1+N, C), resized bicubically to a grid (h, w).

    Args:
        vit: open_clip's tower.
        size: (h, w) of the grid.
        offset: the table is enlarged by (h + offset) / h0, (w + offset) / w0 for a native grid
            (h0, w0), and cut to (h, w). 0 fits the table to the grid; SCLIP, NACLIP and ClearCLIP
            use 0.1, as DINO (arXiv 2104.14294) does.
    """
    table, native = vit.positional_embedding, tuple(vit.grid_size)
    if tuple(size) == native:
        return table
    grid = table[1:].T.reshape(1, -1, *native)
    if offset:
        scale = [(new + offset) / old for new, old in zip(size, native)]
        grid = F.interpolate(grid.float(), scale_factor=scale, mode="bicubic")
    else:
        grid = F.interpolate(grid.float(), size=size, mode="bicubic", align_corners=False)
    return torch.cat([table[:1], grid.to(table.dtype).flatten(2)[0].T])
