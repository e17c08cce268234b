"""The pixels of each category of a label map."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dcp_clip.utils.label_maps import category_shares
from dcp_clip.vocabulary import Vocabulary

__all__ = ["Region", "find_regions"]


@dataclass(frozen=True)
class Region:
    """All pixels of one category, not necessarily connected.

    Attributes:
        id: category id.
        name: display name.
        mask: (h, w) bool, the pixels in the bounding box.
        left, top: position of the bounding box in pixels.
        size: (H, W) of the label map.
        area: number of pixels.
        score: mean confidence of the pixels; None if it is not known.
    """

    id: int
    name: str
    mask: np.ndarray
    left: int
    top: int
    size: tuple[int, int]
    area: int
    score: float | None

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(left, top, width, height) in pixels."""
        return self.left, self.top, self.mask.shape[1], self.mask.shape[0]

    def full_mask(self) -> np.ndarray:
        """Return the (H, W) bool mask."""
        full = np.zeros(self.size, bool)
        height, width = self.mask.shape
        full[self.top : self.top + height, self.left : self.left + width] = self.mask
        return full


def find_regions(
    label_map: np.ndarray, vocabulary: Vocabulary, confidence: np.ndarray | None = None
) -> Iterator[Region]:
    """Yield the categories of a label map in the order of their ids, one at a time.

    Args:
        label_map: (H, W) ids; other values than 0 to C-1 belong to no category.
        vocabulary: C categories.
        confidence: (H, W), 0 to 1.
    """
    for i in np.flatnonzero(category_shares(label_map, len(vocabulary))).tolist():
        mask = label_map == i
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        mask = mask[box].copy()
        score = None
        if confidence is not None:
            score = round(float(confidence[box][mask].mean(dtype=np.float64)), 4)
        corner = int(columns[0]), int(rows[0])
        area = int(np.count_nonzero(mask))
        yield Region(i, vocabulary.display_names[i], mask, *corner, label_map.shape, area, score)
