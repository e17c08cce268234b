"""Convert the similarities of all names to labels, with thresholds for the background."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["Thresholds", "label_pixels"]


@dataclass(frozen=True)
class Thresholds:
    """Thresholds below which a pixel is background, the first category of the vocabulary.

    Attributes:
        probability: pixels whose best category has a lower probability are background.
        area: a category gets no pixel if its share of the pixels of all categories but the
            background is not larger.

    Raises:
        ValueError: if a threshold is not at least 0 and below 1.
    """

    probability: float = 0.0
    area: float = 0.0

    def __post_init__(self) -> None:
        for key, value in (("PROBABILITY", self.probability), ("AREA", self.area)):
            if not 0 <= value < 1:
                raise ValueError(
                    f"MODEL.TRAINING_FREE.{key}_THRESHOLD is {value}; it must be at least 0 and "
                    "below 1."
                )


def label_pixels(
    bands: Callable[[], Iterable[tuple[int, Tensor]]],
    size: tuple[int, int],
    category_rows: Tensor,
    scale: float,
    thresholds: Thresholds,
) -> tuple[np.ndarray, np.ndarray]:
    """Give every pixel the category of its most probable name.

    The probability of a category is that of its best name, from the softmax over all names
    (SCLIP, arXiv 2312.01597).

    Args:
        bands: yields the first row of a band and its similarities (N, rows, W); called twice if
            there is an area threshold.
        size: (H, W).
        category_rows: (C, S) the names of each category, see
            :class:`dcp_clip.structures.TextFeatures`.
        scale: factor from similarities to logits.
        thresholds: thresholds of the background.

    Returns:
        (H, W) category ids of the smallest unsigned type that holds C ids. (H, W) float16, the
        probability of the category; below the threshold, that of no category.
    """
    num_categories = len(category_rows)

    def label(dropped: Tensor | None = None) -> tuple[Tensor, Tensor]:
        labels = torch.empty(size, dtype=torch.int64)
        confidence = torch.empty(size, dtype=torch.float16)
        for start, similarity in bands():
            probability = _category_probability(scale * similarity, category_rows)
            if dropped is not None:
                probability = probability.masked_fill(dropped[:, None, None], 0.0)
            best, ids = probability.max(0)
            nothing = best < thresholds.probability
            rows = slice(start, start + len(ids))
            labels[rows] = ids.masked_fill(nothing, 0).cpu()
            confidence[rows] = torch.where(nothing, 1 - best, best).cpu()
        return labels, confidence

    if not thresholds.area:
        labels, confidence = label()
    else:
        # The areas are those of the best categories before the threshold of the probability.
        area = torch.zeros(num_categories, dtype=torch.int64)
        for _, similarity in bands():
            best = _category_probability(scale * similarity, category_rows).argmax(0)
            area += best.flatten().bincount(minlength=num_categories).cpu()
        dropped = area <= thresholds.area * area[1:].sum()
        dropped[0] = False
        labels, confidence = label(dropped.to(category_rows.device))
    kind = np.min_scalar_type(num_categories - 1)
    return labels.numpy().astype(kind), confidence.numpy()


def _category_probability(logits: Tensor, category_rows: Tensor) -> Tensor:
    """Logits of names (N, ...) to probabilities of categories (C, ...)."""
    probability = logits.softmax(0)
    best = probability[category_rows[:, 0]]
    for rows in category_rows.T[1:]:
        best = torch.maximum(best, probability[rows])
    return best
