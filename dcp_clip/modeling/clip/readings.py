"""Dense features of a ViT: training-free changes of the attention in its last block.

CLIP trains only the class token, so the patch tokens after the last block describe mostly the whole
image. The methods here keep all pretrained weights and replace the attention of the last block. The
code calls such a method a reading. ``encode_image`` does not change, because the class token always
comes from the unchanged last block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["READINGS", "DenseReading", "naclip_bias", "read_dense_tokens"]

# Each reading is a rule for which patches attend to which.
READINGS = {
    "maskclip": "each patch to itself only, which gives its own value (arXiv 2112.01071)",
    "clearclip": "query to query (ClearCLIP, arXiv 2407.12442; GEM, arXiv 2312.00878)",
    "sclip": "the sum of query-to-query and key-to-key attention (arXiv 2312.01597)",
    "naclip": "key to key, plus a Gaussian around each patch in the logits (arXiv 2404.08181)",
    "clip": "the block as CLIP trained it",
}
# Names of the readings in earlier versions.
_RENAMED = {
    "value": "maskclip",
    "query": "clearclip",
    "correlative": "sclip",
    "neighbour": "naclip",
    "tokens": "clip",
}


@dataclass(frozen=True)
class DenseReading:
    """How the last block of a ViT computes dense features.

    Attributes:
        name: a key of :data:`READINGS`.
        residual: keep the residual connection and the feed-forward part of the block, as MaskCLIP
            and SCLIP do. ClearCLIP and NACLIP drop both, because ClearCLIP found that the residual
            connection carries the noise. "clip" always keeps both.
        naclip_std: standard deviation of the Gaussian of "naclip" in patches; NACLIP uses 5.

    Raises:
        ValueError: for an unknown name, or a standard deviation that is not above 0.
    """

    name: str = "maskclip"
    residual: bool = False
    naclip_std: float = 5.0

    def __post_init__(self) -> None:
        if self.name not in READINGS:
            hint = (
                f" '{self.name}' is '{_RENAMED[self.name]}' now." if self.name in _RENAMED else ""
            )
            raise ValueError(
                f"MODEL.CLIP.DENSE is '{self.name}'; known are {', '.join(READINGS)}.{hint}"
            )
        if self.naclip_std <= 0:
            raise ValueError(f"MODEL.CLIP.NACLIP_STD is {self.naclip_std}; it must be above 0.")

    def check(self, block: nn.Module) -> None:
        """Raise ValueError if this reading cannot be used with the last block of a tower."""
        if self.name != "clip" and not isinstance(block.attn, nn.MultiheadAttention):
            raise ValueError(
                f"MODEL.CLIP.DENSE '{self.name}' needs CLIP's plain attention, but this tower has "
                f"{type(block.attn).__name__}; set it to 'clip'."
            )


def read_dense_tokens(
    block: nn.Module, tokens: Tensor, grid: tuple[int, int], reading: DenseReading
) -> Tensor:
    """Run the last block with the attention of a reading other than "clip".

    Args:
        block: the tower's last ``ResidualAttentionBlock``.
        tokens: (B, 1+N, C), the input of the block, class token first.
        grid: (h, w) of the N patches.
        reading: which attention to use.

    Returns:
        (B, 1+N, C), before the tower's final norm and projection.
    """
    attn = block.attn
    b, n, c = tokens.shape
    # The three projections are stacked in one matrix; "maskclip" needs the last one only.
    first = 2 * c if reading.name == "maskclip" else 0
    qkv = F.linear(block.ln_1(tokens), attn.in_proj_weight[first:], attn.in_proj_bias[first:])
    if reading.name == "maskclip":
        mixed = qkv
    else:
        # (3, B, heads, 1+N, C/heads)
        query, key, value = qkv.view(b, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        if reading.name == "clearclip":
            mixed = F.scaled_dot_product_attention(query, query, value)
        elif reading.name == "sclip":
            mixed = F.scaled_dot_product_attention(query, query, value)
            mixed = mixed + F.scaled_dot_product_attention(key, key, value)
        else:
            bias = naclip_bias(grid, reading.naclip_std, tokens.device).to(key.dtype)
            mixed = F.scaled_dot_product_attention(key, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(b, n, c)
    out = block.ls_1(attn.out_proj(mixed))
    if reading.residual:
        out = tokens + out
        out = out + block.ls_2(block.mlp(block.ln_2(out)))
    return out


def naclip_bias(grid: tuple[int, int], std: float, device: torch.device) -> Tensor:
    """Return NACLIP's attention bias: exp(-distance^2 / (2 std^2)) between two patches.

    Args:
        grid: (h, w) of the N patches.
        std: standard deviation of the Gaussian in patches.
        device: device of the result.

    Returns:
        (1+N, 1+N), with 0 from and to the class token.
    """

    def along(length: int) -> Tensor:
        position = torch.arange(length, device=device, dtype=torch.float32)
        return (-((position[:, None] - position) ** 2) / (2 * std**2)).exp()

    # A two-dimensional Gaussian is the product of two one-dimensional ones.
    return F.pad(torch.kron(along(grid[0]), along(grid[1])), (1, 0, 1, 0))
