"""Evaluation of large photographs in overlapping windows, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from ..label_map import RowResizer, resized_bands, rows_per_band
from ..structures import SemSegLabels, output_size
from ..vocabulary import Vocabulary
from .windows import window_starts

if TYPE_CHECKING:
    from .segmentor import OpenVocabularySegmentor

__all__ = ["SlidingWindow"]

_CELL = 4  # pixels: the windows' maps meet on a grid of this stride


class SlidingWindow:
    """Segments an image window by window, into the categories that the whole image proposes.

    The whole image, reduced to the size of a window, chooses the K categories, so that all windows
    speak of the same ones. Where windows overlap their logits are averaged, with weights that fall
    off towards a window's border. Finished rows become labels at once: what is kept in memory is
    one row of windows, and the label map.
    """

    def __init__(self, size: int, stride: int):
        """
        Args:
            size: pixels, height and width of a window.
            stride: pixels from one window to the next.

        Raises:
            ValueError: naming the key, when a value is no multiple of 4 or leaves gaps.
        """
        node = "MODEL.DCP_CLIP.SLIDING_WINDOW"
        for key, value in (("SIZE", size), ("STRIDE", stride)):
            if value <= 0 or value % _CELL:
                raise ValueError(f"{node}.{key} is {value}; it must be a positive multiple of 4.")
        if stride > size:
            raise ValueError(f"{node}.STRIDE is {stride}, which leaves gaps between {size} pixels.")
        self.size, self.stride = size, stride
        self._in_cells = size // _CELL, stride // _CELL

    @classmethod
    def from_config(cls, cfg: CfgNode) -> SlidingWindow | None:
        """None when MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE is 0."""
        node = cfg.MODEL.DCP_CLIP.SLIDING_WINDOW
        if not node.SIZE:
            return None
        return cls(node.SIZE, node.STRIDE or node.SIZE // 2 // _CELL * _CELL)

    def is_needed(self, image: Tensor) -> bool:
        """Whether an image (3, H, W) is larger than a window."""
        return max(image.shape[-2:]) > self.size

    def segment(
        self, model: OpenVocabularySegmentor, inputs: dict, vocabulary: Vocabulary
    ) -> dict[str, SemSegLabels | dict]:
        """The model's output for one image: "sem_seg" (:class:`SemSegLabels`) and "proposals"."""
        image = inputs["image"]
        height, width = image.shape[-2:]
        ids, scores = self._propose(model, inputs, vocabulary)
        rows, columns = -(-height // _CELL), -(-width // _CELL)
        writer = _LabelWriter(
            output_size(inputs),
            (rows, columns),
            (height / _CELL, width / _CELL),
            ids,
            len(vocabulary),
        )
        # On whole cells, so that the windows' maps meet.
        tops, lefts = (
            [_CELL * start for start in window_starts(cells, *self._in_cells)]
            for cells in (rows, columns)
        )
        total = torch.zeros(len(ids), 0, columns, device=model.device)
        weight = total.new_zeros(0, columns)
        done = 0  # rows of cells that no later window reaches
        for top, next_top in zip(tops, [*tops[1:], None]):
            bottom = -(-min(top + self.size, height) // _CELL)
            more = bottom - done - total.shape[1]
            total, weight = F.pad(total, (0, 0, 0, more)), F.pad(weight, (0, 0, 0, more))
            for left in lefts:
                window = image[:, top : top + self.size, left : left + self.size]
                maps, extent, _ = model.segment_images([window], vocabulary, ids=ids[None])
                maps = _on_cells(maps[0], window.shape[-2:], extent)
                importance = _importance(*maps.shape[-2:], maps.device)
                x = left // _CELL
                place = np.s_[..., top // _CELL - done : bottom - done, x : x + maps.shape[2]]
                total[place] += maps * importance
                weight[place] += importance
            finished = rows if next_top is None else next_top // _CELL
            count = finished - done
            writer.write(total[:, :count] / weight[:count])
            # Copied: a slice would keep the whole of what is finished alive.
            total, weight = total[:, count:].clone(), weight[count:].clone()
            done = finished
        return {
            "sem_seg": SemSegLabels(writer.label_map, ids, len(vocabulary)),
            "proposals": {"ids": ids, "scores": scores},
        }

    def _propose(
        self, model: OpenVocabularySegmentor, inputs: dict, vocabulary: Vocabulary
    ) -> tuple[Tensor, Tensor]:
        """(K,) ids and scores that the whole image, reduced to a window, proposes."""
        image = inputs["image"]
        factor = self.size / max(image.shape[-2:])
        size = [max(1, round(side * factor)) for side in image.shape[-2:]]
        # On the CPU bytes are resized as bytes: no float copy of a large photograph.
        small = F.interpolate(image[None].cpu(), size, mode="bilinear", antialias=True)[0]
        labels = model.labels_of(inputs, vocabulary)[None] if "sem_seg" in inputs else None
        _, _, proposals = model.segment_images([small], vocabulary, labels)
        keep = proposals.valid[0]
        return proposals.ids[0][keep], proposals.scores[0][keep]


def _on_cells(maps: Tensor, size: tuple[int, int], extent: tuple[float, float]) -> Tensor:
    """A window's maps (K, h, w) on the grid of cells that all windows share."""
    cells = [-(-side // _CELL) for side in size]
    # The cells reach beyond a window of, say, 6 pixels: as far as 8.
    extent = [e * n * _CELL / side for e, n, side in zip(extent, cells, size)]
    return torch.cat([band for _, band in resized_bands(maps.float(), cells, extent)], dim=1)


def _importance(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows, columns) weight of a window's cells: highest in the middle, never zero."""

    def ramp(n: int) -> Tensor:
        position = torch.arange(n, device=device, dtype=torch.float32)
        return torch.minimum(position + 1, n - position) / n

    return ramp(rows)[:, None] * ramp(columns)


class _LabelWriter:
    """Turns finished rows of cells into rows of a label map."""

    def __init__(
        self,
        size: tuple[int, int],
        grid: tuple[int, int],
        extent: tuple[float, float],
        ids: Tensor,
        num_categories: int,
    ):
        self.label_map = np.empty(size, np.min_scalar_type(num_categories - 1))
        self._ids = ids.cpu().numpy().astype(self.label_map.dtype)
        self._resize = RowResizer(size, grid, extent, ids.device)
        self._maps = torch.zeros(len(ids), 0, grid[1], device=ids.device)
        self._first = 0  # the grid row that _maps begins with
        self._written = 0

    def write(self, maps: Tensor) -> None:
        """Take the next rows of cells, (K, n, columns), and label what they complete."""
        maps = torch.cat([self._maps, maps], dim=1)
        end = self._resize.rows_within(self._first + maps.shape[1])
        band = rows_per_band(maps, self.label_map.shape[1])
        for start in range(self._written, end, band):
            stop = min(start + band, end)
            best = self._resize(maps, start, stop, self._first).argmax(dim=0)
            self.label_map[start:stop] = self._ids[best.cpu().numpy()]
        self._written = end
        # The next row of pixels still needs the last row of cells.
        self._first += maps.shape[1] - 1
        self._maps = maps[:, -1:].clone()
