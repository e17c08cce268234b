"""From the labels of one image to its categories and unknown pixels, without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dcp_clip.utils.label_maps import UNKNOWN_NAME
from dcp_clip.vocabulary import Vocabulary

__all__ = [
    "FoundCategory",
    "checked_threshold",
    "area_shares",
    "find_categories",
    "label_map_with_unknown",
    "shares_by_name",
]


@dataclass(frozen=True)
class FoundCategory:
    """A category with at least one pixel in the label map, or the unknown pixels.

    Attributes:
        id: position in the vocabulary, and value in the label map.
        name: display name; "unknown" for the unknown pixels.
        share: fraction of the area, 0 to 1.
        score: score of the category in stage 1 for this image. A higher score means a more likely
            category, but the score is not a probability. None for the unknown pixels.
    """

    id: int
    name: str
    share: float
    score: float | None


class _Segmented(Protocol):
    """The output of a model for one image."""

    def label_map(self) -> np.ndarray: ...

    def confidence(self) -> np.ndarray: ...


def find_categories(
    shares: np.ndarray, unknown_share: float, scores: Mapping[int, float], vocabulary: Vocabulary
) -> list[FoundCategory]:
    """Return the categories with pixels and the unknown pixels, the largest area first.

    Args:
        shares: (C,) fraction of the area of each category.
        unknown_share: fraction of the area of the unknown pixels.
        scores: the score of each proposed category by its id.
        vocabulary: C categories.
    """
    found = [
        FoundCategory(i, vocabulary.display_names[i], float(shares[i]), scores.get(i))
        for i in np.flatnonzero(shares).tolist()
    ]
    if unknown_share:
        found.append(FoundCategory(vocabulary.unknown_id, UNKNOWN_NAME, unknown_share, None))
    return sorted(found, key=lambda category: (-category.share, category.id))


def area_shares(found: Sequence[FoundCategory], num_categories: int) -> tuple[np.ndarray, float]:
    """Return what :func:`find_categories` got: (C,) shares, and the share of unknown pixels."""
    shares, unknown = np.zeros(num_categories), 0.0
    for category in found:
        if category.score is None and category.id >= num_categories:
            unknown = category.share
        else:
            shares[category.id] = category.share
    return shares, unknown


def shares_by_name(found: Sequence[FoundCategory], vocabulary: Vocabulary) -> dict[str, float]:
    """Return the fraction of the area by display name, in the order of `found`.

    If several categories have the same display name, all but the first of the vocabulary get their
    id as a suffix. Unknown pixels have the name "unknown (255)" if it has a category "unknown".
    """
    owners: dict[str, int] = {}
    for i, name in enumerate(vocabulary.display_names):
        owners.setdefault(name, i)
    shares = {}
    for category in found:
        name = category.name
        is_owner = owners.get(name, category.id) == category.id
        shares[name if is_owner else f"{name} ({category.id})"] = category.share
    return shares


def checked_threshold(unknown_below: float) -> float:
    """Return the threshold of unknown pixels.

    Raises:
        ValueError: if it is not from 0 to 1.
    """
    is_number = isinstance(unknown_below, (int, float, np.number))
    if not is_number or not 0 <= unknown_below <= 1:
        raise ValueError(
            f"unknown_below (TEST.UNKNOWN_BELOW) is {unknown_below!r}; it is a probability from 0 "
            "to 1, for example 0.4."
        )
    return float(unknown_below)


def label_map_with_unknown(
    segmented: _Segmented, vocabulary: Vocabulary, unknown_below: float
) -> tuple[np.ndarray, int]:
    """Return the label map (H, W) and the number of unknown pixels in it.

    Args:
        segmented: the output of a model.
        vocabulary: C categories.
        unknown_below: pixels with a smaller confidence become unknown; with 0 the confidence is not
            computed.

    Raises:
        ValueError: if there can be unknown pixels, but the vocabulary has more than 65,535 names.
    """
    if unknown_below:
        segmented.confidence()  # first, because this also computes the label map
    labels = segmented.label_map()
    if not (unknown_below or vocabulary.negatives):
        return labels, 0
    if len(vocabulary) > 65535:
        raise ValueError(
            f"The vocabulary has {len(vocabulary)} names, but unknown pixels and names with '!' "
            "need one of at most 65535."
        )
    value = vocabulary.unknown_id
    known = np.ones(max(len(vocabulary), value + 1), bool)
    known[list(vocabulary.negatives)] = False
    result = labels.astype(np.min_scalar_type(value))
    unknown = 0
    rows = max(1, 4_000_000 // labels.shape[1])
    for start in range(0, len(labels), rows):
        band = result[start : start + rows]
        mask = ~known[band]
        if unknown_below:
            mask |= segmented.confidence()[start : start + rows] < unknown_below
        band[mask] = value
        unknown += int(np.count_nonzero(mask))
    return result, unknown
