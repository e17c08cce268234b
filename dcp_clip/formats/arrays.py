"""Masks in memory as Hugging Face, supervision and FiftyOne expect them."""

from typing import Any

import numpy as np
from PIL import Image

from dcp_clip.formats.regions import find_regions
from dcp_clip.utils.optional_packages import import_optional
from dcp_clip.vocabulary import Vocabulary

__all__ = ["to_fiftyone", "to_huggingface", "to_supervision"]


def to_huggingface(
    label_map: np.ndarray, vocabulary: Vocabulary, confidence: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Return what the pipeline "image-segmentation" of transformers returns.

    Args:
        label_map, vocabulary, confidence: see `dcp_clip.formats`.

    Returns:
        one dict for each category: "score" (or None), "label", and "mask", a PIL image of mode "L"
        with 255 at the pixels of the category.
    """
    return [
        {
            "score": region.score,
            "label": region.name,
            "mask": Image.fromarray(region.full_mask().astype(np.uint8) * 255),
        }
        for region in find_regions(label_map, vocabulary, confidence)
    ]


def to_supervision(
    label_map: np.ndarray, vocabulary: Vocabulary, confidence: np.ndarray | None = None
) -> Any:
    """Return a `supervision.Detections` with one mask for each of N categories.

    The masks take N x H x W bytes.

    Args:
        label_map, vocabulary, confidence: see `dcp_clip.formats`.

    Raises:
        ImportError: if supervision is not installed.
    """
    supervision = import_optional("supervision", "to_supervision needs")
    regions = list(find_regions(label_map, vocabulary, confidence))
    boxes = [(r.left, r.top, r.left + r.box[2], r.top + r.box[3]) for r in regions]
    masks = [region.full_mask() for region in regions]
    return supervision.Detections(
        xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        mask=np.stack(masks) if masks else np.zeros((0, *label_map.shape), bool),
        class_id=np.array([region.id for region in regions], int),
        confidence=None
        if confidence is None
        else np.array([region.score for region in regions], np.float32),
        data={"class_name": np.array([region.name for region in regions])},
    )


def to_fiftyone(label_map: np.ndarray, vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the arguments for a segmentation in FiftyOne, where the value 0 is invisible.

    ::

        values = prediction.to_fiftyone()
        sample["prediction"] = fiftyone.Segmentation(mask=values["mask"])
        dataset.default_mask_targets = values["mask_targets"]

    Args:
        label_map, vocabulary: see `dcp_clip.formats`.

    Returns:
        "mask": (H, W), the category id plus 1, and 0 where there is no category, in the smallest
        unsigned integer type; "mask_targets": the display name by value.
    """
    mask = label_map.astype(np.min_scalar_type(len(vocabulary))) + 1
    mask[label_map >= len(vocabulary)] = 0
    return {"mask": mask, "mask_targets": dict(enumerate(vocabulary.display_names, 1))}
