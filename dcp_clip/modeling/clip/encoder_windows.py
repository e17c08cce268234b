"""Encode a large image in overlapping windows of the size that the encoder knows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["encode_in_windows", "window_starts"]

# Windows that go through the encoder at once; bounds memory whatever the image's size.
_WINDOWS_PER_CHUNK = 8


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one side, so that every position is covered and none sticks out.

    The last window is moved back to end with the image.
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def encode_in_windows(
    encode: Callable[[Tensor], dict[str, Tensor]], images: Tensor, window: int, stride: int
) -> dict[str, Tensor]:
    """Encode overlapping windows, and average the maps where they overlap.

    A ViT's dense features degrade far from its training resolution, so training-free methods see
    large images through windows: SCLIP (arXiv 2312.01597) and NACLIP (arXiv 2404.08181) average the
    similarities of windows of 224 pixels every 112; CAT-Seg (arXiv 2303.11797) evaluates its
    trained model in windows of 384. Here ``dense`` is averaged as unit vectors: the
    cosine of the average with a name is the average of the windows' cosines, up to one factor a
    position that is the same for all names. An image no larger than the window is one window, all
    of it.

    Args:
        encode: images (N, 3, H', W') to maps (N, C, h, w), among them ``dense``; other tensors in
            the dict are left out.
        images: (B, 3, H, W).
        window: side of the windows in pixels; along a side shorter than that, a window is as long
            as the side. Sides, window and stride must be multiples of every map's stride.
        stride: pixels from one window to the next, at most `window`.

    Returns:
        the maps of the whole images, (B, C, h, w).
    """
    batch, _, height, width = images.shape
    size = min(window, height), min(window, width)
    places = [
        (top, left)
        for top in window_starts(height, window, stride)
        for left in window_starts(width, window, stride)
    ]
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    per_chunk = max(_WINDOWS_PER_CHUNK // batch, 1)
    for first in range(0, len(places), per_chunk):
        chunk = places[first : first + per_chunk]
        crops = [images[..., y : y + size[0], x : x + size[1]] for y, x in chunk]
        for key, maps in encode(torch.cat(crops)).items():
            if maps.dim() != 4:
                continue
            maps = maps.float()  # sums of many in half precision would lose the last ones
            if key == "dense":
                maps = F.normalize(maps, dim=1)
            # Pixels a cell, down and across.
            down, across = size[0] // maps.shape[2], size[1] // maps.shape[3]
            if key not in totals:
                grid = height // down, width // across
                totals[key] = maps.new_zeros(batch, maps.shape[1], *grid)
                counts[key] = maps.new_zeros(grid)
            for (y, x), part in zip(chunk, maps.split(batch), strict=True):
                rows = slice(y // down, y // down + maps.shape[2])
                columns = slice(x // across, x // across + maps.shape[3])
                totals[key][:, :, rows, columns] += part
                counts[key][rows, columns] += 1
    return {key: total / counts[key] for key, total in totals.items()}
