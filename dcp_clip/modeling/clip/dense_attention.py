"""Dense features of a ViT: training-free changes of the attention in its last block.

A CLIP that pools by its class token trains this token only; the patch tokens of the last block hold
mostly global content. These attentions keep all pretrained weights and replace that of the
last block. ``encode_image`` does not change: the class token always comes from the unchanged last
block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.clip.block_parts import LastBlock
from dcp_clip.modeling.clip.self_calibration import fused_blocks, self_calibrated_tokens

__all__ = ["DENSE_ATTENTIONS", "DenseAttention", "dense_tokens", "naclip_bias"]

# Which patches attend to which.
DENSE_ATTENTIONS = {
    "maskclip": "each patch to itself only, which gives its own value (arXiv 2112.01071)",
    "clearclip": "query to query (ClearCLIP, arXiv 2407.12442; GEM, arXiv 2312.00878)",
    "sclip": "the sum of query-to-query and key-to-key attention (arXiv 2312.01597)",
    "naclip": "key to key, plus a Gaussian around each patch in the logits (arXiv 2404.08181)",
    "scclip": "key to key plus similarity after a middle block (SC-CLIP, arXiv 2411.15869)",
    "clip": "the block as CLIP trained it",
}
# Their names in earlier versions.
_RENAMED = {
    "value": "maskclip",
    "query": "clearclip",
    "correlative": "sclip",
    "neighbour": "naclip",
    "tokens": "clip",
}


@dataclass(frozen=True)
class DenseAttention:
    """How the last block of a ViT computes dense features.

    Attributes:
        name: a key of :data:`DENSE_ATTENTIONS`.
        residual: keep the residual connection and the feed-forward part of the block, as MaskCLIP
            and SCLIP do. ClearCLIP and NACLIP drop both, because ClearCLIP found that the residual
            connection carries the noise. "clip" always keeps both.
        naclip_std: standard deviation of the Gaussian of "naclip" in patches; NACLIP uses 5.
        position_offset: added to the size of the grid where the position embeddings of a ViT
            are resized, see :func:`dcp_clip.modeling.clip.families.vit.position_embedding`.

    Raises:
        ValueError: for an unknown name, a standard deviation that is not above 0, or an offset that
            is not at least 0 and below 1.
    """

    name: str = "maskclip"
    residual: bool = False
    naclip_std: float = 5.0
    position_offset: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in DENSE_ATTENTIONS:
            hint = (
                f" '{self.name}' is '{_RENAMED[self.name]}' now." if self.name in _RENAMED else ""
            )
            raise ValueError(
                f"MODEL.CLIP.DENSE is '{self.name}'; known are {', '.join(DENSE_ATTENTIONS)}.{hint}"
            )
        if self.naclip_std <= 0:
            raise ValueError(f"MODEL.CLIP.NACLIP_STD is {self.naclip_std}; it must be above 0.")
        if not 0 <= self.position_offset < 1:
            raise ValueError(
                f"MODEL.CLIP.POSITION_OFFSET is {self.position_offset}; it must be at least 0 and "
                "below 1."
            )

    def earlier_blocks(self, depth: int) -> list[int]:
        """Indices of the blocks whose outputs the attention needs, in a tower of `depth` blocks."""
        return fused_blocks(depth) if self.name == "scclip" else []


def dense_tokens(
    block: LastBlock,
    tokens: Tensor,
    grid: tuple[int, int],
    dense_attention: DenseAttention,
    levels: Sequence[Tensor] = (),
    attention: Tensor | None = None,
) -> Tensor:
    """Run the last block with an attention other than "clip".

    Args:
        block: the tower's last block.
        tokens: (B, N, C), the input of the block, prefix first.
        grid: (h, w) of the patches.
        dense_attention: which attention to use.
        levels: the tokens after the blocks of :meth:`DenseAttention.earlier_blocks`.
        attention: (B, h*w, h*w), the weights of the patches in each other, for "maskclip"; default:
            each patch has only its own value.

    Returns:
        (B, N, C); the tower's final norm and projection have to be applied.
    """
    if dense_attention.name == "scclip":
        tokens, out = self_calibrated_tokens(block, tokens, levels, grid)
        return block.feed_forward(tokens + out) if dense_attention.residual else out
    if dense_attention.name == "maskclip":
        mixed = block.value(tokens)
        if attention is not None:
            prefix, patches = mixed.tensor_split([tokens.shape[1] - grid[0] * grid[1]], dim=1)
            mixed = torch.cat([prefix, attention.to(patches.dtype) @ patches], dim=1)
    else:
        query, key, value = block.query_key_value(tokens, grid)
        if dense_attention.name == "clearclip":
            mixed = F.scaled_dot_product_attention(query, query, value)
        elif dense_attention.name == "sclip":
            mixed = F.scaled_dot_product_attention(query, query, value)
            mixed = mixed + F.scaled_dot_product_attention(key, key, value)
        else:
            prefix = tokens.shape[1] - grid[0] * grid[1]
            bias = naclip_bias(grid, dense_attention.naclip_std, tokens.device, prefix)
            mixed = F.scaled_dot_product_attention(key, key, value, attn_mask=bias.to(key.dtype))
        mixed = mixed.transpose(1, 2).flatten(2)
    out = block.output(mixed)
    return block.feed_forward(tokens + out) if dense_attention.residual else out


def naclip_bias(grid: tuple[int, int], std: float, device: torch.device, prefix: int = 1) -> Tensor:
    """(P+N, P+N): exp(-distance^2 / (2 std^2)) between patches, 0 from and to the P first tokens.

    Args:
        grid: (h, w) of the N patches.
        std: standard deviation of the Gaussian in patches.
        device: device of the result.
        prefix: P, the number of tokens before the patches: the class token and registers.
    """

    def along(length: int) -> Tensor:
        position = torch.arange(length, device=device, dtype=torch.float32)
        return (-((position[:, None] - position) ** 2) / (2 * std**2)).exp()

    # A two-dimensional Gaussian is the product of two one-dimensional ones.
    return F.pad(_kronecker(along(grid[0]), along(grid[1])), (prefix, 0, prefix, 0))


def _kronecker(first: Tensor, second: Tensor) -> Tensor:
    """As ``torch.kron`` of two matrices, which an exported program fixes to one size."""
    product = first[:, None, :, None] * second[None, :, None, :]
    return product.flatten(2, 3).flatten(0, 1)
