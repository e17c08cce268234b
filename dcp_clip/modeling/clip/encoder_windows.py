"""Encode a large image in overlapping windows of about the encoder's training resolution."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["encode_in_windows", "window_starts"]

# Number of windows in one forward pass. It bounds the memory for any image size.
_WINDOWS_PER_CHUNK = 8


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Return the start positions of windows that cover one side of an image.

    The last window ends where the image ends.
    """
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def encode_in_windows(
    encode: Callable[[Tensor], dict[str, Tensor]], images: Tensor, window: int, stride: int
) -> dict[str, Tensor]:
    """Encode overlapping windows, and average the feature maps where they overlap.

    The dense features of a ViT get worse far from its training resolution, so training-free methods
    encode large images in windows. SCLIP (arXiv 2312.01597) and NACLIP (arXiv 2404.08181) average
    the similarities of windows of 224 pixels, one every 112 pixels. CAT-Seg (arXiv 2303.11797)
    evaluates its trained model in windows of 384 pixels. This function normalises the vectors of
    ``dense`` to unit length and averages them. The cosine similarity of the average and a text
    feature is then the average similarity of the windows, times a factor. The factor depends on the
    position but not on the category. An image that is not larger than a window is one window.

    Args:
        encode: maps images (N, 3, H', W') to a dict of feature maps (N, C, h, w) with ``dense``.
            Tensors of the dict with other numbers of dimensions are ignored.
        images: (B, 3, H, W).
        window: size of the windows in pixels. If a side of the image is shorter, the window has the
            length of that side. The sides, the window and the stride must be multiples of the
            stride of every feature map.
        stride: pixels from one window to the next, at most `window`.

    Returns:
        The feature maps of the whole images, (B, C, h, w).
    """
    batch, _, height, width = images.shape
    size = min(window, height), min(window, width)
    positions = [
        (top, left)
        for top in window_starts(height, window, stride)
        for left in window_starts(width, window, stride)
    ]
    totals: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    per_chunk = max(_WINDOWS_PER_CHUNK // batch, 1)
    for first in range(0, len(positions), per_chunk):
        chunk = positions[first : first + per_chunk]
        crops = [images[..., y : y + size[0], x : x + size[1]] for y, x in chunk]
        for key, maps in encode(torch.cat(crops)).items():
            if maps.dim() != 4:
                continue
            maps = maps.float()  # half precision is too coarse for the sum of many windows
            if key == "dense":
                maps = F.normalize(maps, dim=1)
            # Pixels for each cell, vertically and horizontally.
            cell_height, cell_width = size[0] // maps.shape[2], size[1] // maps.shape[3]
            if key not in totals:
                grid = height // cell_height, width // cell_width
                totals[key] = maps.new_zeros(batch, maps.shape[1], *grid)
                counts[key] = maps.new_zeros(grid)
            for (y, x), part in zip(chunk, maps.split(batch), strict=True):
                rows = slice(y // cell_height, y // cell_height + maps.shape[2])
                columns = slice(x // cell_width, x // cell_width + maps.shape[3])
                totals[key][:, :, rows, columns] += part
                counts[key][rows, columns] += 1
    return {key: total / counts[key] for key, total in totals.items()}
