"""The JSON of the annotation tool labelme: polygons that a person can edit."""

from typing import Any

import numpy as np

from dcp_clip.formats.polygons import Polygon, region_polygons
from dcp_clip.formats.regions import find_regions
from dcp_clip.vocabulary import Vocabulary

__all__ = ["to_labelme"]

# The version of the format that labelme writes; it accepts files of other versions.
_VERSION = "5.5.0"


def to_labelme(
    label_map: np.ndarray,
    vocabulary: Vocabulary,
    confidence: np.ndarray | None = None,
    *,
    image_path: str = "",
    tolerance: float = 1.0,
) -> dict[str, Any]:
    """Return the content of labelme's file for an image.

    A polygon of labelme has no holes. The ring of a hole is therefore joined to the exterior by a
    line that runs there and back, so the hole stays empty.

    Args:
        label_map, vocabulary, confidence: see `dcp_clip.formats`.
        image_path: path of the image, relative to the folder of the file.
        tolerance: see `dcp_clip.formats.to_polygons`.
    """
    shapes = [
        {
            "label": region.name,
            "points": _joined(polygon),
            "group_id": None,
            "description": "" if region.score is None else f"confidence {region.score:.2f}",
            "shape_type": "polygon",
            "flags": {},
        }
        for region in find_regions(label_map, vocabulary, confidence)
        for polygon in region_polygons(region, tolerance)
    ]
    return {
        "version": _VERSION,
        "flags": {},
        "shapes": shapes,
        "imagePath": str(image_path),
        "imageData": None,
        "imageHeight": label_map.shape[0],
        "imageWidth": label_map.shape[1],
    }


def _joined(polygon: Polygon) -> list[list[float]]:
    """Join the rings of a polygon to one ring."""
    exterior, holes = polygon
    ring = list(exterior)
    start = ring[0]
    for hole in holes:
        ring += [start, *hole, hole[0]]
    return ring + [start] if holes else ring
