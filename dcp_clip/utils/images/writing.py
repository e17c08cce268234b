"""Write image files."""

import io
import os
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from dcp_clip.utils.atomic_files import atomic_write

__all__ = ["write_image", "write_jpeg", "write_png"]


def write_image(path: str | os.PathLike, image: Image.Image, **options: Any) -> None:
    """Write an image file atomically.

    Args:
        path: the file to write.
        image: the image.
        options: those of `Image.save`; "format" is required.

    Raises:
        WriteError: if the file cannot be written.
    """
    # Pillow's JPEG and TIFF encoders write to the file's number and do not tell why they failed.
    content = io.BytesIO()
    image.save(content, **options)
    with atomic_write(path) as f:
        f.write(content.getbuffer())


def write_jpeg(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write a picture to a JPEG file atomically, in a tenth of the time of a PNG file.

    Args:
        path: the file to write.
        array: (H, W, 3) uint8 RGB.

    Raises:
        WriteError: if the file cannot be written.
    """
    # Without subsampling of colours, because thin regions would lose theirs.
    write_image(path, Image.fromarray(array), format="JPEG", quality=90, subsampling=0)


def write_png(
    path: str | os.PathLike,
    array: np.ndarray,
    palette: Sequence[tuple[int, int, int]] | None = None,
) -> None:
    """Write a PNG file atomically.

    Args:
        path: the file to write.
        array: (H, W, 3) or (H, W) uint8, or (H, W) uint16.
        palette: up to 256 RGB colours; `array`, (H, W) uint8, then contains indices of colours.

    Raises:
        ValueError: if a PNG, or a PNG with a palette, cannot store the array.
        WriteError: if the file cannot be written.
    """
    if palette is not None and (array.ndim != 2 or array.dtype != np.uint8 or len(palette) > 256):
        raise ValueError(
            f"{path}: a palette PNG needs (H, W) uint8 indices and at most 256 colours, "
            f"got {array.shape} {array.dtype} and {len(palette)} colours"
        )
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    colour = array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    if not (grey or colour):
        raise ValueError(f"{path}: a PNG cannot store an array {array.shape} {array.dtype}")
    image = Image.fromarray(np.ascontiguousarray(array))
    options = {}
    if palette is not None:
        image.putpalette(np.asarray(palette, np.uint8).tobytes())
        options["bits"] = 8  # Pillow would use fewer bits, which some readers do not support
        # Label maps have long runs. This is faster than the default, and the files are smaller.
        options["compress_type"] = zlib.Z_RLE
    write_image(path, image, format="PNG", **options)
