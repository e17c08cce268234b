"""Read photographs.

Training, evaluation, `Predictor` and the demo read all photographs with this module, so that the
same file gives the same pixels everywhere. docs/image_formats.md has the rules.
"""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from dcp_clip.utils.images.files import ImageReadError, open_image
from dcp_clip.utils.images.modes import load_rgb

__all__ = [
    "ImageReadError",
    "as_stored",
    "read_image",
    "read_image_and_orientation",
    "read_image_and_size",
    "reduced_size",
    "shrink",
]

# How an image of each EXIF orientation becomes upright, and the inverse.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STORED = _UPRIGHT | {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}


def read_image(path: str | os.PathLike, max_pixels: int | None = None) -> np.ndarray:
    """Read an image file as an (H, W, 3) uint8 RGB array; see `read_image_and_size`."""
    return read_image_and_size(path, max_pixels)[0]


def read_image_and_size(
    path: str | os.PathLike, max_pixels: int | None = None, content: bytes | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image file as an RGB array, and reduce very large images.

    - The image is rotated according to its EXIF orientation, in every format.
    - Greyscale, palette and CMYK images are converted to RGB.
    - Transparent pixels are blended with white.
    - Of 16-bit values, the upper 8 bits are used. If no value is above 4095, the image is read as
      12 bits. The range of 32-bit integers and of floats is guessed from the values. A notice is
      logged if a range is guessed.
    - The first frame of animations and of files with several pages is read, with a notice.

    Args:
        path: an image file; its format is recognised by content, not by name.
        max_pixels: images with more pixels are reduced to at most this number. JPEG files are then
            decoded at a fraction of their size, which also bounds memory.
        content: the bytes of the file, if they are in memory; `path` is then only its name.

    Returns:
        tuple: the image, (H, W, 3) uint8 RGB; the upright (height, width) before the reduction.

    Raises:
        ImageReadError: if the file does not exist, is empty, damaged, truncated or not an image,
            or has more than 300 million pixels.
    """
    image, size, _ = _read(path, max_pixels, content)
    return image, size


def read_image_and_orientation(path: str | os.PathLike) -> tuple[np.ndarray, int]:
    """Read an image like `read_image`, and its EXIF orientation, 1 to 8; see `as_stored`.

    Raises:
        ImageReadError: see `read_image_and_size`.
    """
    image, _, orientation = _read(path, None)
    return image, orientation


def as_stored(image: np.ndarray, orientation: int) -> np.ndarray:
    """Undo the rotation of an upright image (H, W, 3) with this EXIF orientation."""
    if orientation not in _STORED:
        return image
    return np.array(Image.fromarray(image).transpose(_STORED[orientation]))


def _read(
    path: str | os.PathLike, max_pixels: int | None, content: bytes | None = None
) -> tuple[np.ndarray, tuple[int, int], int]:
    """Return the upright image, its (height, width) before the reduction, and its orientation."""
    path = Path(path)
    with open_image(path, content=content) as file:
        width, height = file.size
        target = reduced_size(file.size, max_pixels)
        enough = (2 * target[0], 2 * target[1])
        image, orientation, upright = load_rgb(file, path, enough, content)
        if max_pixels is not None and image.width * image.height > max_pixels:
            image = shrink(image, target)
        if not upright and orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
            if orientation >= 5:
                width, height = height, width
        return np.array(image), (height, width), orientation


def shrink(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Resize an image to a smaller (width, height), as images are reduced for the model."""
    # Pillow's bilinear filter averages over the source area. Bicubic would overshoot at edges.
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def reduced_size(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Reduce a (width, height), or (height, width), to at most `max_pixels` pixels."""
    long, short = max(size), min(size)
    if max_pixels is None or long * short <= max_pixels:
        return size
    short = max(1, int(short * (max_pixels / (long * short)) ** 0.5))
    # The long side is computed from the rounded short side, so that narrow images meet the limit.
    long = min(max_pixels // short, max(1, round(short * max(size) / min(size))))
    return (long, short) if size[0] >= size[1] else (short, long)
