"""Mean IoU from a confusion matrix, with the three formulas of published figures.

The formulas ("conventions") divide the sum of IoU by different numbers of categories. The results
differ if a category has no pixel in the ground truth. In PASCAL-Context 459 this is true for 114 of
459 categories, so the results differ by a factor of up to 1.33:

* "present": categories present in the ground truth, as in Detectron2 since July 2022 and here;
* "present_or_predicted": the same with predicted categories, as in release v0.6 of Detectron2.
  Later builds are also called "0.6", so the version does not tell which formula made a figure;
* "all": all categories. v0.6 gives this value if each category is predicted somewhere.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from detectron2.evaluation import SemSegEvaluator

__all__ = [
    "CONVENTIONS",
    "Scores",
    "count_pairs",
    "assign_majority_labels",
    "score",
    "silent_upstream",
]

# Text for reports.
CONVENTIONS = {
    "present": "classes present in the ground truth",
    "present_or_predicted": "classes present or predicted",
    "all": "classes of the whole list",
}


def count_pairs(prediction: np.ndarray, labels: np.ndarray, num_categories: int) -> np.ndarray:
    """Count how often each category was predicted for each label.

    Args:
        prediction: (H, W) ids 0 ... C; C means no category.
        labels: (H, W) ids 0 ... C; C means ignored.
        num_categories: C.

    Returns:
        (C + 1, C + 1) int64: rows are predictions, columns labels.
    """
    n = num_categories + 1
    pairs = n * prediction.reshape(-1).astype(np.int64) + labels.reshape(-1).astype(np.int64)
    return np.bincount(pairs, minlength=n * n).reshape(n, n)


def assign_majority_labels(pairs: np.ndarray) -> np.ndarray:
    """Replace the predictions of each label's pixels by the most frequent one (oracle masks).

    Args:
        pairs: (C + 1, C + 1) from :func:`count_pairs` for one image.

    Returns:
        The same shape. Of several most frequent predictions, the first one counts.
    """
    majority = np.zeros_like(pairs)
    majority[pairs.argmax(axis=0), np.arange(pairs.shape[1])] = pairs.sum(axis=0)
    return majority


@dataclass(frozen=True)
class Scores:
    """The IoU of a confusion matrix, from 0 to 1; NaN if the denominator is 0.

    Attributes:
        iou: (C,) intersection over union; NaN for categories that are not present.
        present: (C,) bool, whether the category has a pixel in the ground truth.
        present_or_predicted: (C,) bool, whether it is present or was predicted at a labelled
            pixel.
    """

    iou: np.ndarray
    present: np.ndarray
    present_or_predicted: np.ndarray

    def mean_iou(self, convention: str = "present") -> float:
        """Return mIoU by one of :data:`CONVENTIONS`."""
        return _ratio(np.nansum(self.iou), self.num_categories(convention))

    def group_mean_iou(self, member: np.ndarray) -> float:
        """Return the mean IoU over the categories of a group that are present.

        Args:
            member: (C,) bool. The predictions may still be of any category.
        """
        return _ratio(np.nansum(self.iou[member]), int(self.present[member].sum()))

    def num_categories(self, convention: str = "present") -> int:
        """Return the number of categories that :meth:`mean_iou` divides by."""
        counts = {
            "present": self.present.sum(),
            "present_or_predicted": self.present_or_predicted.sum(),
            "all": len(self.iou),
        }
        return int(counts[convention])


def score(matrix: np.ndarray) -> Scores:
    """Compute the IoU from a confusion matrix.

    Args:
        matrix: (C + 1, C + 1) from :func:`count_pairs`, summed over the images. The last column,
            predictions for ignored pixels, has no influence.
    """
    inner = matrix[:-1, :-1].astype(float)
    hit, labelled, predicted = inner.diagonal(), inner.sum(0), inner.sum(1)
    present = labelled > 0
    iou = np.full(len(inner), np.nan)
    iou[present] = hit[present] / (labelled + predicted - hit)[present]
    return Scores(iou, present, present | (predicted > 0))


@contextlib.contextmanager
def silent_upstream() -> Iterator[None]:
    """Disable the log of :class:`SemSegEvaluator`, which shows figures of its own formula."""
    upstream = logging.getLogger(SemSegEvaluator.__module__)
    disabled, upstream.disabled = upstream.disabled, True
    try:
        yield
    finally:
        upstream.disabled = disabled


def _ratio(total: float, count: int) -> float:
    return float(total) / count if count else float("nan")
