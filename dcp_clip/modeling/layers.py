"""Layers and functions that several stages use: attention, masked maximum, grids."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "CrossAttention",
    "MLP",
    "best_synonym_similarity",
    "check_heads",
    "masked_max",
    "resize_to",
    "to_channels_last",
    "valid_positions",
]


_BIAS_WEIGHT = 0.5  # of the similarity, before training


class MLP(nn.Sequential):
    """LayerNorm, linear, GELU, linear: the feed-forward half of a transformer block."""

    def __init__(self, dim: int, ratio: int = 2):
        super().__init__(
            nn.LayerNorm(dim), nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim)
        )


class CrossAttention(nn.Module):
    """Pre-norm multi-head cross-attention, biased by the CLIP similarity of query and key.

    Each head has a learned weight for the bias, so it can use or ignore CLIP's similarity. With the
    bias, categories that were not in training also start from CLIP's similarity.
    """

    def __init__(self, dim: int, num_heads: int):
        """
        Args:
            dim: width of queries and keys.
            num_heads: heads; must divide `dim`.
        """
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.norm_query = nn.LayerNorm(dim)
        self.norm_key = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.bias_weight = nn.Parameter(torch.full((num_heads,), _BIAS_WEIGHT))

    def forward(self, query: Tensor, key: Tensor, bias: Tensor, key_valid: Tensor) -> Tensor:
        """
        Args:
            query: (B, Q, d).
            key: (B, N, d), keys and values.
            bias: (B, Q, N), added to the attention logits with a learned weight for each head.
            key_valid: (B, N) bool, False at padding; each row has at least one True.

        Returns:
            (B, Q, d), to be added to the query by the caller.
        """
        b, q, d = query.shape
        heads = self.num_heads
        qs = self.query(self.norm_query(query)).view(b, q, heads, -1).transpose(1, 2)
        kv = self.key_value(self.norm_key(key)).view(b, key.shape[1], 2, heads, -1)
        ks, vs = kv.permute(2, 0, 3, 1, 4)
        attn_bias = self.bias_weight.view(1, heads, 1, 1) * bias[:, None]
        attn_bias = attn_bias.masked_fill(~key_valid[:, None, None], float("-inf"))
        out = F.scaled_dot_product_attention(qs, ks, vs, attn_mask=attn_bias.to(qs.dtype))
        return self.out(out.transpose(1, 2).reshape(b, q, d))


def best_synonym_similarity(unit: Tensor, text_features: Tensor, rows: Tensor) -> Tensor:
    """Cosine similarity of each position and each category: that of the best synonym there.

    Every position has its own best synonym, so a category can have names for different things
    ("sky, wall, tree"). A name is compared once, however many synonyms other categories have.

    Args:
        unit: (B, D, ...) features of unit length.
        text_features: (N, D), one row for each name, of unit length.
        rows: (B, K, S) the rows of the synonyms of K categories. A category with fewer than S
            synonyms repeats its first row.

    Returns:
        (B, K, ...).
    """
    if torch.compiler.is_compiling():  # the number of synonyms is an input of an exported program
        return torch.einsum("bksd,bd...->bks...", text_features[rows], unit).amax(2)
    similarity = torch.einsum("bkd,bd...->bk...", text_features[rows[..., 0]], unit)
    for s in range(1, rows.shape[2]):
        # The images of a batch share a product, so a category counts if any of them needs it.
        members = (rows[..., s] != rows[..., 0]).any(0).nonzero().squeeze(1)
        if len(members):
            other = torch.einsum("bkd,bd...->bk...", text_features[rows[:, members, s]], unit)
            best = torch.maximum(similarity.index_select(1, members), other)
            similarity = similarity.index_copy(1, members, best)
    return similarity


def check_heads(dim: int, num_heads: int) -> None:
    """Raise ValueError unless the attention width is a multiple of the number of heads."""
    if num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"attention width {dim} is not a multiple of {num_heads} heads (MODEL.DCP_CLIP.DIM and "
            "NUM_HEADS)."
        )


def masked_max(values: Tensor, valid: Tensor) -> Tensor:
    """Return the maximum over the last dimension where `valid` (broadcastable bool) is True."""
    return values.masked_fill(~valid, float("-inf")).amax(-1)


def resize_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (N, C, h, w) bilinearly to `size`; return `x` if it already has that size."""
    if x.shape[-2:] == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def valid_positions(
    image_sizes: list[tuple[int, int]],
    padded_size: tuple[int, int],
    grid: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """Return a bool mask (B, h, w) of the grid positions that contain a pixel of the image.

    It is False at positions that contain only padding.
    """
    # Under torch.jit.trace, Detectron2's ImageList gives the sizes as tensors.
    sizes = [[int(side) for side in size] for size in image_sizes]
    heights, widths = torch.tensor(sizes, device=device).T
    rows = torch.arange(grid[0], device=device) * padded_size[0] / grid[0]
    columns = torch.arange(grid[1], device=device) * padded_size[1] / grid[1]
    return (rows < heights[:, None])[:, :, None] & (columns < widths[:, None])[:, None, :]


def to_channels_last(model: nn.Module) -> None:
    """Keep the weights of the convolutions in channels-last memory format.

    Strided 1 x 1 convolutions of fewer than 8 channels, as in the stem of MobileCLIP, stay as they
    are. In PyTorch 2.14 on a CPU, their backward pass in channels-last format writes outside of its
    memory and ends the process.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not _is_unsafe_in_channels_last(module):
            module.to(memory_format=torch.channels_last)


def _is_unsafe_in_channels_last(conv: nn.Conv2d) -> bool:
    return conv.kernel_size == (1, 1) and conv.stride != (1, 1) and conv.in_channels < 8
