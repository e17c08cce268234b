"""`Prediction`: the segmentation of one image, its confidence, and its form in other tools.

`EncodedImage` is an image that is kept to be segmented with several vocabularies.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from dcp_clip import formats
from dcp_clip.structures import SemSegLabels, SemSegProposals
from dcp_clip.utils.upsampling import category_shares
from dcp_clip.utils.visualization import UNKNOWN_NAME, draw_overlay
from dcp_clip.vocabulary import Vocabulary

__all__ = ["EncodedImage", "FoundCategory", "Prediction", "checked_threshold", "make_prediction"]


@dataclass(frozen=True)
class EncodedImage:
    """An image and its features, see `Predictor.set_image`.

    Attributes:
        image: (H', W', 3) uint8 RGB, as it was read.
        size: (height, width) of the label map.
        resized: (3, h, w) uint8, the input of the model.
        features: the output of the image encoder, see `OpenVocabularySegmentor.encode_image`.
    """

    image: np.ndarray = field(repr=False)
    size: tuple[int, int]
    resized: Tensor = field(repr=False)
    features: list[dict[str, Tensor]] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Memory of the features in bytes, on the device of the model."""
        return sum(tensor.nbytes for view in self.features for tensor in view.values())


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


@dataclass
class Prediction:
    """The segmentation of one image.

    Attributes:
        label_map: (H, W) category ids in the smallest unsigned integer type that can store C ids.
            Unknown pixels have the value `unknown_id`.
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

        If two categories have the same display name, the second one gets its id as a suffix.
        """
        shares: dict[str, float] = {}
        for category in self.found:
            taken = category.name in shares
            name = f"{category.name} ({category.id})" if taken else category.name
            shares[name] = category.share
        return shares

    def overlay(self, image: np.ndarray, **options: Any) -> np.ndarray:
        """Draw the regions over the image, and a legend below it.

        Args:
            image: the image that was segmented, (H, W, 3) uint8 RGB.
            **options: other arguments of `dcp_clip.utils.visualization.draw_overlay`.

        Returns:
            np.ndarray: (H', W', 3) uint8 RGB.
        """
        shares, unknown = np.zeros(len(self.vocabulary)), 0.0
        for category in self.found:
            if category.score is None:
                unknown = category.share
            else:
                shares[category.id] = category.share
        options["unknown_share"] = unknown
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
    def _content(self) -> tuple[np.ndarray, Vocabulary, np.ndarray]:
        return self.label_map, self.vocabulary, self.confidence


def checked_threshold(unknown_below: float) -> float:
    """Return the threshold of unknown pixels.

    Raises:
        ValueError: if it is not from 0 to 1.
    """
    if not 0 <= unknown_below <= 1:
        raise ValueError(
            f"unknown_below (TEST.UNKNOWN_BELOW) is {unknown_below}; it is a probability from 0 to "
            "1, for example 0.4."
        )
    return float(unknown_below)


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
    if unknown_below:
        sem_seg.confidence()  # first, because this also computes the label map
    label_map, unknown = sem_seg.label_map(), 0
    if unknown_below or vocabulary.negatives:
        if len(vocabulary) > 65535:
            raise ValueError(
                f"The vocabulary has {len(vocabulary)} names, but unknown pixels and names with "
                "'!' need one of at most 65535."
            )
        label_map, unknown = _with_unknown(sem_seg, vocabulary, unknown_below)
    shares = category_shares(label_map, len(vocabulary))
    found = [
        FoundCategory(i, vocabulary.display_names[i], float(shares[i]), scores[i])
        for i in np.flatnonzero(shares).tolist()
    ]
    if unknown:
        share = unknown / label_map.size
        found.append(FoundCategory(vocabulary.unknown_id, UNKNOWN_NAME, share, None))
    ids = sem_seg.category_ids.tolist()
    return Prediction(
        label_map=label_map,
        vocabulary=vocabulary,
        category_ids=np.array(ids, np.int64),
        scores=np.array([scores[i] for i in ids], np.float32),
        found=sorted(found, key=lambda category: (-category.share, category.id)),
        milliseconds=0.0,
        sem_seg=sem_seg,
    )


def _with_unknown(
    sem_seg: SemSegProposals | SemSegLabels, vocabulary: Vocabulary, unknown_below: float
) -> tuple[np.ndarray, int]:
    """Return the label map with the unknown id, and the number of unknown pixels."""
    value, labels = vocabulary.unknown_id, sem_seg.label_map()
    known = np.ones(max(len(vocabulary), value + 1), bool)
    known[list(vocabulary.negatives)] = False
    result = labels.astype(np.min_scalar_type(value))
    unknown = 0
    rows = max(1, 4_000_000 // labels.shape[1])
    for start in range(0, len(labels), rows):
        band = result[start : start + rows]
        mask = ~known[band]
        if unknown_below:
            mask |= sem_seg.confidence()[start : start + rows] < unknown_below
        band[mask] = value
        unknown += int(np.count_nonzero(mask))
    return result, unknown
