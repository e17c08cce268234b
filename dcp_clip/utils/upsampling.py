"""Upsample logits to pixels in bounded memory, one band of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["RowResizer", "resized_bands", "rows_per_band", "winners"]


def rows_per_band(maps: Tensor, width: int) -> int:
    """Return the number of rows in a band of K maps with this width in pixels.

    A band fits into the cache of a CPU, or is large enough to use a GPU well.
    """
    logits = 64_000_000 if maps.is_cuda else 600_000
    return max(1, logits // (len(maps) * width))


def resized_bands(
    maps: Tensor,
    size: tuple[int, int],
    extent: tuple[float, float] | None = None,
    band_rows: int | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Upsample maps bilinearly, one band of rows at a time.

    The concatenated bands equal ``F.interpolate(maps[None], size, mode="bilinear")[0]``. But the
    K x H x W tensor is never in memory: it takes 14 GB for 32 categories and 12,000 x 9,000 pixels.

    Args:
        maps: (K, h, w) float, on any device.
        size: (H, W) in pixels.
        extent: (rows, columns) of the grid that the image covers, possibly fractional; default: the
            whole grid.
        band_rows: rows in a band; default: :func:`rows_per_band`.

    Yields:
        the first row of the band; the band (K, rows, W), float32 unless the size is unchanged.
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
    """Bilinear upsampling of K maps to selected rows of an image, with ``align_corners=False``."""

    def __init__(
        self,
        size: tuple[int, int],
        grid: tuple[int, int],
        extent: tuple[float, float],
        device: torch.device,
    ):
        """
        Args:
            size: (H, W) of the image in pixels.
            grid: (h, w) of the maps.
            extent: (rows, columns) of the grid that the image covers.
            device: device of the maps.
        """
        self.size, self.grid = size, grid
        self._step = extent[0] / size[0]
        columns = _neighbours(0, size[1], extent[1] / size[1], grid[1])
        self._left, self._right, self._right_weight = (x.to(device) for x in columns)

    def rows_within(self, grid_rows: int) -> int:
        """Return how many rows of the image depend only on the first `grid_rows` of the maps."""
        if grid_rows >= self.grid[0]:
            return self.size[0]
        below = _neighbours(0, self.size[0], self._step, self.grid[0])[1]
        return int((below < grid_rows).sum())

    def __call__(self, maps: Tensor, start: int, stop: int, first_row: int = 0) -> Tensor:
        """Return the rows `start` to `stop` - 1 of the image, (K, stop - start, W) float32.

        Args:
            maps: (K, n, w), the rows `first_row` to `first_row` + n - 1 of the grid.
            start: first row of the image.
            stop: row after the last row.
            first_row: row of the grid where `maps` begins.
        """
        above, below, below_weight = _neighbours(start, stop, self._step, self.grid[0])
        first, last = int(above[0]), int(below[-1])
        source = maps[:, first - first_row : last + 1 - first_row].float()
        # Categories last: index_select, and the argmax of the result, then read contiguous memory.
        source = source.permute(1, 2, 0).contiguous()
        upsampled = _blend(source, 1, self._left, self._right, self._right_weight[:, None])
        above, below, below_weight = (
            x.to(maps.device) for x in (above - first, below - first, below_weight)
        )
        return _blend(upsampled, 0, above, below, below_weight[:, None, None]).permute(2, 0, 1)


def _blend(values: Tensor, dim: int, first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Interpolate between the values at `first` and `second` along `dim`; 0 means `first`."""
    start = values.index_select(dim, first)
    return start.addcmul_(values.index_select(dim, second).sub_(start), weight)


def _neighbours(start: int, stop: int, step: float, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the grid cells before and after each pixel centre, and the weight of the second.

    The pixels are `start` to `stop` - 1; each is `step` cells long.
    """
    centres = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * step - 0.5
    centres = centres.clamp(0, length - 1)
    before = centres.long()
    return before, (before + 1).clamp(max=length - 1), (centres - before).float()


def winners(logits: Tensor, temperature: float | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the best category of each pixel, and the probability that it is right.

    Args:
        logits: (K, H, W).
        temperature: the probability is the largest value of the softmax of ``logits / temperature``
            (temperature scaling, arXiv 1706.04599); None computes no probability.

    Returns:
        (H, W) int64 positions in the K categories; (H, W) float16 probability, or None.
    """
    if temperature is None:
        if logits.device.type == "cpu" and logits.dtype == torch.float32:
            return logits.detach().numpy().argmax(0), None  # faster than PyTorch's, and equal
        return logits.argmax(dim=0).cpu().numpy(), None
    best, positions = logits.max(dim=0)
    total = ((logits - best) / temperature).exp_().sum(dim=0)
    return positions.cpu().numpy(), total.reciprocal_().half().cpu().numpy()
