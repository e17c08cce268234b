"""Polygons with holes along the edges of the pixels."""

from typing import Any

import cv2
import numpy as np

from dcp_clip.formats.regions import Region, find_regions
from dcp_clip.vocabulary import Vocabulary

__all__ = ["Polygon", "region_polygons", "to_polygons"]

# The exterior ring and the rings of the holes: lists of (x, y) in pixels, not closed.
Polygon = tuple[list[list[float]], list[list[list[float]]]]


def to_polygons(
    label_map: np.ndarray,
    vocabulary: Vocabulary,
    confidence: np.ndarray | None = None,
    *,
    tolerance: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the polygons of every category.

    Coordinates are in pixels: (0, 0) is the upper left corner of the image, and a pixel is a square
    of side 1. With `tolerance=0` the polygons cover exactly the pixels of the category.

    Args:
        label_map, vocabulary, confidence: see `dcp_clip.formats`.
        tolerance: largest distance in pixels of a ring from the edges that it simplifies
            (Douglas-Peucker). Above 0, neighbours can overlap or leave gaps of this width.

    Returns:
        one dict for each category: "id", "name", "score" (or None), and "polygons", each a dict of
        the rings "exterior" (N, 2) and "holes" (a list of rings).
    """
    return [
        {
            "id": region.id,
            "name": region.name,
            "score": region.score,
            "polygons": [
                {"exterior": exterior, "holes": holes}
                for exterior, holes in region_polygons(region, tolerance)
            ],
        }
        for region in find_regions(label_map, vocabulary, confidence)
    ]


def region_polygons(region: Region, tolerance: float) -> list[Polygon]:
    """Return a polygon for each connected part of a region; see `to_polygons`.

    Holes run in the opposite direction of exteriors.

    Raises:
        ValueError: if the tolerance is negative.
    """
    if not tolerance >= 0:
        raise ValueError(f"The tolerance of polygons is {tolerance}; give 0 or more pixels.")
    # OpenCV's contours connect the centres of pixels. In an image of twice the size, the first and
    # the last of the two pixels tell the two edges of the original pixel apart.
    doubled = region.mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None:
        return []
    offset = np.array([region.left, region.top])
    rings = [_simplified((c[:, 0] + 1) // 2 + offset, tolerance) for c in contours]
    polygons: dict[int, Polygon] = {}
    for i, (_, _, _, parent) in enumerate(hierarchy[0]):
        if parent < 0:
            polygons[i] = rings[i], []
    for i, (_, _, _, parent) in enumerate(hierarchy[0]):
        if parent >= 0:
            polygons[parent][1].append(rings[i])
    return list(polygons.values())


def _simplified(ring: np.ndarray, tolerance: float) -> list[list[float]]:
    """Remove points of a closed ring (N, 2) that are on straight lines or within the tolerance."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    ring = ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    if tolerance:
        simple = cv2.approxPolyDP(ring[:, None].astype(np.float32), tolerance, closed=True)[:, 0]
        if len(simple) >= 3:
            ring = simple
    return ring.tolist()
