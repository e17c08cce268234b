"""From logits on a grid to pixels of any number in bounded memory, a band of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["RowResizer", "category_shares", "resized_bands", "rows_per_band"]


def rows_per_band(maps: Tensor, width: int) -> int:
    """Rows of a band of K maps: few enough to stay in a processor's cache, many enough to keep it,
    or a GPU, busy."""
    logits = 64_000_000 if maps.is_cuda else 2_000_000
    return max(1, logits // (len(maps) * width))


def resized_bands(
    maps: Tensor,
    size: tuple[int, int],
    extent: tuple[float, float] | None = None,
    band_rows: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Enlarge maps bilinearly, a band of rows at a time.

    Joined, the bands are ``F.interpolate(maps[None], size, mode="bilinear")[0]``, without its
    K x H x W tensor (14 GB for 32 categories on a photograph of 12,000 x 9,000 pixels).

    Args:
        maps: (K, h, w) float, on any device.
        size: (H, W) in pixels.
        extent: (rows, columns) of the grid that make up the picture, possibly fractional; default:
            all.
        band_rows: rows in a band; default: see :func:`rows_per_band`.

    Yields:
        the first row of the band, and the band (K, rows, W), float32 unless nothing is resized.
    """
    in_height, in_width = maps.shape[1:]
    height, width = size
    rows, columns = extent or (in_height, in_width)
    if band_rows is None:
        band_rows = rows_per_band(maps, width)
    if (in_height, in_width) == (height, width) == (rows, columns):
        for start in range(0, height, band_rows):
            yield start, maps[:, start : start + band_rows]
        return
    resize = RowResizer(size, (in_height, in_width), (rows, columns), maps.device)
    for start in range(0, height, band_rows):
        yield start, resize(maps, start, min(start + band_rows, height))


class RowResizer:
    """Bilinear enlargement of K maps to chosen rows of a picture, ``align_corners=False``."""

    def __init__(
        self,
        size: tuple[int, int],
        grid: tuple[int, int],
        extent: tuple[float, float],
        device: torch.device,
    ):
        """
        Args:
            size: (H, W) of the picture in pixels.
            grid: (h, w) of the maps.
            extent: (rows, columns) of the grid that make up the picture.
            device: of the maps.
        """
        self.size, self.grid = size, grid
        self._step = extent[0] / size[0]
        columns = _neighbours(0, size[1], extent[1] / size[1], grid[1])
        self._left, self._right, self._across = (x.to(device) for x in columns)

    def rows_within(self, grid_rows: int) -> int:
        """How many rows of the picture need none but the first `grid_rows` of the maps."""
        if grid_rows >= self.grid[0]:
            return self.size[0]
        below = _neighbours(0, self.size[0], self._step, self.grid[0])[1]
        return int((below < grid_rows).sum())

    def __call__(self, maps: Tensor, start: int, stop: int, first_row: int = 0) -> Tensor:
        """Rows start ... stop-1 of the picture, (K, stop - start, W) float32.

        Args:
            maps: (K, n, w), the rows first_row ... first_row+n-1 of the grid.
        """
        above, below, down = _neighbours(start, stop, self._step, self.grid[0])
        first, last = int(above[0]), int(below[-1])
        needed = maps[:, first - first_row : last + 1 - first_row].float()
        # Names innermost: what is gathered are then runs of K numbers, and so is what is compared
        # for the winner.
        needed = needed.permute(1, 2, 0).contiguous()
        wide = _blend(needed, 1, self._left, self._right, self._across[:, None])
        above, below, down = (x.to(maps.device) for x in (above - first, below - first, down))
        return _blend(wide, 0, above, below, down[:, None, None]).permute(2, 0, 1)


def _blend(values: Tensor, dim: int, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """What is at `first` and at `second` along `dim`, mixed by the weight of the second."""
    start = values.index_select(dim, first)
    return start.addcmul_(values.index_select(dim, second).sub_(start), weight)


def _neighbours(start: int, stop: int, step: float, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """The grid cells before and after the centres of pixels start ... stop-1 of `step` cells each,
    and the weight of the second."""
    centres = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * step - 0.5
    centres = centres.clamp(0, length - 1)
    before = centres.long()
    return before, (before + 1).clamp(max=length - 1), (centres - before).float()


def category_shares(label_map: np.ndarray, num_categories: int) -> np.ndarray:
    """Compute the share of the area that each category covers.

    Args:
        label_map: (H, W) category ids of any integer type; other values count as unlabelled.
        num_categories: C, the size of the vocabulary.

    Returns:
        np.ndarray: (C,) float64 in 0 ... 1; they add up to 1 if no pixel is unlabelled.
    """
    counts = np.zeros(num_categories, np.int64)
    rows = max(1, 4_000_000 // max(1, label_map.shape[1]))
    # In bands, because bincount makes a copy with eight bytes a pixel.
    for start in range(0, len(label_map), rows):
        band = label_map[start : start + rows].ravel()
        if band.dtype.kind != "u":
            band = band[band >= 0]
        counts += np.bincount(band, minlength=num_categories)[:num_categories]
    return counts / max(1, label_map.size)
