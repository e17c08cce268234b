"""Calibration: how often labels with a given confidence are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from dcp_clip.data.catalog import ignored_label
from dcp_clip.evaluation.mean_iou import read_checked_labels

__all__ = [
    "CalibrationEvaluator",
    "PixelSamples",
    "fit_temperature",
    "label_confidence",
    "reliability",
]

_BINS = 15


@dataclass(frozen=True)
class PixelSamples:
    """N labelled pixels of a data set, with what the model computed for them.

    Attributes:
        logits: (N, K) logits of the proposals; minus infinity where an image has fewer.
        predicted: (N,) predicted categories.
        labels: (N,) true categories.
        images: (N,) number of the image, in the order of the evaluation.
        scores: (N,) score of the predicted category in stage 1.
        presence: (N,) probability by stage 5 that the predicted category is in the image; NaN
            without stage 5.
    """

    logits: np.ndarray
    predicted: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    scores: np.ndarray
    presence: np.ndarray

    @classmethod
    def join(cls, parts: Sequence[PixelSamples]) -> PixelSamples:
        """Join samples; the numbers of the images may repeat."""
        width = max(part.logits.shape[1] for part in parts)
        values = {}
        for name in cls.__dataclass_fields__:
            arrays = [getattr(part, name) for part in parts]
            if name == "logits":
                fill = {"constant_values": -np.inf}
                arrays = [np.pad(a, ((0, 0), (0, width - a.shape[1])), **fill) for a in arrays]
            values[name] = np.concatenate(arrays)
        return cls(**values)

    def select(self, chosen: np.ndarray) -> PixelSamples:
        """Return the samples that a bool mask (N,) or indices choose."""
        return PixelSamples(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @property
    def right(self) -> np.ndarray:
        """(N,) bool, whether the label is right."""
        return self.predicted == self.labels


class CalibrationEvaluator(DatasetEvaluator):
    """Samples pixels and computes the calibration of the confidence.

    Images must not be segmented in windows, because their logits are then not known.
    """

    def __init__(
        self,
        dataset_name: str,
        ids: np.ndarray | None = None,
        pixels: int = 400,
        temperature: float = 1.0,
    ):
        """
        Args:
            dataset_name: a registered data set with sem_seg labels.
            ids: (C,) for each category of the vocabulary, its id in the data set; default: the
                vocabulary of the data set.
            pixels: number of random pixels of an image.
            temperature: temperature of the confidence.

        Raises:
            ValueError: if several categories of the data set are its background, or its metadata
                has no ``ignore_label``.
        """
        records = DatasetCatalog.get(dataset_name)
        meta = MetadataCatalog.get(dataset_name)
        if meta.get("num_foreground") is not None:
            raise ValueError(
                f"'{dataset_name}' has several names for its background, whose confidence is not "
                "defined: choose another data set."
            )
        self._dataset, self._num_categories = dataset_name, len(meta.stuff_classes)
        self._labels = {r["file_name"]: r["sem_seg_file_name"] for r in records}
        self._numbers = {r["file_name"]: i for i, r in enumerate(records)}
        self._ids = np.arange(len(meta.stuff_classes)) if ids is None else ids
        self._ignore = ignored_label(dataset_name)
        self._pixels, self._temperature = pixels, temperature
        self.reset()

    def reset(self) -> None:
        self._parts: list[PixelSamples] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            sem_seg, proposals = output["sem_seg"], output["proposals"]
            name, size = x["file_name"], tuple(sem_seg.shape[-2:])
            data = self._dataset, self._num_categories, self._ignore
            labels = read_checked_labels(self._labels[name], name, size, *data)
            rows, columns = np.nonzero(labels != self._ignore)
            rng = np.random.default_rng(self._numbers[name])
            chosen = rng.permutation(len(rows))[: self._pixels]
            rows, columns = rows[chosen], columns[chosen]
            logits = sem_seg.logits[:, rows, columns].T.float().cpu().numpy()
            best, ids = logits.argmax(1), sem_seg.category_ids.cpu().numpy()
            place = np.searchsorted(proposals["ids"].cpu().numpy(), ids[best])
            scores = proposals["scores"].float().cpu().numpy()
            presence = np.full(len(scores), np.nan, np.float32)
            if "presence" in proposals:
                presence = proposals["presence"].float().cpu().numpy()
            self._parts.append(
                PixelSamples(
                    logits,
                    self._ids[ids[best]],
                    labels[rows, columns],
                    np.full(len(rows), len(self._parts)),
                    scores[place],
                    presence[place],
                )
            )

    def samples(self) -> PixelSamples:
        """Return the samples of this process."""
        return PixelSamples.join(self._parts)

    def evaluate(self) -> dict | None:
        """Compute the expected calibration error.

        Returns:
            On the main process ``{"calibration": {"ECE", "accuracy", "confidence"}}`` in percent;
            None on other processes.
        """
        parts = comm.gather(self._parts)
        if not comm.is_main_process():
            return None
        samples = PixelSamples.join([part for some in parts for part in some])
        confidence = label_confidence(samples.logits, self._temperature)
        error, _ = reliability(confidence, samples.right)
        values = {"accuracy": samples.right.mean(), "confidence": confidence.mean(), "ECE": error}
        return {"calibration": {name: 100 * float(value) for name, value in values.items()}}


def label_confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the probability (N,) of the best of K categories, as `Prediction.confidence`.

    Args:
        logits: (N, K).
        temperature: see :func:`dcp_clip.utils.upsampling.winners`.
    """
    return scipy.special.softmax(logits.astype(np.float64) / temperature, axis=1).max(axis=1)


def fit_temperature(logits: np.ndarray, right: np.ndarray) -> float:
    """Fit the temperature that minimises the negative log-likelihood of "right" and "wrong".

    "Right" is the event that the confidence predicts. The likelihood of the true category, which
    arXiv 1706.04599 uses, is 0 if this category is not proposed.

    Args:
        logits: (N, K).
        right: (N,) bool.
    """

    def loss(log_temperature: float) -> float:
        confidence = label_confidence(logits, np.exp(log_temperature)).clip(1e-6, 1 - 1e-6)
        return -np.log(np.where(right, confidence, 1 - confidence)).mean()

    return float(
        np.exp(scipy.optimize.minimize_scalar(loss, bounds=(-2.5, 3.5), method="bounded").x)
    )


def reliability(
    confidence: np.ndarray, right: np.ndarray, bins: int = _BINS
) -> tuple[float, list[tuple[float, float, float]]]:
    """Return the expected calibration error (arXiv 1706.04599), 0 to 1, and its bins.

    Args:
        confidence: (N,), 0 to 1.
        right: (N,) bool.
        bins: number of bins of equal width.

    Returns:
        the error; for each bin with pixels its share of the pixels, mean confidence and accuracy.
    """
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    rows = []
    for i in np.unique(index):
        member = index == i
        rows.append((member.mean(), confidence[member].mean(), right[member].mean()))
    return float(sum(s * abs(c - a) for s, c, a in rows)), [tuple(map(float, r)) for r in rows]
