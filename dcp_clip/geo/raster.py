"""Read rasters in parts, as 8-bit colour images."""

from __future__ import annotations

import contextlib
import functools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import TiffImagePlugin

from dcp_clip.geo.rasterio_files import gdal_reason, import_rasterio, open_raster
from dcp_clip.utils.images.files import ImageReadError

__all__ = ["Raster", "Region", "check_range", "is_geotiff"]

Region = tuple[int, int, int, int]  # top, left, height and width in pixels

# First bytes of a file, and the driver that may open it. There are no others, because some of
# GDAL's formats (VRT) name further files and addresses.
_DRIVERS = {
    b"II*\0": "GTiff",
    b"MM\0*": "GTiff",
    b"II+\0": "GTiff",  # BigTIFF
    b"MM\0+": "GTiff",
    b"\0\0\0\x0cjP": "JP2OpenJPEG",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
}
_GEO_KEYS = {33550, 34264, 34735}  # tags of TIFF: pixel scale, transformation, coordinate system
_PERCENTILES = (2.0, 98.0)
_ROWS = 512  # read at once at full resolution; it bounds the memory
_PART = 128  # side in pixels of the parts of the reduced raster that are read at once
_OVERVIEW = 2048  # long side in pixels of the reduced raster


def is_geotiff(path: str | os.PathLike) -> bool:
    """Return whether a file is a TIFF with a coordinate system or a transformation."""
    try:
        with open(path, "rb") as file:
            header = file.read(8)
            if _DRIVERS.get(header[:4]) != "GTiff":
                return False
            if b"+" in header[:4]:
                header += file.read(8)
            directory = TiffImagePlugin.ImageFileDirectory_v2(header)
            file.seek(directory.next)
            directory.load(file)
            return bool(_GEO_KEYS & set(directory))
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, OverflowError):
        return False  # reading the image explains what is wrong


def check_range(low: float, high: float) -> None:
    """Raise a ValueError if a range of values is empty or infinite."""
    if not (low < high and math.isfinite(high - low)):
        raise ValueError(f"--range is {low} to {high}: give two numbers, the smaller one first.")


def _open(path: Path) -> Any:
    """Open a raster with the driver of its first bytes."""
    rasterio = import_rasterio()
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise ImageReadError(f"cannot read {path}: {error.strerror or error}") from error
    driver = next((name for first, name in _DRIVERS.items() if start.startswith(first)), None)
    if driver is None:
        raise ImageReadError(f"cannot read {path}: it is no TIFF, JPEG 2000, JPEG or PNG file")
    try:
        return open_raster(path.resolve(), driver=driver)
    except rasterio.errors.RasterioIOError as error:
        raise ImageReadError(f"cannot read {path}: {error}") from error


class Raster:
    """A raster that is read in parts, a context.

    Attributes:
        path: the file.
        size: (H, W) in pixels.
        bands: the numbers of the bands for red, green and blue, from 1.
        ranges: the (low, high) values of each band that become 0 and 255.
        scaling: how `ranges` was chosen: "none", "given" or "percentiles 2 to 98".
        dataset: the open dataset of rasterio.
    """

    def __init__(
        self,
        path: Path,
        bands: Sequence[int] | None = None,
        value_range: tuple[float, float] | None = None,
    ):
        """
        Args:
            path: a GeoTIFF, JPEG 2000, JPEG or PNG file.
            bands: three bands, or one for grey; default: the bands that the file calls red, green
                and blue, the first three of three or four, or the only one.
            value_range: the values of all bands that become 0 and 255; default: 8-bit values are
                unchanged, and other bands use percentiles of the reduced raster.

        Raises:
            ImportError: if rasterio is not installed.
            ImageReadError: if the file cannot be read, or has no such bands.
            ValueError: see `check_range`.
        """
        rasterio = import_rasterio()
        if value_range is not None:
            check_range(*value_range)
        self.path = path
        with contextlib.ExitStack() as stack:  # closes the file if one of the checks fails
            # A bounded cache, in MB: by default GDAL uses a twentieth of the machine's memory.
            stack.enter_context(rasterio.Env(GDAL_CACHEMAX=64))
            self.dataset = stack.enter_context(_open(path))
            self.size = self.dataset.height, self.dataset.width
            self.bands = self._checked_bands(bands)
            types = [self.dataset.dtypes[band - 1] for band in self.bands]
            if any(np.dtype(kind).kind not in "uif" for kind in types):
                raise ImageReadError(
                    f"cannot read {path}: its values are {types[0]}, no real numbers"
                )
            if value_range is not None:
                self.scaling, self.ranges = "given", [tuple(map(float, value_range))] * 3
            elif set(types) == {"uint8"}:
                self.scaling, self.ranges = "none", [(0.0, 255.0)] * 3
            else:
                self.scaling = "percentiles {:g} to {:g}".format(*_PERCENTILES)
                self.ranges = self._percentiles()
            self._open_files = stack.pop_all()

    def __enter__(self) -> Raster:
        return self

    def __exit__(self, *_: object) -> None:
        self._open_files.close()

    def settings(self) -> dict[str, Any]:
        """Return how the raster is read, for results."""
        ranges = [list(pair) for pair in self.ranges]
        return {"bands": list(self.bands), "scaling": self.scaling, "ranges": ranges}

    def read(self, region: Region) -> tuple[np.ndarray, np.ndarray]:
        """Read a part of the raster.

        Returns:
            (3, h, w) uint8; (h, w) bool, where the raster has data.

        Raises:
            ImageReadError: if the file is damaged.
        """
        top, left, height, width = region
        image, valid = np.empty((3, height, width), np.uint8), np.empty((height, width), bool)
        for start in range(0, height, _ROWS):
            rows = slice(start, min(start + _ROWS, height))
            window = ((top + rows.start, top + rows.stop), (left, left + width))
            values, known = self._values(window)
            image[:, rows], valid[rows] = self._scaled(values, known), known.any(axis=0)
        return image, valid

    def overview(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the raster reduced to at most 2048 pixels, as `read` does."""
        values, known = self._reduced
        return self._scaled(values, known), known.any(axis=0)

    def blocks(self, side: int) -> Iterator[Region]:
        """Yield the squares of this side that cover the raster, row by row."""
        height, width = self.size
        for top in range(0, height, side):
            for left in range(0, width, side):
                yield top, left, min(side, height - top), min(side, width - left)

    @functools.cached_property
    def _reduced(self) -> tuple[np.ndarray, np.ndarray]:
        """The reduced raster, as `_values` returns it."""
        factor = min(1.0, _OVERVIEW / max(self.size))
        height, width = (max(1, round(side * factor)) for side in self.size)
        # float32 cannot tell large integers apart.
        exact = np.result_type(self.dataset.dtypes[0], np.float32)
        values, known = np.empty((3, height, width), exact), np.empty((3, height, width), bool)
        # GDAL's own reduction takes 20 times as long.
        rows, columns = (
            [round(i * side / n) for i in range(n + 1)]
            for side, n in zip(self.size, (height, width))
        )
        for y in range(0, height, _PART):
            for x in range(0, width, _PART):
                last = min(y + _PART, height), min(x + _PART, width)
                window = (rows[y], rows[last[0]]), (columns[x], columns[last[1]])
                place = np.s_[y : last[0], x : last[1]]
                full, has_value = self._values(window)
                shape = last[1] - x, last[0] - y
                # The mean of the pixels with a value; a cell counts if it has any.
                for channel, mask, band, counts in zip(values, known, full, has_value):
                    share = _area_means(counts, shape)
                    mask[place] = share > 0
                    mean = _area_means(np.where(counts, band, 0).astype(exact), shape)
                    channel[place] = mean / np.where(share > 0, share, 1)
        return values, known

    def _values(self, window: tuple) -> tuple[np.ndarray, np.ndarray]:
        """Read a window.

        Returns:
            The values (3, h, w); (3, h, w) bool, False where a band has no value. A pixel has data
            if any band has a value.
        """
        rasterio = import_rasterio()
        bands = list(self.bands)
        try:
            values = self.dataset.read(bands, window=window)
            masks = self.dataset.read_masks(bands, window=window) > 0
        except rasterio.errors.RasterioIOError as error:
            reason = f"it is truncated or damaged ({gdal_reason(error)}); copy or create it again"
            raise ImageReadError(f"cannot read {self.path}: {reason}") from error
        # As in GDAL, a pixel has no data if no band has.
        valid = masks.any(axis=0)
        if values.dtype.kind == "f":
            valid &= np.isfinite(values).all(axis=0)
        masks[self._nodata_is_color] = True
        return values, masks & valid

    @functools.cached_property
    def _nodata_is_color(self) -> list[bool]:
        """For each band, whether the value for "no data" is also a colour, such as 0."""
        dataset, bands = self.dataset, [band - 1 for band in self.bands]
        kinds = [(dataset.nodatavals[i], np.dtype(dataset.dtypes[i])) for i in bands]
        return [v == 0 or (kind.kind == "u" and v == np.iinfo(kind).max) for v, kind in kinds]

    def _scaled(self, values: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Return values (3, h, w) in the ranges as bytes; unknown ones become 0."""
        if self.scaling != "none":
            low, high = (np.array(x)[:, None, None] for x in zip(*self.ranges))
            exact = np.result_type(values.dtype, np.float32)
            scale = (255 / (high - low)).astype(exact)
            values = np.nan_to_num((values.astype(exact) - low.astype(exact)) * scale)
        if values.dtype != np.uint8:
            values = np.rint(values).clip(0, 255).astype(np.uint8)
        return np.where(known, values, np.uint8(0))

    def _percentiles(self) -> list[tuple[float, float]]:
        values, known = self._reduced
        if not known.any():
            raise ImageReadError(f"cannot read {self.path}: its bands have no data")
        ranges = []
        for band, has_value in zip(values, known):
            some = band[has_value].astype(np.float64)
            low, high = np.percentile(some, _PERCENTILES) if some.size else (0, 1)
            ranges.append((float(low), float(high if high > low else low + 1)))
        return ranges

    def _checked_bands(self, bands: Sequence[int] | None) -> tuple[int, int, int]:
        count, dataset = self.dataset.count, self.dataset
        names = [interpretation.name for interpretation in dataset.colorinterp]
        if bands is None:
            if {"red", "green", "blue"} <= set(names):
                return tuple(names.index(name) + 1 for name in ("red", "green", "blue"))
            if count not in (1, 3, 4):
                choice = "three of them, such as --bands 3,2,1" if count > 2 else "one: --bands 1"
                raise ImageReadError(
                    f"cannot read {self.path}: it has {count} bands; choose {choice}"
                )
            bands = (1, 2, 3) if count > 1 else (1,)
        if len(bands) not in (1, 3) or not all(1 <= band <= count for band in bands):
            text = ",".join(map(str, bands))
            raise ImageReadError(
                f"cannot read {self.path}: --bands is {text}, but it needs one or three numbers "
                f"from 1 to {count}"
            )
        if names[bands[0] - 1] == "palette":
            raise ImageReadError(
                f"cannot read {self.path}: its values are entries of a colour table; convert it "
                "with gdal_translate -expand rgb"
            )
        return (bands[0],) * 3 if len(bands) == 1 else tuple(bands)


def _area_means(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Reduce values (h, w) to this (width, height); a bool becomes the fraction of True."""
    values = values.astype(np.float32) if values.dtype == bool else values
    return cv2.resize(values, shape, interpolation=cv2.INTER_AREA)
