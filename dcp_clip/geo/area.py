"""The area of polygons on the ground."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["check_has_areas", "ground_areas", "signed_area"]

# A cylindrical equal-area projection of the WGS84 ellipsoid. Meridians and parallels are straight
# lines in it, so the area of a polygon along the pixels of a geographic raster is exact.
_EQUAL_AREA = "EPSG:6933"
_WIDTH, _POLE = 2 * 17367530.445161372, 7342230.136498678  # metres in this projection
# Other straight lines are bent in it, so their edges are divided: parts have at most this length,
# and at most this change of longitude, which is large near a pole. Both in metres.
_LENGTH, _STEP = 10_000, _WIDTH / 720


def check_has_areas(path: Any, crs: Any) -> None:
    """Raise a ValueError if a raster with this coordinate system, or None, has no areas."""
    from rasterio.errors import RasterioError
    from rasterio.warp import transform

    choice = "choose other formats, such as --format overlay labels"
    if crs is None:
        raise ValueError(
            f"{path} has no coordinate system, so its polygons have no area: {choice}, or assign "
            "one with gdal_edit -a_srs. If the file has ground control points, apply them with "
            "gdalwarp."
        )
    try:
        transform(crs, _EQUAL_AREA, [0.0], [0.0])
    except (RasterioError, _gdal_error()) as error:
        raise ValueError(
            f"{path} has a coordinate system without a place on the Earth, so its polygons have no "
            f"area: {choice}, or assign another one with gdal_edit -a_srs."
        ) from error


def ground_areas(polygons: list[dict[str, Any]], crs: Any) -> np.ndarray:
    """Return the area of each polygon on the WGS84 ellipsoid, in square metres.

    Polygons may cross the meridian of 180 degrees or contain a pole.

    Args:
        polygons: GeoJSON polygons whose edges are straight lines in the coordinate system.
        crs: the coordinate system, of rasterio.
    """
    rings = [np.array(ring) for polygon in polygons for ring in polygon["coordinates"]]
    if not rings:
        return np.zeros(0)
    parts = zip(*_projected(np.concatenate(rings), np.array([len(ring) for ring in rings]), crs))
    areas = iter([_area_in_ring(x, y) for x, y in parts])
    return np.array(
        [next(areas) - sum(next(areas) for _ in p["coordinates"][1:]) for p in polygons]
    )


def signed_area(ring: list) -> float:
    """The area inside a closed ring on a plane; positive if it runs anticlockwise."""
    x, y = (np.array([point[i] for point in ring]) for i in (0, 1))
    return _shoelace(x, y)


def _projected(
    points: np.ndarray, lengths: np.ndarray, crs: Any
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return x and y of rings in the equal-area projection, with their edges divided.

    Args:
        points: (N, 2), the rings one after the other.
        lengths: the number of points of each ring.
        crs: the coordinate system of the points.
    """
    from rasterio.warp import transform

    x, y = map(np.array, transform(crs, _EQUAL_AREA, *points.T))
    if not crs.is_geographic:
        last = np.cumsum(lengths) - 1  # from which no edge starts
        edges, steps = np.diff(points, axis=0, append=points[-1:]), _steps(np.append(x, x[-1]))
        edges[last], steps[last] = 0, 0
        long = np.hypot(*edges.T) * crs.linear_units_factor[1] / _LENGTH
        counts = np.ceil(np.maximum(long, abs(steps) / _STEP)).astype(int).clip(1)
        if counts.max() > 1:  # most polygons have short edges only
            start = np.repeat(np.arange(len(points)), counts)
            position = np.arange(len(start)) - (np.cumsum(counts) - counts)[start]
            points = points[start] + edges[start] * (position / counts[start])[:, None]
            lengths = np.add.reduceat(counts, last - lengths + 1)
            x, y = map(np.array, transform(crs, _EQUAL_AREA, *points.T))
    ends = np.cumsum(lengths)[:-1]
    return np.split(x, ends), np.split(y, ends)


def _steps(x: np.ndarray) -> np.ndarray:
    """The differences of neighbours, the shorter way round the Earth."""
    steps = np.diff(x)
    return steps - _WIDTH * np.rint(steps / _WIDTH)


def _area_in_ring(x: np.ndarray, y: np.ndarray) -> float:
    """The area inside a closed ring in the equal-area projection."""
    steps = _steps(x)
    if abs(steps.sum()) < _WIDTH / 2:
        return abs(_shoelace(np.concatenate([[0.0], np.cumsum(steps)]), y))
    # The ring runs round a pole, the nearer one.
    from_equator = abs(float((y[:-1] + y[1:]) @ steps) / 2)
    return _WIDTH * _POLE - from_equator


def _shoelace(x: np.ndarray, y: np.ndarray) -> float:
    # Relative to a corner: coordinates of millions of metres would lose digits.
    x, y = x - x[0], y - y[0]
    return 0.5 * float(x[:-1] @ y[1:] - x[1:] @ y[:-1])


def _gdal_error() -> type[Exception]:
    """The base class of the errors of GDAL that rasterio does not translate."""
    from rasterio._err import CPLE_BaseError

    return CPLE_BaseError
