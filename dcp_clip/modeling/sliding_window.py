"""Sliding-window inference of large images, with bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.modeling.clip.encoder_windows import window_starts
from dcp_clip.structures import SemSegLabels
from dcp_clip.utils.upsampling import RowResizer, resized_bands, rows_per_band, winners

__all__ = ["SlidingWindow"]

_CELL = 4  # pixels: the logits of all windows are on one grid of this stride


class SlidingWindow:
    """Segments an image window by window, with the same K categories in all windows.

    Stage 1 chooses these categories on the whole image, reduced to the size of a window. Where
    windows overlap, their logits are averaged with weights that decrease towards the border of a
    window. Finished rows become labels immediately, so only one row of windows and the label map
    are in memory.
    """

    def __init__(self, size: int, stride: int):
        """
        Args:
            size: height and width of a window in pixels.
            stride: pixels from one window to the next.

        Raises:
            ValueError: if a value is not a multiple of 4 or leaves gaps; the message names the key.
        """
        node = "MODEL.DCP_CLIP.SLIDING_WINDOW"
        for key, value in (("SIZE", size), ("STRIDE", stride)):
            if value <= 0 or value % _CELL:
                raise ValueError(f"{node}.{key} is {value}; it must be a positive multiple of 4.")
        if stride > size:
            raise ValueError(
                f"{node}.STRIDE is {stride}, which leaves gaps between windows of {size} pixels."
            )
        self.size, self.stride = size, stride

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SlidingWindow | None:
        """Build it from the config; None if MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE is 0."""
        node = cfg.MODEL.DCP_CLIP.SLIDING_WINDOW
        if not node.SIZE:
            return None
        return cls(node.SIZE, node.STRIDE or max(_CELL, node.SIZE // 2 // _CELL * _CELL))

    def is_needed(self, image: Tensor) -> bool:
        """Return whether an image (3, H, W) is larger than a window."""
        return max(image.shape[-2:]) > self.size

    def views(self, image: Tensor) -> Iterator[Tensor]:
        """Yield what :meth:`segment` gives to its functions: the reduced image, then the windows.

        Args:
            image: (3, H, W).
        """
        yield self.reduce(image)
        lefts = self._starts(image.shape[2])
        for top, left in itertools.product(self._starts(image.shape[1]), lefts):
            yield self._crop(image, top, left)

    def _starts(self, side: int) -> list[int]:
        """The first pixels of the windows; whole cells, so that their logits are on one grid."""
        cells = -(-side // _CELL)
        starts = window_starts(cells, self.size // _CELL, self.stride // _CELL)
        return [_CELL * start for start in starts]

    def _crop(self, image: Tensor, top: int, left: int) -> Tensor:
        return image[:, top : top + self.size, left : left + self.size]

    def segment(
        self,
        image: Tensor,
        size: tuple[int, int],
        num_categories: int,
        propose: Callable[[Tensor], tuple[Tensor, Tensor]],
        segment: Callable[[Tensor, Tensor], tuple[Tensor, tuple[float, float]]],
        temperature: float | None = 1.0,
    ) -> tuple[SemSegLabels, Tensor, Tensor]:
        """Segment one image.

        Args:
            image: (3, H, W).
            size: (height, width) of the label map.
            num_categories: C.
            propose: maps an image (3, h, w) to the ids (K,) and scores (K,) of its categories.
            segment: maps a window (3, h, w) and ids (K,) to logits (K, h', w') and the (rows,
                columns) of their grid that the window covers.
            temperature: that of the confidence, see :func:`dcp_clip.utils.upsampling.winners`. With
                None, the labels have no confidence.

        Returns:
            The label map, the ids (K,) and the scores (K,).
        """
        height, width = image.shape[-2:]
        ids, scores = propose(self.reduce(image))
        grid = (-(-height // _CELL), -(-width // _CELL))
        extent = (height / _CELL, width / _CELL)
        writer = _LabelWriter(size, grid, extent, ids, num_categories, temperature)

        def of_window(top: int, left: int) -> tuple[Tensor, tuple[float, float]]:
            return segment(self._crop(image, top, left), ids)

        for rows in self._blended_rows((height, width), (0, 0, *grid), of_window, ids):
            writer.write(rows)
        labels = SemSegLabels(writer.label_map, ids, num_categories, writer.confidence)
        return labels, ids, scores

    def segment_region(
        self,
        size: tuple[int, int],
        region: tuple[int, int, int, int],
        ids: Tensor,
        num_categories: int,
        segment: Callable[[int, int, int, int], tuple[Tensor, tuple[float, float]] | None],
        temperature: float | None = 1.0,
    ) -> SemSegLabels:
        """Segment a part of an image that need not be in memory.

        The labels are those of the same part of the whole image, to the last bit. All windows that
        touch the region are segmented, so regions that are put together have no seam.

        Args:
            size: (H, W) of the whole image.
            region: (top, left, height, width) of the part in pixels. The numbers are multiples of
                4, except where the region ends with the image.
            ids: (K,) the categories of all windows.
            num_categories: C.
            segment: maps the (top, left, height, width) of a window to its logits (K, h', w') and
                the (rows, columns) of their grid that the window covers. None leaves the window
                out; a part that is in no window gets any label.
            temperature: see `segment`.
        """
        top, left, height, width = region
        # The labels at the border depend on the next cell too.
        first = max(top - _CELL, 0), max(left - _CELL, 0)
        last = min(top + height + _CELL, size[0]), min(left + width + _CELL, size[1])
        cells = *(x // _CELL for x in first), *(-(-x // _CELL) for x in last)
        part = (last[0] - first[0], last[1] - first[1])
        grid = cells[2] - cells[0], cells[3] - cells[1]
        extent = (part[0] / _CELL, part[1] / _CELL)
        writer = _LabelWriter(part, grid, extent, ids, num_categories, temperature)

        def of_window(top: int, left: int) -> tuple[Tensor, tuple[float, float]] | None:
            sides = (min(self.size, size[0] - top), min(self.size, size[1] - left))
            return segment(top, left, *sides)

        for rows in self._blended_rows(size, cells, of_window, ids):
            writer.write(rows)
        inside = np.s_[top - first[0] :, left - first[1] :]
        label_map, confidence = (
            None if array is None else array[inside][:height, :width]
            for array in (writer.label_map, writer.confidence)
        )
        return SemSegLabels(label_map, ids, num_categories, confidence)

    def _blended_rows(
        self,
        size: tuple[int, int],
        cells: tuple[int, int, int, int],
        segment: Callable[[int, int], tuple[Tensor, tuple[float, float]] | None],
        ids: Tensor,
    ) -> Iterator[Tensor]:
        """Yield the blended logits (K, n, columns) of a part of the grid, from top to bottom.

        Args:
            size: (H, W) of the whole image in pixels.
            cells: (top, left, bottom, right) of the part of the grid.
            segment: maps the (top, left) of a window to its logits, or None.
            ids: (K,) the categories.
        """
        top, left, bottom, right = cells
        length = self.size // _CELL
        tops = [y for y in self._starts(size[0]) if top - length < y // _CELL < bottom]
        lefts = [x for x in self._starts(size[1]) if left - length < x // _CELL < right]
        total = torch.zeros(len(ids), 0, right - left, device=ids.device)
        weight = total.new_zeros(0, right - left)
        done = top  # rows of cells that no later window covers
        for y, next_y in zip(tops, [*tops[1:], None]):
            height = min(self.size, size[0] - y)
            last = min(y // _CELL - (-height // _CELL), bottom)
            more = max(last - done - total.shape[1], 0)
            total, weight = F.pad(total, (0, 0, 0, more)), F.pad(weight, (0, 0, 0, more))
            for x in lefts:
                answer = segment(y, x)
                if answer is None:
                    continue
                sides = (height, min(self.size, size[1] - x))
                logits = resize_to_grid(*answer, sides)
                weights = window_weights(*logits.shape[-2:], logits.device)
                y0, x0 = y // _CELL, x // _CELL
                rows = max(y0, done), last
                columns = max(x0, left), min(x0 + logits.shape[2], right)
                source = np.s_[..., rows[0] - y0 : rows[1] - y0, columns[0] - x0 : columns[1] - x0]
                place = np.s_[
                    ..., rows[0] - done : rows[1] - done, columns[0] - left : columns[1] - left
                ]
                total[place] += (logits * weights)[source]
                weight[place] += weights[source]
            finished = bottom if next_y is None else max(next_y // _CELL, done)
            count = finished - done
            if count:
                yield total[:, :count] / weight[:count].clamp(min=1e-12)
                # Copied: a slice would keep the memory of the finished rows.
                total, weight = total[:, count:].clone(), weight[count:].clone()
                done = finished

    def reduce(self, image: Tensor) -> Tensor:
        """Return the whole image (3, H, W) at the size of a window."""
        factor = self.size / max(image.shape[-2:])
        size = [max(1, round(side * factor)) for side in image.shape[-2:]]
        # On the CPU, bytes are resized as bytes: there is no float copy of a large image.
        return F.interpolate(image[None].cpu(), size, mode="bilinear", antialias=True)[0]


def resize_to_grid(
    logits: Tensor, extent: tuple[float, float], window_size: tuple[int, int]
) -> Tensor:
    """Resize the logits of a window (K, h, w) to the grid of cells that all windows share."""
    cells = [-(-side // _CELL) for side in window_size]
    # The cells can extend beyond the window: those of 6 pixels cover 8.
    extent = [e * n * _CELL / side for e, n, side in zip(extent, cells, window_size)]
    return torch.cat([band for _, band in resized_bands(logits.float(), cells, extent)], dim=1)


def window_weights(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return the weights (rows, columns) of a window: largest in the middle, never zero."""

    def ramp(n: int) -> Tensor:
        position = torch.arange(n, device=device, dtype=torch.float32)
        return torch.minimum(position + 1, n - position) / n

    return ramp(rows)[:, None] * ramp(columns)


class _LabelWriter:
    """Turns finished rows of logits into rows of a label map and of its confidence, if wanted."""

    def __init__(
        self,
        size: tuple[int, int],
        grid: tuple[int, int],
        extent: tuple[float, float],
        ids: Tensor,
        num_categories: int,
        temperature: float | None,
    ):
        self.label_map = np.empty(size, np.min_scalar_type(num_categories - 1))
        self.confidence = None if temperature is None else np.empty(size, np.float16)
        self._temperature = temperature
        self._ids = ids.cpu().numpy().astype(self.label_map.dtype)
        self._resize = RowResizer(size, grid, extent, ids.device)
        self._logits = torch.zeros(len(ids), 0, grid[1], device=ids.device)
        self._first = 0  # the grid row that _logits begins with
        self._written = 0

    def write(self, logits: Tensor) -> None:
        """Add the next rows of logits (K, n, columns), and label the rows of pixels in them."""
        logits = torch.cat([self._logits, logits], dim=1)
        end = self._resize.rows_within(self._first + logits.shape[1])
        band = rows_per_band(logits, self.label_map.shape[1])
        for start in range(self._written, end, band):
            stop = min(start + band, end)
            pixels = self._resize(logits, start, stop, self._first)
            best, probability = winners(pixels, self._temperature)
            self.label_map[start:stop] = self._ids[best]
            if self.confidence is not None:
                self.confidence[start:stop] = probability
        self._written = end
        # The next row of pixels still needs the last row of cells.
        self._first += logits.shape[1] - 1
        self._logits = logits[:, -1:].clone()
