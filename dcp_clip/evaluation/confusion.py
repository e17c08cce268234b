"""Scores of a confusion matrix, under each of the conventions that published figures follow.

They differ in what the sum of the categories' IoU is divided by, which matters where a category has
no pixel in the ground truth (PASCAL-Context 459: 114 of 459 have none, a factor of 1.33):

* the categories *present* in the ground truth: Detectron2 since July 2022, and this project;
* those *seen*, present or predicted: the release v0.6 of Detectron2. It calls itself "0.6" as its
  successors do, so that the version does not tell which formula made a figure;
* *all* categories: what v0.6 comes to when each of them is predicted somewhere.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

__all__ = [
    "CONVENTIONS",
    "Scores",
    "count_pairs",
    "assign_majority_labels",
    "probe_detectron2",
    "score",
    "silent_upstream",
]

# What the sum of IoU is divided by, in words for reports.
CONVENTIONS = {
    "present": "classes present in the ground truth",
    "seen": "classes present or predicted",
    "all": "classes of the whole list",
}


def count_pairs(prediction: np.ndarray, labels: np.ndarray, num_categories: int) -> np.ndarray:
    """Count how often each category was predicted for each label.

    Args:
        prediction: (H, W) ids 0 ... C; C stands for "none".
        labels: (H, W) ids 0 ... C; C stands for void.
        num_categories: C.

    Returns:
        (C + 1, C + 1) int64: rows are predictions, columns labels.
    """
    n = num_categories + 1
    pairs = n * prediction.reshape(-1).astype(np.int64) + labels.reshape(-1).astype(np.int64)
    return np.bincount(pairs, minlength=n * n).reshape(n, n)


def assign_majority_labels(pairs: np.ndarray) -> np.ndarray:
    """What :func:`count_pairs` would count, had each mask of the ground truth one name throughout.

    Args:
        pairs: (C + 1, C + 1) of one image: rows are predictions, columns labels.

    Returns:
        the same shape: all pixels of a label go to the prediction that most of them had (the first
        of several as frequent).
    """
    named = np.zeros_like(pairs)
    named[pairs.argmax(axis=0), np.arange(pairs.shape[1])] = pairs.sum(axis=0)
    return named


@dataclass(frozen=True)
class Scores:
    """What a confusion matrix says. Shares from 0 to 1, NaN where there is nothing to divide by.

    Attributes:
        iou: (C,) intersection over union, NaN for categories that are not present.
        accuracy: (C,) share of a category's pixels that were found, NaN likewise.
        frequency: (C,) share of the labelled pixels.
        present: (C,) bool, the category has a pixel in the ground truth.
        seen: (C,) bool, it has one there or was predicted for a labelled pixel.
    """

    iou: np.ndarray
    accuracy: np.ndarray
    frequency: np.ndarray
    present: np.ndarray
    seen: np.ndarray

    def mean_iou(self, convention: str = "present") -> float:
        """The sum of IoU, divided as one of :data:`CONVENTIONS` says."""
        return _ratio(np.nansum(self.iou), self.num_categories(convention))

    def group_mean_iou(self, member: np.ndarray) -> float:
        """Mean IoU over some of the categories, those of them that are present.

        Args:
            member: (C,) bool. All categories are still what the predictions chose from.
        """
        return _ratio(np.nansum(self.iou[member]), int(self.present[member].sum()))

    def num_categories(self, convention: str = "present") -> int:
        """What :meth:`mean_iou` divides by."""
        counts = {"present": self.present.sum(), "seen": self.seen.sum(), "all": len(self.iou)}
        return int(counts[convention])

    @property
    def frequency_weighted_iou(self) -> float:
        return self._weighted(self.iou)

    @property
    def pixel_accuracy(self) -> float:
        return self._weighted(self.accuracy)

    @property
    def mean_accuracy(self) -> float:
        return _ratio(np.nansum(self.accuracy), self.num_categories())

    def _weighted(self, values: np.ndarray) -> float:
        return float(np.nansum(values * self.frequency)) if self.present.any() else float("nan")


def score(matrix: np.ndarray) -> Scores:
    """Read a confusion matrix.

    Args:
        matrix: (C + 1, C + 1) of :func:`count_pairs`, summed over the images. What was predicted
            under void, the last column, counts for nothing.
    """
    inner = matrix[:-1, :-1].astype(float)
    hit, labelled, predicted = inner.diagonal(), inner.sum(0), inner.sum(1)
    present = labelled > 0
    iou, accuracy = np.full((2, len(inner)), np.nan)
    iou[present] = hit[present] / (labelled + predicted - hit)[present]
    accuracy[present] = hit[present] / labelled[present]
    frequency = labelled / max(labelled.sum(), 1.0)
    return Scores(iou, accuracy, frequency, present, present | (predicted > 0))


def probe_detectron2() -> str | None:
    """Which convention the installed :class:`SemSegEvaluator` follows, seen on four pixels.

    The label map is a file, as not all builds take a function that loads it.

    Returns:
        a key of :data:`CONVENTIONS`, or None for a formula that is none of them or an evaluator
        that is used otherwise.
    """
    labels, prediction = np.array([[0, 0, 1, 1]], np.uint8), torch.tensor([[0, 0, 1, 2]])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.png"
        Image.fromarray(labels).save(path)
        try:
            found = _evaluate_upstream(path, torch.nn.functional.one_hot(prediction, 4))
        except (AttributeError, KeyError, TypeError):
            return None
    scores = score(count_pairs(prediction.numpy(), labels, 4))
    return next((c for c in CONVENTIONS if np.isclose(found, scores.mean_iou(c))), None)


def _evaluate_upstream(label_file: Path, prediction: torch.Tensor) -> float:
    """mIoU from 0 to 1 of one image, (H, W, C), by Detectron2; its log and its catalogs are left as
    they were."""
    name, file_name = "dcp_clip_probe_of_the_evaluator", "0"
    record = {"file_name": file_name, "sem_seg_file_name": str(label_file)}
    DatasetCatalog.register(name, lambda: [record])
    classes = [str(i) for i in range(prediction.shape[-1])]
    MetadataCatalog.get(name).set(stuff_classes=classes, ignore_label=255)
    try:
        with silent_upstream():
            evaluator = SemSegEvaluator(name, distributed=False)
            evaluator.reset()
            evaluator.process(
                [{"file_name": file_name}], [{"sem_seg": prediction.permute(2, 0, 1)}]
            )
            return evaluator.evaluate()["sem_seg"]["mIoU"] / 100
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


@contextlib.contextmanager
def silent_upstream() -> Iterator[None]:
    """Without what :class:`SemSegEvaluator` logs, which is the figures of its own formula."""
    upstream = logging.getLogger(SemSegEvaluator.__module__)
    disabled, upstream.disabled = upstream.disabled, True
    try:
        yield
    finally:
        upstream.disabled = disabled


def _ratio(total: float, count: int) -> float:
    return float(total) / count if count else float("nan")
