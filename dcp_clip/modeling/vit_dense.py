"""What a CLIP ViT says of every patch, and not of the image alone.

CLIP trains the class token only; the patch tokens of the last block carry mostly global content.
The readings here keep the pretrained weights, all blocks but the last and the final norm and
projection, and change how the last block's attention looks at the patches. ``encode_image`` is
never touched: the class token always comes out of the unchanged last block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["DENSE_READINGS", "ViTTokens", "dense_tokens", "run_vit"]

DENSE_READINGS = ("value", "query", "correlative", "neighbour", "tokens")


@dataclass
class ViTTokens:
    """The tokens of one run through a ViT, class token first.

    Attributes:
        levels: list of (B, 1+N, C), the outputs of the blocks that were asked for.
        before_last: (B, 1+N, C), what the last block reads.
        last: (B, 1+N, C), what it gives; its class token is CLIP's image embedding once projected.
        grid: (h, w) of the N patches.
    """

    levels: list[Tensor]
    before_last: Tensor
    last: Tensor
    grid: tuple[int, int]

    def patches(self, tokens: Tensor) -> Tensor:
        """Tokens (B, 1+N, C) to a map (B, C, h, w)."""
        return tokens[:, 1:].transpose(1, 2).unflatten(2, self.grid)


def run_vit(vit: VisionTransformer, images: Tensor, indices: list[int]) -> ViTTokens:
    """Images (B, 3, H, W), H and W multiples of the patch size, through the unchanged tower.

    Args:
        vit: open_clip's tower.
        images: normalised pixels.
        indices: the blocks whose outputs become ``levels``; a block may be named twice.
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
    """Position embeddings (1+N, C) for an (h, w) grid: CLIP's own, resized bicubically."""
    table, native = vit.positional_embedding, tuple(vit.grid_size)
    if tuple(size) == native:
        return table
    grid = table[1:].T.reshape(1, -1, *native)
    grid = F.interpolate(grid.float(), size=size, mode="bicubic", align_corners=False)
    return torch.cat([table[:1], grid.to(table.dtype).flatten(2)[0].T])


def dense_tokens(
    block: nn.Module, tokens: ViTTokens, reading: str, residual: bool, neighbour_std: float
) -> Tensor:
    """The last block once more, with an attention that suits patches.

    The readings, each a choice of who attends to whom:

    * "value": each patch to itself only, that is its own value (MaskCLIP, arXiv 2112.01071, which
      keeps the residual and feed-forward part);
    * "query": by the likeness of queries (ClearCLIP, arXiv 2407.12442; GEM, arXiv 2312.00878, shows
      that such self-self attention groups the patches of one object);
    * "correlative": the sum of query-query and key-key attention (SCLIP, arXiv 2312.01597);
    * "neighbour": by the likeness of keys, with a Gaussian bump of height 1 around each patch added
      to the attention logits (NACLIP, arXiv 2404.08181);
    * "tokens": the block as CLIP trained it.

    Args:
        block: the tower's last ``ResidualAttentionBlock``.
        tokens: of :func:`run_vit`.
        reading: one of :data:`DENSE_READINGS`.
        residual: keep the block's residual and feed-forward part, as MaskCLIP and SCLIP do.
            ClearCLIP finds that the residual carries the noise, and drops both, as NACLIP does.
            "tokens" has both.
        neighbour_std: standard deviation of the bump in patches, on any grid; NACLIP's is 5.

    Returns:
        (B, 1+N, C), to be normed and projected as the tower does with its class token.
    """
    if reading == "tokens":
        return tokens.last
    x, attn = tokens.before_last, block.attn
    b, n, c = x.shape
    # All that is read of the three projections stacked in one: of "value" the last.
    first = 2 * c if reading == "value" else 0
    qkv = F.linear(block.ln_1(x), attn.in_proj_weight[first:], attn.in_proj_bias[first:])
    if reading == "value":
        mixed = qkv
    else:
        # (3, B, heads, 1+N, C/heads)
        query, key, value = qkv.view(b, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        if reading == "query":
            mixed = F.scaled_dot_product_attention(query, query, value)
        elif reading == "correlative":
            mixed = F.scaled_dot_product_attention(query, query, value)
            mixed = mixed + F.scaled_dot_product_attention(key, key, value)
        else:
            bias = neighbour_bias(tokens.grid, neighbour_std, x.device).to(key.dtype)
            mixed = F.scaled_dot_product_attention(key, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(b, n, c)
    out = block.ls_1(attn.out_proj(mixed))
    if residual:
        out = x + out
        out = out + block.ls_2(block.mlp(block.ln_2(out)))
    return out


def neighbour_bias(grid: tuple[int, int], std: float, device: torch.device) -> Tensor:
    """(1+N, 1+N): exp(-distance^2 / (2 std^2)) between patches, 0 from and to the class token."""

    def along(length: int) -> Tensor:
        place = torch.arange(length, device=device, dtype=torch.float32)
        return (-((place[:, None] - place) ** 2) / (2 * std**2)).exp()

    # The Gaussian of a distance in two dimensions is the product of those in one.
    return F.pad(torch.kron(along(grid[0]), along(grid[1])), (1, 0, 1, 0))
