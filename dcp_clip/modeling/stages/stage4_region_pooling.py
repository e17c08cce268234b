"""The end of stage 4: the pixels of one region agree on their category."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dcp_clip.modeling.layers import resize_to

__all__ = ["RegionPooling"]

_GROUPS = 4  # of group norm
_DIM = 24  # channels of the pixels, and of the image features beside them
_HIDDEN_DIM = 32
_EMBED_DIM = 24
_LOGITS_STRIDE = 4
_NEIGHBOURS = 5  # a pixel takes the probabilities of 5 x 5 positions
# Added to the pooled probabilities: the logit of a category that no position has is -14.
_EPSILON = 1e-6
# Attention logit of padding.
_NOWHERE = -1e4


class RegionPooling(nn.Module):
    """Lets the pixels of one region agree on their category.

    A convolutional network computes an embedding of each pixel that does not depend on the names.
    Two steps of attention use the negative squared distance of two embeddings as its logit:

    1. Each position at `key_stride` takes the category probabilities of all positions with a
       similar embedding. So all positions of one object tend to get the same category.
    2. Each pixel takes the probabilities of the similar ones among the positions around it, so
       borders follow the pixels.

    Positions whose decision is clear, and positions that the network finds reliable, count more. A
    gate decides for each pixel how much of its own logits is replaced. The gate starts at zero, so
    the module starts without effect.

    The weights are shared over the categories and learned from the losses of the pooled logits
    alone. A loss that pulls the embeddings of one object together was less accurate
    (docs/emoji_scenes_alternatives.md).

    The first step has one pair for every two positions, so its cost grows with the square of the
    image's area: large images need a large `key_stride`. The second step has 25 pairs for each
    pixel. One attention from all pixels to all positions is as accurate, but has 13 times as many
    pairs on EmojiScenes.
    """

    def __init__(self, image_channels: int, stride: int, key_stride: int):
        """
        Args:
            image_channels: width of the image features.
            stride: of the result, in pixels: 2 or 4.
            key_stride: of the positions whose probabilities are averaged: a multiple of 4.

        Raises:
            ValueError: for another stride.
        """
        super().__init__()
        node = "MODEL.DCP_CLIP.FINE_DECODER."
        if stride not in (2, 4):
            raise ValueError(f"{node}REGION_STRIDE is {stride}; it must be 0 (off), 2 or 4.")
        if key_stride < _LOGITS_STRIDE or key_stride % _LOGITS_STRIDE:
            raise ValueError(
                f"{node}REGION_KEY_STRIDE is {key_stride}; it must be a multiple of "
                f"{_LOGITS_STRIDE}."
            )
        self.stride, self.key_stride = stride, key_stride
        self.pixels = _conv(3, _DIM, stride)
        self.image = nn.Conv2d(image_channels, _DIM, 1)
        self.hidden = nn.Sequential(_conv(2 * _DIM, 2 * _DIM), _conv(2 * _DIM, _HIDDEN_DIM))
        self.embedding = nn.Conv2d(_HIDDEN_DIM, _EMBED_DIM, 1)
        self.reliability = nn.Conv2d(_HIDDEN_DIM, 1, 1)
        self.gate = nn.Conv2d(_HIDDEN_DIM, 1, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.clarity_weight = nn.Parameter(torch.tensor(1.0))

    def forward(
        self,
        logits: Tensor,
        image: Tensor,
        pixels: Tensor,
        pixel_valid: Tensor,
        proposal_valid: Tensor,
    ) -> Tensor:
        """
        Args:
            logits: (B, K, H/4, W/4).
            image: (B, G, H/4, W/4) image features.
            pixels: (B, 3, H, W), normalised.
            pixel_valid: (B, h, w) bool, False at padding.
            proposal_valid: (B, K) bool, False for padded proposals.

        Returns:
            logits (B, K, H/stride, W/stride).
        """
        pixels = self.pixels(pixels)
        size = pixels.shape[-2:]
        hidden = self.hidden(torch.cat([resize_to(self.image(image), size), pixels], 1))
        queries, reliability = self.embedding(hidden), self.reliability(hidden)
        gate = self.gate(hidden)
        # The squared distances need float32.
        with torch.autocast(pixels.device.type, enabled=False):
            logits = logits.float()
            masked = logits.masked_fill(~proposal_valid[..., None, None], float("-inf"))
            values = _pool(masked.softmax(1), self.key_stride // _LOGITS_STRIDE)
            queries = queries.float()
            cell = self.key_stride // self.stride
            keys, weight = _pool(queries, cell), _pool(reliability.float(), cell)
            weight = weight + self.clarity_weight * values.square().sum(1, keepdim=True)
            inside = F.interpolate(pixel_valid[:, None].float(), values.shape[-2:]) > 0
            weight = weight.masked_fill(~inside, _NOWHERE)
            values = _average_over_all(keys, weight, values)
            pooled = _average_over_neighbours(queries, keys, weight, values, cell)
            own = resize_to(masked.log_softmax(1).clamp(min=math.log(_EPSILON)), size)
            pooled = (pooled + _EPSILON).log()
            return resize_to(logits, size) + gate.float() * (pooled - own)


# |query|^2 is the same for all keys, so the softmax of weight - |query - key|^2 does not need it.
# The rest is one inner product of (2 query, 1) and (key, weight - |key|^2).


def _as_queries(embeddings: Tensor) -> Tensor:
    """(..., E) to (..., E + 1)."""
    return F.pad(2 * embeddings, (0, 1), value=1.0)


def _as_keys(embeddings: Tensor, weight: Tensor) -> Tensor:
    """(B, E, h, w) and (B, 1, h, w) to (B, E + 1, h, w)."""
    return torch.cat([embeddings, weight - embeddings.square().sum(1, keepdim=True)], 1)


def _average_over_all(keys: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    """Average the values of all positions by a softmax of weight - |query - key|^2.

    Args:
        keys: (B, E, h, w), also the queries.
        weight: (B, 1, h, w) attention logits of the positions.
        values: (B, K, h, w).

    Returns:
        (B, K, h, w).
    """
    inputs = [
        _as_queries(keys.flatten(2).mT),
        _as_keys(keys, weight).flatten(2).mT,
        values.flatten(2).mT,
    ]
    # PyTorch attends in blocks only if the widths are equal and the memory is contiguous; otherwise
    # it stores all pairs.
    width = max(x.shape[2] for x in inputs)
    inputs = [F.pad(x, (0, width - x.shape[2])).contiguous()[:, None] for x in inputs]
    averages = F.scaled_dot_product_attention(*inputs, scale=1.0)[:, 0, :, : values.shape[1]]
    return averages.mT.unflatten(2, values.shape[-2:])


def _average_over_neighbours(
    queries: Tensor, keys: Tensor, weight: Tensor, values: Tensor, cell: int
) -> Tensor:
    """Average the values of the positions around each pixel by a softmax of the same logits.

    These are the position that contains the pixel and the ones around it, 5 x 5 in all.

    Args:
        queries: (B, E, H, W).
        keys: (B, E, h, w); a position contains `cell` x `cell` pixels.
        weight: (B, 1, h, w) attention logits of the positions.
        values: (B, K, h, w).
        cell: pixels along a side of a position.

    Returns:
        (B, K, H, W).
    """
    (height, width), (h, w) = queries.shape[-2:], keys.shape[-2:]
    queries = F.pad(queries, (0, w * cell - width, 0, h * cell - height))
    queries = queries.unflatten(3, (w, cell)).unflatten(2, (h, cell)).permute(0, 2, 4, 3, 5, 1)
    queries = _as_queries(queries.flatten(3, 4))  # (B, h, w, pixels of a position, E + 1)
    margin = (_NEIGHBOURS // 2,) * 4
    keys = _as_keys(F.pad(keys, margin), F.pad(weight, margin, value=_NOWHERE))
    share = (queries @ _neighbours(keys).mT).softmax(-1)
    averages = share @ _neighbours(F.pad(values, margin))  # (B, h, w, pixels, K)
    averages = averages.unflatten(3, (cell, cell)).permute(0, 5, 1, 3, 2, 4)
    return averages.flatten(4, 5).flatten(2, 3)[..., :height, :width]


def _neighbours(maps: Tensor) -> Tensor:
    """Return the 5 x 5 vectors around each position of padded maps, as (B, h, w, 25, C)."""
    windows = maps.unfold(2, _NEIGHBOURS, 1).unfold(3, _NEIGHBOURS, 1)
    return windows.permute(0, 2, 3, 4, 5, 1).flatten(3, 4)


def _pool(maps: Tensor, factor: int) -> Tensor:
    """Average cells of factor x factor positions; the last row and column may be smaller."""
    return F.avg_pool2d(maps, factor, ceil_mode=True, count_include_pad=False)


def _conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """With a stride, the kernel is centred on the first pixel of a cell."""
    kernel_size = 2 * stride - 1 if stride > 1 else 3
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False),
        nn.GroupNorm(_GROUPS, out_channels),
        nn.ReLU(inplace=True),
    )
