"""Polygons of a label raster with their area on the ground, as GeoPackage or GeoJSON."""

from __future__ import annotations

import importlib.util
import itertools
import json
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dcp_clip.geo.area import check_has_areas, ground_areas, signed_area
from dcp_clip.geo.rasterio_files import import_rasterio, open_raster
from dcp_clip.vocabulary import Vocabulary

__all__ = ["polygon_suffix", "write_polygons"]

_GEOJSON_CRS = "OGC:CRS84"  # longitude and latitude, as RFC 7946 demands
_CHUNK = 100_000  # corners of the polygons that are written at once
_STRIP = 1 << 25  # pixels that are vectorised at once; it bounds the memory


def polygon_suffix() -> str:
    """Return "_polygons.gpkg", or "_polygons.geojson" if pyogrio is not installed."""
    has_pyogrio = importlib.util.find_spec("pyogrio") is not None
    return "_polygons.gpkg" if has_pyogrio else "_polygons.geojson"


def write_polygons(labels: Path, path: Path, vocabulary: Vocabulary) -> dict[int, float]:
    """Write a polygon for each connected part of a category.

    A polygon follows the edges of the pixels and has holes. Pixels that touch only at a corner are
    not connected. Its fields are `category_id`, `name` and `area_m2`: the area on the WGS84
    ellipsoid, also where the projection of the raster distorts areas.

    Args:
        labels: a label raster with a coordinate system.
        path: the file to write: GeoPackage in the coordinate system of the raster if it ends with
            ".gpkg", else GeoJSON in longitude and latitude.
        vocabulary: the categories. Other values in the raster get no polygons.

    Returns:
        The area of each category in square metres.

    Raises:
        ValueError: if the raster has no coordinate system on the Earth.
        OSError: if the file cannot be written.
    """
    areas: dict[int, float] = {}
    with open_raster(labels) as dataset:
        check_has_areas(labels, dataset.crs)
        writer = _write_geopackage if path.suffix == ".gpkg" else _write_geojson
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            chunks = _chunks(dataset, vocabulary, areas, Path(folder))
            writer(chunks, path, dataset.crs, vocabulary)
    return areas


Chunk = tuple[list[dict[str, Any]], list[int], np.ndarray]  # polygons, category ids, areas


def _chunks(
    dataset: Any, vocabulary: Vocabulary, areas: dict[int, float], folder: Path
) -> Iterator[Chunk]:
    found = _polygons(dataset, len(vocabulary), folder)
    for chunk in _grouped(found):
        polygons, ids = [polygon for polygon, _ in chunk], [int(value) for _, value in chunk]
        size = ground_areas(polygons, dataset.crs)
        for value, area in zip(ids, size.tolist()):
            areas[value] = areas.get(value, 0.0) + area
        yield polygons, ids, size


def _grouped(found: Iterator[tuple[dict[str, Any], float]]) -> Iterator[list]:
    """Yield lists of polygons with about `_CHUNK` corners; a corner takes 0.2 kB."""
    chunk, corners = [], 0
    for polygon, value in found:
        chunk.append((polygon, value))
        corners += sum(map(len, polygon["coordinates"]))
        if corners >= _CHUNK:
            yield chunk
            chunk, corners = [], 0
    if chunk:
        yield chunk


def _polygons(dataset: Any, count: int, folder: Path) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield the polygon and the value of each connected part with a value below `count`.

    GDAL keeps all polygons of a call in memory, so each call has a strip of rows. What does not
    touch other strips is complete. The rest is copied to files in `folder`, a raster and its mask,
    and vectorised at the end. GDAL reads row by row, which is slow in a raster of tiles.
    """
    rasterio = import_rasterio()
    from rasterio.features import rasterize, shapes

    height, width = dataset.shape
    step = max(1, _STRIP // width)
    options = {"driver": "GTiff", "compress": "deflate", "bigtiff": "if_safer"}
    options |= {"height": height, "width": width, "count": 1}
    options |= {"crs": dataset.crs, "transform": dataset.transform}
    files = folder / "values.tif", folder / "mask.tif"
    with (
        open_raster(files[0], "w", dtype=dataset.dtypes[0], **options) as values,
        open_raster(files[1], "w", dtype="uint8", **options) as mask,
    ):
        strips = range(0, height, step)
        for top in tqdm(strips, "polygons", unit=" strips", disable=len(strips) == 1):
            bottom = min(top + step, height)
            labels = dataset.read(1, window=((top, bottom), (0, width)))
            borders = {top, bottom} - {0, height}
            place = rasterio.Affine.translation(0, top)
            open_parts = []
            for polygon, value in shapes(labels, labels < count, 4, place):
                if borders.isdisjoint(y for _, y in polygon["coordinates"][0]):
                    yield _on_the_ground(polygon, dataset.transform), value
                else:
                    open_parts.append(polygon)
            if open_parts:
                mark = rasterize(open_parts, labels.shape, transform=place, dtype="uint8")
                values.write(labels * mark, 1, window=((top, bottom), (0, width)))
                mask.write(mark, 1, window=((top, bottom), (0, width)))
    with open_raster(files[0]) as values, open_raster(files[1]) as mask:
        yield from shapes(rasterio.band(values, 1), rasterio.band(mask, 1), 4)


def _on_the_ground(polygon: dict[str, Any], transform: Any) -> dict[str, Any]:
    """Return a polygon in pixels in the coordinates of a raster."""
    a, b, c, d, e, f = transform[:6]
    rings = []
    for ring in polygon["coordinates"]:
        column, row = np.array(ring).T
        # In the order of GDAL's own sum, so that corners of neighbours are equal to the last bit.
        x, y = c + a * column + b * row, f + d * column + e * row
        rings.append(list(zip(x.tolist(), y.tolist())))
    return {"type": "Polygon", "coordinates": rings}


def _write_geojson(chunks: Iterator[Chunk], path: Path, crs: Any, vocabulary: Vocabulary) -> None:
    from rasterio.warp import transform_geom

    separator = "\n"
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for polygons, ids, areas in chunks:
            moved = transform_geom(crs, _GEOJSON_CRS, polygons, precision=9)
            for polygon, value, area in zip(moved, ids, areas.tolist()):
                fields = {
                    "category_id": value,
                    "name": vocabulary.display_names[value],
                    "area_m2": round(area, 3),
                }
                geometry = _oriented(polygon)
                feature = {"type": "Feature", "properties": fields, "geometry": geometry}
                file.write(separator + json.dumps(feature))
                separator = ",\n"
        file.write("\n]}\n")


def _oriented(geometry: dict[str, Any]) -> dict[str, Any]:
    """Exteriors run anticlockwise and holes clockwise (RFC 7946).

    A polygon that crosses the meridian of 180 degrees is cut there into a multi-polygon.
    """

    def oriented(rings: list) -> list:
        return [
            ring if (signed_area(ring) > 0) == (i == 0) else ring[::-1]
            for i, ring in enumerate(rings)
        ]

    parts = geometry["coordinates"]
    if geometry["type"] == "Polygon":
        return geometry | {"coordinates": oriented(parts)}
    return geometry | {"coordinates": [oriented(rings) for rings in parts]}


def _write_geopackage(
    chunks: Iterator[Chunk], path: Path, crs: Any, vocabulary: Vocabulary
) -> None:
    import pyogrio

    fields = ["category_id", "name", "area_m2"]
    first = True
    for polygons, ids, areas in itertools.chain(chunks, [([], [], np.zeros(0))]):
        if not polygons and not first:
            break
        names = np.array([vocabulary.display_names[i] for i in ids], object)
        pyogrio.raw.write(
            path,
            np.array([_wkb(polygon["coordinates"]) for polygon in polygons], object),
            [np.array(ids, np.int32), names, areas],
            fields,
            layer="polygons",
            driver="GPKG",
            geometry_type="Polygon",
            crs=crs.to_wkt(),
            append=not first,
        )
        first = False


def _wkb(rings: list) -> bytes:
    """A polygon as well-known binary, which OGC's Simple Features define."""
    parts = [struct.pack("<BII", 1, 3, len(rings))]
    for ring in rings:
        parts += [struct.pack("<I", len(ring)), np.asarray(ring, "<f8")[:, :2].tobytes()]
    return b"".join(parts)
