"""Use the package rasterio, which is optional."""

from __future__ import annotations

import os
import warnings
from typing import Any

from dcp_clip.utils.optional_packages import import_optional

__all__ = ["gdal_reason", "import_rasterio", "open_raster"]


def import_rasterio() -> Any:
    """Import rasterio.

    Raises:
        ImportError: if it is not installed; the message says how to install it.
    """
    return import_optional("rasterio", "Rasters need")


def open_raster(path: str | os.PathLike, mode: str = "r", **options: Any) -> Any:
    """Open a file as `rasterio.open` does, without a warning if it has no georeference."""
    rasterio = import_rasterio()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        return rasterio.open(path, mode, **options)


def gdal_reason(error: BaseException) -> str:
    """Return what GDAL says about an error: that of rasterio can lack it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error)
