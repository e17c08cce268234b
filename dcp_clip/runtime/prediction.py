"""The segmentation of one image, as :class:`dcp_clip.Prediction` without drawing and formats."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from dcp_clip.runtime.segmentation import Segmentation
from dcp_clip.utils.atomic_files import atomic_write
from dcp_clip.vocabulary import Vocabulary

__all__ = ["FoundCategory", "Prediction", "make_prediction"]

_PALETTE_COLORS = 256


@dataclass(frozen=True)
class FoundCategory:
    """A category with at least one pixel in the label map, or the unknown pixels.

    Attributes:
        id: position in the vocabulary, and value in the label map.
        name: display name; "unknown" for the unknown pixels.
        share: fraction of the area, 0 to 1.
        score: score of the category in stage 1; None for the unknown pixels.
    """

    id: int
    name: str
    share: float
    score: float | None


@dataclass
class Prediction:
    """The segmentation of one image.

    Attributes:
        label_map: (H, W) category ids in the smallest unsigned integer type that can store C ids.
            Unknown pixels have the value ``vocabulary.unknown_id``.
        vocabulary: the C categories.
        category_ids: (K,) int64, the ids of the proposed categories.
        scores: (K,) float32, the scores of the proposed categories.
        found: the categories in the label map, the largest area first.
        sem_seg: the logits of the proposed categories.
        milliseconds: time to resize the image, run the model and make the label map.
    """

    label_map: np.ndarray
    vocabulary: Vocabulary
    category_ids: np.ndarray
    scores: np.ndarray
    found: list[FoundCategory]
    sem_seg: Segmentation = field(repr=False)
    milliseconds: float = 0.0

    @property
    def confidence(self) -> np.ndarray:
        """(H, W) float16, the probability that the label of each pixel is right."""
        return self.sem_seg.confidence()

    @property
    def shares(self) -> dict[str, float]:
        """The fraction of the area (0 to 1) by display name, the largest area first.

        If two categories have the same display name, the second one gets its id as a suffix.
        """
        shares: dict[str, float] = {}
        for category in self.found:
            taken = category.name in shares
            name = f"{category.name} ({category.id})" if taken else category.name
            shares[name] = category.share
        return shares

    def save(self, path: str | os.PathLike) -> None:
        """Write the label map as a PNG, in the colours of the vocabulary if it has 8 bits.

        Raises:
            ValueError: if the vocabulary has more than 65,536 names, which a PNG cannot store.
            WriteError: if the file cannot be written.
        """
        if self.label_map.dtype.itemsize > 2:
            raise ValueError(f"{path}: a PNG cannot store ids above 65535.")
        image = Image.fromarray(self.label_map)
        if self.label_map.dtype == np.uint8:
            colors = list(self.vocabulary.colors[:_PALETTE_COLORS])
            image.putpalette(np.asarray(colors, np.uint8).tobytes())
        content = io.BytesIO()
        image.save(content, format="PNG")
        with atomic_write(path) as file:
            file.write(content.getbuffer())


def make_prediction(
    sem_seg: Segmentation, scores: np.ndarray, vocabulary: Vocabulary, unknown_below: float
) -> Prediction:
    """Make the prediction of one image.

    Args:
        sem_seg: the logits of the K proposed categories.
        scores: (K,) their scores.
        vocabulary: C categories.
        unknown_below: pixels with a smaller confidence become unknown; 0 for none.

    Raises:
        ValueError: if there can be unknown pixels, but the vocabulary has more than 65,535 names.
    """
    labels, unknown_id = sem_seg.label_map(), vocabulary.unknown_id
    if unknown_below or vocabulary.negatives:
        if len(vocabulary) > 65535:
            raise ValueError(
                f"The vocabulary has {len(vocabulary)} names, but unknown pixels and names with "
                "'!' need one of at most 65535."
            )
        unknown = np.isin(labels, vocabulary.negatives)
        unknown |= sem_seg.confidence() < unknown_below
        labels = labels.astype(np.min_scalar_type(unknown_id))
        labels[unknown] = unknown_id
    counts = np.bincount(labels.ravel(), minlength=len(vocabulary))
    by_id = dict(zip(sem_seg.category_ids.tolist(), scores.tolist(), strict=True))
    found = []
    for i in np.flatnonzero(counts).tolist():
        name = vocabulary.display_names[i] if i < len(vocabulary) else "unknown"
        found.append(FoundCategory(i, name, float(counts[i] / labels.size), by_id.get(i)))
    return Prediction(
        label_map=labels,
        vocabulary=vocabulary,
        category_ids=sem_seg.category_ids,
        scores=scores,
        found=sorted(found, key=lambda category: (-category.share, category.id)),
        sem_seg=sem_seg,
    )
