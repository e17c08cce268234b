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
        return cls(node.SIZE, node.STRIDE or node.SIZE // 2 // _CELL * _CELL)

    def is_needed(self, image: Tensor) -> bool:
        """Return whether an image (3, H, W) is larger than a window."""
        return max(image.shape[-2:]) > self.size

    def views(self, image: Tensor) -> Iterator[Tensor]:
        """Yield what :meth:`segment` gives to its functions: the reduced image, then the windows.

        Args:
            image: (3, H, W).
        """
        yield self._reduce(image)
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
        temperature: float = 1.0,
    ) -> tuple[SemSegLabels, Tensor, Tensor]:
        """Segment one image.

        Args:
            image: (3, H, W).
            size: (height, width) of the label map.
            num_categories: C.
            propose: maps an image (3, h, w) to the ids (K,) and scores (K,) of its categories.
            segment: maps a window (3, h, w) and ids (K,) to logits (K, h', w') and the (rows,
                columns) of their grid that the window covers.
            temperature: that of the confidence, see :func:`dcp_clip.utils.upsampling.winners`.

        Returns:
            The label map, the ids (K,) and the scores (K,).
        """
        height, width = image.shape[-2:]
        ids, scores = propose(self._reduce(image))
        rows, columns = -(-height // _CELL), -(-width // _CELL)
        extent = (height / _CELL, width / _CELL)
        writer = _LabelWriter(size, (rows, columns), extent, ids, num_categories, temperature)
        tops, lefts = self._starts(height), self._starts(width)
        total = torch.zeros(len(ids), 0, columns, device=ids.device)
        weight = total.new_zeros(0, columns)
        done = 0  # rows of cells that no later window covers
        for top, next_top in zip(tops, [*tops[1:], None]):
            bottom = -(-min(top + self.size, height) // _CELL)
            more = bottom - done - total.shape[1]
            total, weight = F.pad(total, (0, 0, 0, more)), F.pad(weight, (0, 0, 0, more))
            for left in lefts:
                window = self._crop(image, top, left)
                logits = resize_to_grid(*segment(window, ids), window.shape[-2:])
                weights = window_weights(*logits.shape[-2:], logits.device)
                x = left // _CELL
                place = np.s_[..., top // _CELL - done : bottom - done, x : x + logits.shape[2]]
                total[place] += logits * weights
                weight[place] += weights
            finished = rows if next_top is None else next_top // _CELL
            count = finished - done
            writer.write(total[:, :count] / weight[:count])
            # Copied: a slice would keep the memory of the finished rows.
            total, weight = total[:, count:].clone(), weight[count:].clone()
            done = finished
        labels = SemSegLabels(writer.label_map, ids, num_categories, writer.confidence)
        return labels, ids, scores

    def _reduce(self, image: Tensor) -> Tensor:
        """The whole image (3, H, W) at the size of a window."""
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
    """Turns finished rows of logits into rows of a label map and of its confidence."""

    def __init__(
        self,
        size: tuple[int, int],
        grid: tuple[int, int],
        extent: tuple[float, float],
        ids: Tensor,
        num_categories: int,
        temperature: float,
    ):
        self.label_map = np.empty(size, np.min_scalar_type(num_categories - 1))
        self.confidence = np.empty(size, np.float16)
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
            best, self.confidence[start:stop] = winners(pixels, self._temperature)
            self.label_map[start:stop] = self._ids[best]
        self._written = end
        # The next row of pixels still needs the last row of cells.
        self._first += logits.shape[1] - 1
        self._logits = logits[:, -1:].clone()
