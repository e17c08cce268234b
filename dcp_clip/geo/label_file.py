"""Write GeoTIFFs of labels and of confidence, part by part."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from dcp_clip.geo.raster import Raster, Region
from dcp_clip.geo.rasterio_files import open_raster
from dcp_clip.utils.label_maps import UNKNOWN_COLOR
from dcp_clip.vocabulary import Vocabulary

__all__ = ["label_type", "write_geotiff", "write_label_geotiff"]

_TILE = 512  # pixels


def label_type(vocabulary: Vocabulary) -> tuple[type, int]:
    """Return the type of a label raster and its value for pixels without data.

    The value is 254, or 65534 with more than 254 names. It is not the value of unknown pixels.

    Raises:
        ValueError: if the vocabulary has more than 65,534 names.
    """
    count = len(vocabulary)
    if count > 65534:
        raise ValueError(f"The vocabulary has {count} names; a raster can have at most 65534.")
    return (np.uint8, 254) if count <= 254 else (np.uint16, 65534)


def write_label_geotiff(
    path: Path, raster: Raster, parts: Iterable[tuple[Region, np.ndarray]], vocabulary: Vocabulary
) -> None:
    """Write category ids with the colours and the names of the vocabulary.

    The colour table has the colours. The tags of the band have the names: CATEGORY_0, CATEGORY_1
    and so on, and all of them as a JSON list in CATEGORY_NAMES.

    Args:
        path, raster, parts: see `write_geotiff`.
        vocabulary: C categories.

    Raises:
        OSError: if the file cannot be written.
    """
    kind, nodata = label_type(vocabulary)
    colors = {i: (*color, 255) for i, color in enumerate(vocabulary.colors)}
    colors |= {vocabulary.unknown_id: (*UNKNOWN_COLOR, 255), nodata: (0, 0, 0, 0)}
    names = vocabulary.display_names
    tags = {f"CATEGORY_{i}": name for i, name in enumerate(names)}
    tags |= {"CATEGORY_NAMES": json.dumps(names), "UNKNOWN_ID": vocabulary.unknown_id}
    write_geotiff(path, raster, parts, kind, nodata, tags, colors)


def write_geotiff(
    path: Path,
    raster: Raster,
    parts: Iterable[tuple[Region, np.ndarray]],
    kind: type,
    nodata: int | None,
    tags: dict[str, Any],
    colors: dict[int, tuple[int, int, int, int]] | None = None,
) -> None:
    """Write one band in tiles with the size and the georeference of a raster.

    Args:
        path: the file to write.
        raster: the raster that was segmented.
        parts: the regions of the raster and their values (h, w).
        kind: type of the values.
        nodata: value of pixels without data.
        tags: tags of the band.
        colors: RGBA by value.

    Raises:
        OSError: if the file cannot be written.
    """
    source = raster.dataset
    points, points_crs = source.gcps
    profile = {
        "driver": "GTiff",
        "height": raster.size[0],
        "width": raster.size[1],
        "count": 1,
        "dtype": kind,
        "nodata": nodata,
        "crs": points_crs if points else source.crs,
        "tiled": True,
        "blockxsize": _TILE,
        "blockysize": _TILE,
        "compress": "deflate",
        "bigtiff": "if_safer",
    }
    profile |= {"gcps": points} if points else {"transform": source.transform}
    with open_raster(path, "w", **profile) as target:
        if colors:
            target.write_colormap(1, colors)
        target.update_tags(1, **tags)
        for (top, left, height, width), values in parts:
            window = ((top, top + height), (left, left + width))
            target.write(values.astype(kind, copy=False), 1, window=window)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
