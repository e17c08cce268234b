"""Cosine similarities of names at the pixels of an image, averaged over overlapping windows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.clip.encoder_windows import window_starts

__all__ = ["PADDINGS", "pixel_similarity"]

PADDINGS = {
    "none": "the encoder does not see pixels beyond the last whole patch (SCLIP, NACLIP)",
    "end": "zeros below and on the right fill the last patch (MaskCLIP)",
    "center": "zeros on all sides fill whole patches, and are cut off the map (ClearCLIP)",
}
# Number of windows that are encoded at once.
_WINDOWS_PER_CHUNK = 8


def pixel_similarity(
    encode: Callable[[Tensor], Tensor],
    image: Tensor,
    text_features: Tensor,
    *,
    patch: int,
    window: int,
    stride: int,
    padding: str,
) -> Tensor:
    """Compute the similarity of every name at every pixel.

    The similarities of a window are upsampled to its pixels. A pixel has the mean over the windows
    that contain it. Windows begin every `stride` pixels; the last one of a row or column ends with
    the image.

    Args:
        encode: from pixels (B, 3, h, w), multiples of `patch`, to dense features (B, D, h / patch,
            w / patch).
        image: (3, H, W), normalised.
        text_features: (N, D) of unit length.
        patch: stride of the encoder in pixels.
        window: height and width of a window in pixels; 0 for the whole image.
        stride: pixels from one window to the next.
        padding: a key of :data:`PADDINGS`: what happens where a window is not a multiple of
            `patch`. With "none" and "end" the map is stretched over the window.

    Returns:
        (N, H, W) float32.
    """
    height, width = image.shape[-2:]
    size = min(window or height, height), min(window or width, width)
    places = [
        (y, x)
        for y in window_starts(height, size[0], stride)
        for x in window_starts(width, size[1], stride)
    ]
    margins = [_margins(side, patch, padding) for side in size]
    total = image.new_zeros(len(text_features), height, width)
    count = image.new_zeros(height, width)
    for first in range(0, len(places), _WINDOWS_PER_CHUNK):
        chunk = places[first : first + _WINDOWS_PER_CHUNK]
        crops = torch.stack([image[:, y : y + size[0], x : x + size[1]] for y, x in chunk])
        dense = F.normalize(encode(F.pad(crops, (*margins[1], *margins[0]))).float(), dim=1)
        for (y, x), features in zip(chunk, dense, strict=True):
            maps = torch.einsum("nd,dhw->nhw", text_features, features)
            place = (..., slice(y, y + size[0]), slice(x, x + size[1]))
            total[place] += _upsample(maps, size, margins, padding)
            count[place] += 1
    return total / count


def _margins(side: int, patch: int, padding: str) -> tuple[int, int]:
    """Pixels to add before and after a side; negative pixels are removed."""
    rest = side % patch
    missing = patch - rest if rest else 0
    if padding == "center":
        return missing // 2, missing - missing // 2
    if padding == "none" and side > patch:
        return 0, -rest
    return 0, missing


def _upsample(
    maps: Tensor, size: tuple[int, int], margins: list[tuple[int, int]], padding: str
) -> Tensor:
    """(N, h, w) on the grid to (N, *size) pixels of a window."""
    if padding != "center":
        return F.interpolate(maps[None], size, mode="bilinear")[0]
    padded = [side + sum(margin) for side, margin in zip(size, margins)]
    (top, _), (left, _) = margins
    maps = F.interpolate(maps[None], padded, mode="bilinear")[0]
    return maps[:, top : top + size[0], left : left + size[1]]
