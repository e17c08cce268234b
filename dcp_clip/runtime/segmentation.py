"""Logits to labels: upsampling to pixels in bands of rows, and sliding windows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
from PIL import Image

from dcp_clip.runtime.sessions import Program

__all__ = ["Segmentation", "blend_windows", "window_views"]

_CELL = 4  # pixels: the logits of all windows are on one grid of this stride
_LOGITS_PER_BAND = 8_000_000


class Segmentation:
    """The logits of the proposed categories of one image, and what follows from them.

    Attributes:
        maps: (K, h, w) float32 logits on the model's grid.
        category_ids: (K,) int64, the category of each map.
        num_categories: C, the size of the vocabulary.
        image_size: (H, W) of the label map in pixels.
        extent: (rows, columns) of the grid that the image covers; the rest is padding.
    """

    def __init__(
        self,
        program: Program,
        maps: np.ndarray,
        category_ids: np.ndarray,
        num_categories: int,
        image_size: tuple[int, int],
        extent: tuple[float, float],
        temperature: float,
    ):
        """
        Args:
            program: labels.onnx.
            temperature: of the confidence.
        """
        self._program, self._temperature = program, np.array(temperature, np.float32)
        self.maps, self.category_ids, self.num_categories = maps, category_ids, num_categories
        self.image_size, self.extent = image_size, extent

    def label_map(self) -> np.ndarray:
        """Return the category of each pixel.

        Returns:
            (H, W) array of the smallest unsigned integer type that can store C ids.
        """
        return self._results[0]

    def confidence(self) -> np.ndarray:
        """Return the probability that the label of each pixel is right, (H, W) float16, 0 to 1."""
        return self._results[1]

    @cached_property
    def _results(self) -> tuple[np.ndarray, np.ndarray]:
        height, width = self.image_size
        ids = self.category_ids.astype(np.min_scalar_type(self.num_categories - 1))
        labels = np.empty(self.image_size, ids.dtype)
        confidence = np.empty(self.image_size, np.float16)
        columns = _neighbours(0, width, self.extent[1] / width, self.maps.shape[2])
        inputs = dict(zip(("left", "right", "across"), columns, strict=True))
        inputs["temperature"] = self._temperature
        band = max(1, _LOGITS_PER_BAND // (len(ids) * width))
        for start in range(0, height, band):
            stop = min(start + band, height)
            rows = _neighbours(start, stop, self.extent[0] / height, self.maps.shape[1])
            inputs |= dict(zip(("above", "below", "down"), rows, strict=True))
            # Only the cells that the band needs.
            first, last = rows[0][0], rows[1][-1] + 1
            inputs |= {"above": rows[0] - first, "below": rows[1] - first}
            inputs["logits"] = np.ascontiguousarray(self.maps[:, first:last])
            positions, probability = self._program(inputs, ["positions", "confidence"])
            labels[start:stop], confidence[start:stop] = ids[positions], probability
        return labels, confidence


def _neighbours(
    start: int, stop: int, step: float, length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the cells before and after each pixel centre, and the weight of the second."""
    centres = ((np.arange(start, stop) + 0.5) * step - 0.5).clip(0, length - 1)
    before = centres.astype(np.int64)
    return before, np.minimum(before + 1, length - 1), (centres - before).astype(np.float32)


def window_views(image: np.ndarray, size: int, stride: int) -> Iterator[np.ndarray]:
    """Yield the image (H, W, 3) reduced to the size of a window, and then each window.

    Args:
        image: uint8, larger than a window.
        size: height and width of a window in pixels, a multiple of 4.
        stride: pixels from one window to the next, a multiple of 4.
    """
    height, width = image.shape[:2]
    factor = size / max(height, width)
    reduced = (max(1, round(width * factor)), max(1, round(height * factor)))
    yield np.asarray(Image.fromarray(image).resize(reduced, Image.Resampling.BILINEAR))
    for y, x in _window_cells((height, width), size, stride):
        window = image[_CELL * y : _CELL * y + size, _CELL * x : _CELL * x + size]
        yield np.ascontiguousarray(window)


def blend_windows(
    windows: Iterable[tuple[np.ndarray, tuple[float, float]]],
    image_size: tuple[int, int],
    size: int,
    stride: int,
) -> tuple[np.ndarray, tuple[float, float]]:
    """Blend the logits of all windows, as :class:`dcp_clip.modeling.sliding_window.SlidingWindow`.

    The logits of the whole image are in memory: K values for 4 x 4 pixels.

    Args:
        windows: for each window of :func:`window_views` the logits (K, h, w), and the (rows,
            columns) of their grid that the window covers.
        image_size: (H, W) in pixels.
        size, stride: see :func:`window_views`.

    Returns:
        the logits (K, rows, columns) of the image, and the (rows, columns) that it covers.
    """
    height, width = image_size
    rows, columns = -(-height // _CELL), -(-width // _CELL)
    total, weight = None, np.zeros((rows, columns), np.float32)
    cells = _window_cells(image_size, size, stride)
    for (y, x), (logits, extent) in zip(cells, windows, strict=True):
        logits = _resize_to_grid(
            logits, extent, (min(size, height - _CELL * y), min(size, width - _CELL * x))
        )
        weights = _ramp(logits.shape[1])[:, None] * _ramp(logits.shape[2])
        if total is None:
            total = np.zeros((len(logits), rows, columns), np.float32)
        place = np.s_[..., y : y + logits.shape[1], x : x + logits.shape[2]]
        total[place] += logits * weights
        weight[place] += weights
    total /= weight
    return total, (height / _CELL, width / _CELL)


def _window_cells(image_size: tuple[int, int], size: int, stride: int) -> Iterator[tuple[int, int]]:
    """Yield the first (row, column) of cells of each window."""
    starts = [_starts(-(-side // _CELL), size // _CELL, stride // _CELL) for side in image_size]
    return itertools.product(*starts)


def _starts(length: int, window: int, stride: int) -> list[int]:
    """The first cells of the windows; the last window ends where the image ends."""
    if length <= window:
        return [0]
    return [*range(0, length - window, stride), length - window]


def _resize_to_grid(
    logits: np.ndarray, extent: tuple[float, float], window_size: tuple[int, int]
) -> np.ndarray:
    """The logits of a window (K, h, w) on the grid of cells that all windows share."""
    cells = [-(-side // _CELL) for side in window_size]
    # The cells can extend beyond the window: those of 6 pixels cover 8.
    steps = [e * _CELL / side for e, side in zip(extent, window_size, strict=True)]
    for axis, (count, step) in enumerate(zip(cells, steps, strict=True), start=1):
        before, after, share = _neighbours(0, count, step, logits.shape[axis])
        if step == 1 and count == logits.shape[axis]:
            continue
        share = share[:, None] if axis == 1 else share
        start = logits.take(before, axis)
        logits = start + (logits.take(after, axis) - start) * share
    return logits


def _ramp(n: int) -> np.ndarray:
    """(n,) weights: largest in the middle of a window, never zero."""
    position = np.arange(n, dtype=np.float32)
    return np.minimum(position + 1, n - position) / n
