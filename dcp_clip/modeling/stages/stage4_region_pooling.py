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
# Added to the pooled probabilities: the logit of a category that no position has is -14.
_EPSILON = 1e-6
# Attention logit of padding.
_NOWHERE = -1e4


class RegionPooling(nn.Module):
    """Lets the pixels of one region agree on their category.

    A convolutional network computes an embedding of each pixel that does not depend on the names.
    Each pixel takes the category probabilities of the positions with a similar embedding, by
    attention with the negative squared distance of two embeddings as its logit. So all pixels of
    one object tend to get the same category, and borders follow the pixels. Positions whose
    decision is clear, and positions that the network finds reliable, count more. A gate decides for
    each pixel how much of its own logits is replaced. The gate starts at zero, so the module starts
    without effect.

    The weights are shared over the categories and learned from the losses of the pooled logits
    alone. A loss that pulls the embeddings of one object together was less accurate
    (docs/emoji_scenes_results.md).

    The cost is one attention from all pixels at `stride` to all positions at `key_stride`: it grows
    with the square of the image's area, so large images need a large `key_stride`.
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
            keys = _pool(queries, self.key_stride // self.stride)
            weight = _pool(reliability.float(), self.key_stride // self.stride)
            weight = weight + self.clarity_weight * values.square().sum(1, keepdim=True)
            inside = F.interpolate(pixel_valid[:, None].float(), values.shape[-2:]) > 0
            weight = weight.masked_fill(~inside, _NOWHERE)
            pooled = (self._attend(queries, keys, weight, values) + _EPSILON).log()
            own = resize_to(masked.log_softmax(1).clamp(min=math.log(_EPSILON)), size)
            return resize_to(logits, size) + gate.float() * (pooled - own)

    def _attend(self, queries: Tensor, keys: Tensor, weight: Tensor, values: Tensor) -> Tensor:
        """Average the values by a softmax of weight - |query - key|^2.

        Args:
            queries: (B, E, H, W).
            keys: (B, E, h, w).
            weight: (B, 1, h, w) attention logits of the positions.
            values: (B, K, h, w).

        Returns:
            (B, K, H, W).
        """
        size = queries.shape[-2:]
        # |query|^2 is the same for all positions, so it is left out. The rest is one inner product
        # of (2 query, 1) and (key, weight - |key|^2).
        queries = F.pad(2 * queries.flatten(2).mT, (0, 1), value=1.0)
        keys = torch.cat([keys, weight - keys.square().sum(1, keepdim=True)], 1).flatten(2).mT
        pooled = self._average(queries, keys, values.flatten(2).mT)
        return pooled.mT.unflatten(2, size)

    def _average(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Average values (B, n, K) by a softmax of queries (B, N, E) times keys (B, n, E)."""
        # PyTorch attends in blocks only if the widths are equal and the memory is contiguous;
        # otherwise it stores all pairs.
        count = values.shape[2]
        width = max(keys.shape[2], count)
        padded = [F.pad(x, (0, width - x.shape[2])).contiguous() for x in (queries, keys, values)]
        inputs = [x[:, None] for x in padded]
        return F.scaled_dot_product_attention(*inputs, scale=1.0)[:, 0, :, :count]


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
