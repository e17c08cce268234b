"""An encoded image, and the segmentation of one: as in dcp_clip, without drawing and formats."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dcp_clip.found_categories import (
    FoundCategory,
    find_categories,
    label_map_with_unknown,
    shares_by_name,
)
from dcp_clip.runtime.segmentation import Segmentation
from dcp_clip.utils.label_maps import category_shares, save_label_map
from dcp_clip.vocabulary import Vocabulary

__all__ = ["EncodedImage", "Prediction", "make_prediction"]


@dataclass(eq=False)
class EncodedImage:
    """An image and its features, see `OnnxPredictor.set_image`.

    Attributes:
        image: (H', W', 3) uint8 RGB, as it was read.
        size: (height, width) of the label map.
        resized: (h, w, 3) uint8, the input of the model.
        features: the output of encoder.onnx for the image, or for each view of it in windows.
        encoder: settings of the exported model that computed them.
    """

    image: np.ndarray = field(repr=False)
    size: tuple[int, int]
    resized: np.ndarray = field(repr=False)
    features: list[dict[str, np.ndarray]] = field(repr=False)
    encoder: dict[str, Any] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Memory of the features in bytes."""
        return sum(array.nbytes for view in self.features for array in view.values())


@dataclass(eq=False)
class Prediction:
    """The segmentation of one image.

    Attributes:
        label_map: (H, W) category ids in the smallest unsigned integer type that can store C ids.
            Unknown pixels have the value ``unknown_id``.
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
    def unknown_id(self) -> int:
        """The value of unknown pixels in the label map."""
        return self.vocabulary.unknown_id

    @property
    def confidence(self) -> np.ndarray:
        """(H, W) float16, the probability that the label of each pixel is right."""
        return self.sem_seg.confidence()

    @property
    def shares(self) -> dict[str, float]:
        """The fraction of the area (0 to 1) by display name, the largest area first.

        If several categories have the same display name, all but the first of the vocabulary get
        their id as a suffix. Unknown pixels are "unknown (255)" if it has a category "unknown".
        """
        return shares_by_name(self.found, self.vocabulary)

    def save(self, path: str | os.PathLike) -> None:
        """Write the label map as a PNG, see `dcp_clip.utils.label_maps.save_label_map`."""
        save_label_map(path, self.label_map, self.vocabulary)


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
    labels, unknown = label_map_with_unknown(sem_seg, vocabulary, unknown_below)
    shares = category_shares(labels, len(vocabulary))
    by_id = dict(zip(sem_seg.category_ids.tolist(), scores.tolist(), strict=True))
    return Prediction(
        label_map=labels,
        vocabulary=vocabulary,
        category_ids=sem_seg.category_ids,
        scores=scores,
        found=find_categories(shares, unknown / labels.size, by_id, vocabulary),
        sem_seg=sem_seg,
    )
