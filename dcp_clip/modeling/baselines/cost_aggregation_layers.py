"""The layers of cost aggregation: over positions, over names, and to finer grids."""

from __future__ import annotations

import torch
from detectron2.layers import Conv2d
from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.head_segmentor import conv_norm_relu
from dcp_clip.modeling.layers import MLP, resize_to

__all__ = ["ClassAggregation", "GuidedUpsampling", "SpatialAggregation", "conv_relu"]

_MLP_RATIO = 4


def conv_relu(in_channels: int, out_channels: int) -> Conv2d:
    """A 3x3 convolution and ReLU."""
    return Conv2d(in_channels, out_channels, 3, padding=1, activation=F.relu)


class _WindowBlock(nn.Module):
    """A block of a Swin Transformer (arXiv 2103.14030) with guided attention.

    The positions of the map of each name attend to each other within a window. Queries and keys
    also depend on image features, values do not. timm's block has no guidance. Unlike there,
    positions that only fill the last window are masked.
    """

    def __init__(self, dim: int, num_heads: int, window: int, shift: bool):
        """
        Args:
            dim: E, channels of the maps and of the image features.
            num_heads: heads of the attention.
            window: rows and columns of a window; a smaller map is one window.
            shift: shift the windows by half of their size.
        """
        super().__init__()
        self.num_heads, self.window, self.shift = num_heads, window, shift
        self.norm = nn.LayerNorm(dim)
        self.norm_image = nn.LayerNorm(dim)
        self.query_key = nn.Linear(dim, 2 * dim)
        # A product with concatenated channels is the sum of two products. This one is computed once
        # for each image instead of once for each name.
        self.image_query_key = nn.Linear(dim, 2 * dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = MLP(dim, _MLP_RATIO)
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 2 * window - 1, 2 * window - 1))
        nn.init.trunc_normal_(self.position_bias, std=0.02)

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        """From maps (B, K, h, w, E) and image features (B, h, w, E) to maps (B, K, h, w, E)."""
        normed = self.norm(maps)
        guidance = self.image_query_key(self.norm_image(image))
        qkv = torch.cat([self.query_key(normed) + guidance[:, None], self.value(normed)], dim=-1)
        maps = maps + self.out(self._attend(qkv.flatten(0, 1))).view_as(maps)
        return maps + self.mlp(maps)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attend within windows: from queries, keys and values (N, h, w, 3 E) to (N, h, w, E)."""
        grid = qkv.shape[1:3]
        window = tuple(min(side, self.window) for side in grid)
        shift = tuple(w // 2 if self.shift and w < side else 0 for side, w in zip(grid, window))
        bottom, right = (-side % w for side, w in zip(grid, window))
        padded = (grid[0] + bottom, grid[1] + right)
        x = F.pad(qkv, (0, 0, 0, right, 0, bottom)).roll((-shift[0], -shift[1]), (1, 2))
        x = window_partition(x, window).flatten(1, 2)  # (N * windows, P, 3 E)
        bias = self._bias(window)  # (heads, P, P)
        if any(shift) or padded != tuple(grid):
            groups = _groups(grid, padded, shift, x.device)
            groups = window_partition(groups[None, ..., None], window).flatten(1)
            apart = groups[:, None] != groups[:, :, None]
            bias = bias.masked_fill(apart[:, None], float("-inf"))  # (windows, heads, P, P)
            bias = bias.repeat(len(qkv), 1, 1, 1)
        query, key, value = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for y in x.chunk(3, dim=-1)
        )
        x = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        x = x.transpose(1, 2).reshape(-1, *window, self.out.in_features)
        x = window_reverse(x, window, *padded).roll(shift, (1, 2))
        return x[:, : grid[0], : grid[1]]

    def _bias(self, window: tuple[int, int]) -> Tensor:
        """Return the bias (heads, P, P) of each pair of the P positions of a window."""
        offsets = []
        for side in window:
            index = torch.arange(side, device=self.position_bias.device)
            offsets.append(index[:, None] - index + self.window - 1)
        rows, columns = offsets
        bias = self.position_bias[:, rows[:, None, :, None], columns[None, :, None, :]]
        return bias.flatten(3).flatten(1, 2)


def _groups(
    grid: tuple[int, int], padded: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> Tensor:
    """Number the regions of the padded, shifted map; positions of two regions are not neighbours.

    Returns:
        (rows, columns) int64.
    """
    sides = []
    for n, total, moved in zip(grid, padded, shift):
        position = torch.arange(total, device=device) + moved
        sides.append(2 * (position >= total) + (position % total >= n))
    rows, columns = sides
    return 4 * rows[:, None] + columns


class SpatialAggregation(nn.Module):
    """The positions of the map of each name attend to each other, guided by the image.

    Two blocks: windows, and windows shifted by half of their size.
    """

    def __init__(self, dim: int, num_heads: int, window: int):
        """
        Args:
            dim, num_heads, window: see the blocks: E, heads, and the size of a window.
        """
        super().__init__()
        self.blocks = nn.ModuleList(
            [_WindowBlock(dim, num_heads, window, shift) for shift in (False, True)]
        )

    def forward(self, maps: Tensor, image: Tensor) -> Tensor:
        """From maps (B, K, h, w, E) and image features (B, h, w, E) to maps (B, K, h, w, E)."""
        for block in self.blocks:
            maps = block(maps, image)
        return maps


class ClassAggregation(nn.Module):
    """At each position the names attend to each other, guided by their text features.

    With linear attention (arXiv 2006.16236) time and memory grow linearly with the number of names.
    """

    def __init__(self, dim: int, num_heads: int):
        """
        Args:
            dim: E, channels of the maps and of the text features.
            num_heads: heads of the attention.
        """
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(dim)
        self.norm_text = nn.LayerNorm(dim)
        self.query_key = nn.Linear(dim, 2 * dim)
        self.text_query_key = nn.Linear(dim, 2 * dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = MLP(dim, _MLP_RATIO)

    def forward(self, maps: Tensor, text: Tensor) -> Tensor:
        """From maps (B, K, h, w, E) and text features (B, K, E) to maps (B, K, h, w, E)."""
        normed = self.norm(maps)
        guidance = self.text_query_key(self.norm_text(text))[:, :, None, None]
        query, key = (self.query_key(normed) + guidance).chunk(2, dim=-1)
        qkv = (
            y.float().flatten(2, 3).unflatten(-1, (self.num_heads, -1))
            for y in (query, key, self.value(normed))
        )
        with torch.autocast(maps.device.type, enabled=False):  # sums over K need full precision
            mixed = _linear_attention(*qkv)
        maps = maps + self.out(mixed.flatten(3)).view_as(maps)
        return maps + self.mlp(maps)


def _linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Linear attention among K names; all tensors are (B, K, N, heads, e)."""
    query, key = 1 + F.elu(query), 1 + F.elu(key)
    # Means over the names, because sums would be large with a large vocabulary.
    context = torch.einsum("bknhd,bknhe->bnhde", key, value) / key.shape[1]
    total = torch.einsum("bknhd,bnhd->bknh", query, key.mean(1))
    return torch.einsum("bknhd,bnhde->bknhe", query, context) / total[..., None]


class GuidedUpsampling(nn.Module):
    """Upsamples the map of each name by two, guided by finer image features.

    A transposed convolution, then two convolutions over its output and the guidance. The part of
    the first convolution that belongs to the guidance is computed once for each image.
    """

    def __init__(self, in_channels: int, out_channels: int, image_channels: int, guide_dim: int):
        """
        Args:
            in_channels, out_channels: channels of the maps.
            image_channels: channels of the finer image features.
            guide_dim: channels of the guidance.
        """
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels - guide_dim, 2, stride=2)
        self.mix = nn.Conv2d(in_channels - guide_dim, out_channels, 3, padding=1)
        self.guide = nn.Sequential(
            conv_relu(image_channels, guide_dim),
            nn.Conv2d(guide_dim, out_channels, 3, padding=1, bias=False),
        )
        self.norm = nn.GroupNorm(4, out_channels)
        self.refine = conv_norm_relu(out_channels, out_channels)

    def forward(self, maps: Tensor, guide: Tensor) -> Tensor:
        """From maps (B, K, E, h, w) and the output of `guide` (B, E', H, W) to (B, K, E', H, W)."""
        x = self.mix(resize_to(self.up(maps.flatten(0, 1)), guide.shape[-2:]))
        x = x.unflatten(0, maps.shape[:2]) + guide[:, None]
        x = self.refine(F.relu(self.norm(x.flatten(0, 1))))
        return x.unflatten(0, maps.shape[:2])
