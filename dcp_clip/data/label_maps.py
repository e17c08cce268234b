"""Read the label maps of prepared benchmarks and of users' own data.

The labels are the numbers that the file stores. If the numbers could mean something else, the file
is an error, because no later step can detect a wrong label.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from dcp_clip.data.pairing import DatasetError
from dcp_clip.utils.images.files import ImageReadError, open_image, orientation_of

# The value of ignored pixels in 16-bit label maps.
IGNORE_LABEL_16 = 65535
_FORMATS = ("PNG", "TIFF")
# TIFF can hold JPEG, JPEG 2000, WebP and the like, which change the numbers.
_LOSSLESS = {"raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "lzma", "zstd"}
_LOSSLESS |= {"tiff_raw_16", "tiff_ccitt", "group3", "group4"}
_SAVE_AGAIN = "save it as a PNG with 8 or 16 bits (see docs/custom_data.md)"


def read_labels(path: str | Path) -> np.ndarray:
    """Read a label map with one channel of 8, 16 or 32 bits.

    The values of a palette image are its indices, not its colours.

    Returns:
        (H, W) integers.

    Raises:
        DatasetError: naming the file, if it cannot be read, holds colours, or is ambiguous: see
            :func:`read_pixels`.
    """
    kind = "a single channel of 8 or 16 bits that holds label numbers (see docs/custom_data.md)"
    return read_pixels(path, ("L", "P", "I", "I;16", "I;16B"), kind)


def read_pixels(path: str | Path, modes: tuple[str, ...], kind: str) -> np.ndarray:
    """Read the pixels of a label map without conversion, if its Pillow mode is accepted.

    Args:
        path: a PNG or TIFF file.
        modes: the accepted modes.
        kind: a description of the accepted modes, for the error.

    Returns:
        (H, W) or (H, W, 3), as stored.

    Raises:
        DatasetError: naming the file, if it cannot be read or has another mode, or if its numbers
            are ambiguous. They are ambiguous if the file

            - is a grey image with 1, 2 or 4 bits. Programs that shrink PNG files store the grey
              levels 0 and 255 as 0 and 1, so that the stored number is not the label.
            - has a palette of greys that are not their indices, for the same reason.
            - stores white as 0, has an EXIF rotation, several pages, or a lossy compression.
    """
    with _open(path) as image:
        # Read before load() removes them. Reading the EXIF data of a PNG file also calls load().
        bits, palette = _grey_bits(image), _palette(image)
        problem = _problem_of_header(image, modes, kind)
        pixels = np.empty(0)
        if not problem:
            image.load()
            pixels = np.array(image)
            problem = _problem_of_pixels(image.mode, pixels, bits, palette)
    if problem:
        raise DatasetError(f"{path} {problem}.")
    return pixels.astype(np.uint8) if pixels.dtype == bool else pixels


def label_size(path: str | Path) -> tuple[int, int]:
    """Read the (height, width) of a label map, without its pixels.

    Raises:
        DatasetError: naming the file, if it cannot be read.
    """
    with _open(path) as image:
        return image.height, image.width


def read_palette(path: str | Path) -> np.ndarray:
    """Read the palette of a label map, without its pixels.

    Returns:
        (N, 3) uint8 colours that the file stores; N is 0 if it has no palette.

    Raises:
        DatasetError: naming the file, if it cannot be read.
    """
    with _open(path) as image:
        return _palette(image)


@contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    try:
        with open_image(path, _FORMATS) as image:
            yield image
    except ImageReadError as e:
        reason = str(e).removeprefix(f"cannot read {path}: ")
        if "not an image," in reason:
            reason = "it is neither PNG nor TIFF, or its header is damaged"
        raise DatasetError(f"The label map {path} cannot be read: {reason}.") from e


def _problem_of_header(image: Image.Image, modes: tuple[str, ...], kind: str) -> str:
    one_bit = image.mode == "1" and "L" in modes  # _problem_of_pixels explains it
    if image.mode not in modes and not one_bit:
        return f"is no label map: its pixels are {image.mode}, not {kind}"
    compression = image.info.get("compression", "raw")
    if image.format == "TIFF" and compression not in _LOSSLESS:
        return f"has the compression {compression}, which changes label numbers: {_SAVE_AGAIN}"
    if image.format == "TIFF" and image.mode != "P" and image.tag_v2.get(262) == 0:
        return f"stores white as 0, so its label numbers may be inverted: {_SAVE_AGAIN}"
    if getattr(image, "is_animated", False):
        return "has several pages, and only one can be the label map: save it as a file of its own"
    if orientation_of(image) != 1:
        return (
            "has an EXIF rotation, so it may fit the photograph as stored or as displayed: save it "
            "without EXIF data"
        )
    return ""


def _problem_of_pixels(mode: str, pixels: np.ndarray, bits: int, palette: np.ndarray) -> str:
    if mode in ("1", "L") and bits < 8 and pixels.any():
        white = 2**bits - 1
        stored = int(pixels.max()) if mode == "1" else int(pixels.max()) * white // 255
        return (
            f"is a grey image with {bits} bits, so its number {stored} could be the label {stored} "
            f"or the grey level {stored * 255 // white}: {_SAVE_AGAIN}"
        )
    if mode == "P" and len(palette) and (palette == palette[:, :1]).all():
        used = np.flatnonzero(np.bincount(pixels.ravel(), minlength=256))
        used = used[used < len(palette)]
        greys = palette[used, 0]
        # A program that shrinks files never gives two indices the same grey.
        if (greys != used).any() and len(np.unique(greys)) == len(greys):
            index = used[greys != used][0]
            return (
                f"has a palette of greys in which the index {index} is the grey level "
                f"{palette[index, 0]}, so either could be the label: {_SAVE_AGAIN}, without a "
                "palette"
            )
    return ""


def _palette(image: Image.Image) -> np.ndarray:
    """Return the colours (N, 3) uint8 of an image that is not yet decoded."""
    if image.mode != "P" or image.palette is None:
        return np.empty((0, 3), np.uint8)
    values = np.frombuffer(bytes(image.palette.palette), np.uint8)
    values = values[: len(values) // 3 * 3]
    if image.palette.rawmode == "RGB;L":  # TIFF: all reds, all greens, all blues
        return values.reshape(3, -1).T
    return values.reshape(-1, 3)


def _grey_bits(image: Image.Image) -> int:
    """Return the bits of a grey pixel in the file. Pillow scales fewer than 8 bits to 8."""
    if image.mode == "1":
        return 1
    if image.format == "TIFF":
        return int(image.tag_v2.get(258, (1,))[0])
    raw_mode = str(image.tile[0][3]) if image.tile else ""
    return int(raw_mode[2:]) if raw_mode in ("L;2", "L;4") else 8
