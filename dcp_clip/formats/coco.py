"""COCO's format for stuff: one run-length encoded mask for each category of an image."""

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from dcp_clip.formats.regions import find_regions
from dcp_clip.vocabulary import Vocabulary

__all__ = ["coco_categories", "to_coco"]


def coco_categories(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Return the table of categories. The id of a category is its value in the label map."""
    return [
        {"id": i, "name": name, "supercategory": "stuff", "color": list(color)}
        for i, (name, color) in enumerate(
            zip(vocabulary.display_names, vocabulary.colors, strict=True)
        )
    ]


def to_coco(
    label_map: np.ndarray,
    vocabulary: Vocabulary,
    confidence: np.ndarray | None = None,
    *,
    file_name: str = "",
    image_id: int = 1,
) -> dict[str, Any]:
    """Return the content of a COCO file with one image, which `pycocotools.coco.COCO` reads.

    Args:
        label_map, vocabulary, confidence: see `dcp_clip.formats`.
        file_name: file name of the image.
        image_id: id of the image.

    Returns:
        "images", "annotations" and "categories". The `category_id` of an annotation is the value of
        its pixels in the label map. With `confidence`, annotations have a "score", 0 to 1.
    """
    height, width = label_map.shape
    file_name, image_id = str(file_name), int(image_id)  # also of pathlib and NumPy
    annotations = []
    for region in find_regions(label_map, vocabulary, confidence):
        rle = coco_mask.encode(np.asfortranarray(region.full_mask(), np.uint8))
        annotation = {
            "id": len(annotations) + 1,
            "image_id": image_id,
            "category_id": region.id,
            "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
            "area": region.area,
            "bbox": list(region.box),
            "iscrowd": 0,
        }
        score = {} if region.score is None else {"score": region.score}
        annotations.append(annotation | score)
    return {
        "images": [{"id": image_id, "file_name": file_name, "width": width, "height": height}],
        "annotations": annotations,
        "categories": coco_categories(vocabulary),
    }
