"""`Prediction`: the segmentation of one image, its confidence, and its form in other tools.

`EncodedImage` is an image that is kept to be segmented with several vocabularies.
"""

import os
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dcp_clip import formats
from dcp_clip.found_categories import (
    FoundCategory,
    area_shares,
    find_categories,
    label_map_with_unknown,
    shares_by_name,
)
from dcp_clip.structures import SemSegLabels, SemSegProposals
from dcp_clip.utils.images.reading import read_image
from dcp_clip.utils.label_maps import category_shares, save_label_map
from dcp_clip.utils.visualization import draw_overlay
from dcp_clip.vocabulary import Vocabulary

__all__ = ["EncodedImage", "Prediction", "encoder_token", "make_prediction"]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image and its features, see `Predictor.set_image`.

    Attributes:
        image: (H', W', 3) uint8 RGB, as it was read.
        size: (height, width) of the label map.
        resized: (3, h, w) uint8, the input of the model.
        features: the output of the image encoder, see `OpenVocabularySegmentor.encode_image`.
        encoder: token of the model that computed the features, see `encoder_token`.
    """

    image: np.ndarray = field(repr=False)
    size: tuple[int, int]
    resized: Tensor = field(repr=False)
    features: list[dict[str, Tensor]] = field(repr=False)
    encoder: str = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Memory of the features in bytes, on the device of the model."""
        return sum(tensor.nbytes for view in self.features for tensor in view.values())


def encoder_token(model: Any) -> str:
    """Return a text that identifies a model and its copies, but no other model."""
    if not hasattr(model, "encoder_token"):
        model.encoder_token = uuid.uuid4().hex
    return model.encoder_token


@dataclass(eq=False)
class Prediction:
    """The segmentation of one image.

    Attributes:
        label_map: (H, W) category ids in the smallest unsigned integer type that can store C ids.
            Unknown pixels have the value `unknown_id`. Do not modify it: `sem_seg` shares it.
        vocabulary: the C categories.
        category_ids: (K,) int64, the ids of the proposed categories.
        scores: (K,) float32, the scores of the proposed categories.
        found: the categories in the label map, the largest area first.
        milliseconds: time to resize the image, run the model and make the label map. It does not
            include the time to read the file.
        sem_seg: the output of the model.
    """

    label_map: np.ndarray
    vocabulary: Vocabulary
    category_ids: np.ndarray
    scores: np.ndarray
    found: list[FoundCategory]
    milliseconds: float
    sem_seg: SemSegProposals | SemSegLabels = field(repr=False)

    @property
    def unknown_id(self) -> int:
        """The value of unknown pixels: 255, or 65535 if the vocabulary has more than 255 names."""
        return self.vocabulary.unknown_id

    @property
    def confidence(self) -> np.ndarray:
        """(H, W) float16, the probability that the label of each pixel is right.

        At unknown pixels it is that of the best category, which was not written. It is computed
        when it is first used, in bands of rows, and kept; do not modify it. It is calibrated if the
        weights are (docs/confidence.md).
        """
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

    def overlay(self, image: str | os.PathLike | np.ndarray, **options: Any) -> np.ndarray:
        """Draw the regions over the image, and a legend below it.

        Args:
            image: the image that was segmented, a file or (H, W, 3) uint8 RGB.
            **options: other arguments of `dcp_clip.utils.visualization.draw_overlay`.

        Returns:
            np.ndarray: (H', W', 3) uint8 RGB.

        Raises:
            ImageReadError: if the file cannot be read.
            ValueError: if the image is no RGB array, or has another aspect ratio.
        """
        if isinstance(image, str | os.PathLike):
            image = read_image(image)
        shares, options["unknown_share"] = area_shares(self.found, len(self.vocabulary))
        return draw_overlay(image, self.label_map, self.vocabulary, shares, **options)

    def to_coco(self, file_name: str = "", image_id: int = 1) -> dict[str, Any]:
        """Return the content of a COCO file; see `dcp_clip.formats.coco.to_coco`."""
        return formats.to_coco(*self._content, file_name=file_name, image_id=image_id)

    def to_polygons(self, tolerance: float = 1.0) -> list[dict[str, Any]]:
        """Return polygons with holes; see `dcp_clip.formats.polygons.to_polygons`."""
        return formats.to_polygons(*self._content, tolerance=tolerance)

    def to_labelme(self, image_path: str = "", tolerance: float = 1.0) -> dict[str, Any]:
        """Return the content of labelme's file; see `dcp_clip.formats.labelme.to_labelme`."""
        return formats.to_labelme(*self._content, image_path=image_path, tolerance=tolerance)

    def to_label_studio(self, image: str = "") -> dict[str, Any]:
        """Return a task; see `dcp_clip.formats.label_studio.to_label_studio`."""
        return formats.to_label_studio(*self._content, image=image)

    def to_huggingface(self) -> list[dict[str, Any]]:
        """Return what a pipeline returns; see `dcp_clip.formats.arrays.to_huggingface`."""
        return formats.to_huggingface(*self._content)

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections`; see `dcp_clip.formats.arrays.to_supervision`."""
        return formats.to_supervision(*self._content)

    def to_fiftyone(self) -> dict[str, Any]:
        """Return a mask and its names; see `dcp_clip.formats.arrays.to_fiftyone`."""
        return formats.to_fiftyone(self.label_map, self.vocabulary)

    @property
    def _content(self) -> tuple[np.ndarray, Vocabulary, np.ndarray | None]:
        known = getattr(self.sem_seg, "has_confidence", True)
        return self.label_map, self.vocabulary, self.confidence if known else None


def make_prediction(
    sem_seg: SemSegProposals | SemSegLabels,
    scores: dict[int, float],
    vocabulary: Vocabulary,
    unknown_below: float,
) -> Prediction:
    """Make the prediction of one image, with `milliseconds` 0.

    Args:
        sem_seg: the output of the model.
        scores: the score of each proposed category.
        vocabulary: C categories.
        unknown_below: pixels with a smaller confidence become unknown; with 0 the confidence is not
            computed.

    Raises:
        ValueError: if there can be unknown pixels, but the vocabulary has more than 65,535 names.
    """
    label_map, unknown = label_map_with_unknown(sem_seg, vocabulary, unknown_below)
    shares = category_shares(label_map, len(vocabulary))
    found = find_categories(shares, unknown / label_map.size, scores, vocabulary)
    ids = sem_seg.category_ids.tolist()
    return Prediction(
        label_map=label_map,
        vocabulary=vocabulary,
        category_ids=np.array(ids, np.int64),
        scores=np.array([scores[i] for i in ids], np.float32),
        found=found,
        milliseconds=0.0,
        sem_seg=sem_seg,
    )
