"""Read image files of many formats, and write files atomically.

The demo and `Predictor` read all image files with `read_image_and_size`, so damaged files cause the
same errors everywhere. Results are written with `atomic_write`, so a file is never incomplete.
"""

import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# These formats are recognised by content. Pillow also reads formats without a reliable signature
# (any file can look like TGA), and EPS, which starts another program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# The largest cameras have about 200 megapixels. Pillow's own limit (89) would reject their images.
_MAX_FILE_PIXELS = 300_000_000
# Pillow can resize images in these modes. Images in other modes are first converted to RGB(A).
_RESIZABLE = ("L", "LA", "RGB", "RGBA", "CMYK", "I", "I;16", "F")
_open_lock = threading.Lock()


class ImageReadError(ValueError):
    """A file cannot be read as an image; the message is one sentence and contains the path."""


def read_image(path: str | os.PathLike, max_pixels: int | None = None) -> np.ndarray:
    """Read an image file as an (H, W, 3) uint8 RGB array; see `read_image_and_size`."""
    return read_image_and_size(path, max_pixels)[0]


def read_image_and_size(
    path: str | os.PathLike, max_pixels: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image file as an RGB array, and reduce very large images.

    - The image is rotated according to its EXIF orientation.
    - Greyscale, palette and CMYK images are converted to RGB.
    - Transparent pixels are blended with white.
    - 16-bit values are scaled from their full range. The range of 32-bit integer and float images
      is unknown, so they are scaled from their minimum and maximum.
    - The first frame of animations and of files with several pages is read.

    Args:
        path: an image file; its format is recognised by content, not by name.
        max_pixels: images with more pixels are reduced to at most this number. JPEG files are then
            decoded at a fraction of their size, which also bounds memory.

    Returns:
        tuple: the image, (H, W, 3) uint8 RGB; the upright (height, width) before the reduction.

    Raises:
        ImageReadError: if the file does not exist, is empty, damaged, truncated or not an image,
            or has more than 300 million pixels.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ImageReadError(f"cannot read {path}: it is a folder or device, not an image file")
        if path.stat().st_size == 0:
            raise ImageReadError(f"cannot read {path}: the file is empty")
        with _open(path) as image:
            return _decode(image, path, max_pixels)
    except ImageReadError:
        raise
    except UnidentifiedImageError as e:
        reason = "it is not an image, or its header is damaged"
        if path.suffix.lower() in (".heic", ".heif"):
            reason = "the HEIC format is not supported; convert it to JPEG"
        raise ImageReadError(f"cannot read {path}: {reason}") from e
    except Exception as e:  # Pillow's decoders raise many types of exceptions for damaged files
        reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise ImageReadError(f"cannot read {path}: {' '.join(reason.split())}") from e


def _open(path: Path) -> Image.Image:
    """Open an image without Pillow's limit on the pixels; `_decode` has a higher limit."""
    # Pillow reads the limit from a global variable while it parses the header.
    with _open_lock:
        Image.init()  # Image.open knows only common formats before this call
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(
    image: Image.Image, path: Path, max_pixels: int | None
) -> tuple[np.ndarray, tuple[int, int]]:
    width, height = image.size
    if width * height > _MAX_FILE_PIXELS:
        raise ImageReadError(
            f"cannot read {path}: {width} x {height} pixels are more than the limit of "
            f"{_MAX_FILE_PIXELS // 10**6} megapixels; reduce the image"
        )
    target = reduced_size(image.size, max_pixels)
    # This tells the JPEG decoder to decode at 1/2, 1/4 or 1/8 size. It must precede load().
    image.draft(None, (2 * target[0], 2 * target[1]))
    image.load()
    info = {k: v for k, v in image.info.items() if k != "transparency"}
    rotated = False
    with suppress(Exception):  # a damaged EXIF block does not matter
        # Pillow itself rotates TIFF images in load(), and removes their orientation.
        rotated = image.getexif().get(0x0112) in (5, 6, 7, 8)
    if image.mode.startswith("I;16"):  # both byte orders
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    if image.mode not in _RESIZABLE or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if max_pixels is not None and image.width * image.height > max_pixels:
        # Pillow's bilinear filter averages over the source area. Bicubic would overshoot at edges.
        image = image.resize(target, Image.Resampling.BILINEAR, reducing_gap=2.0)
    image = _to_rgb(image)
    image.info = info
    with suppress(Exception):
        image = ImageOps.exif_transpose(image)
    return np.array(image), (width, height) if rotated else (height, width)


def reduced_size(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Reduce a (width, height), or (height, width), to at most `max_pixels` pixels."""
    long, short = max(size), min(size)
    if max_pixels is None or long * short <= max_pixels:
        return size
    short = max(1, int(short * (max_pixels / (long * short)) ** 0.5))
    # The long side is computed from the rounded short side, so that narrow images meet the limit.
    long = min(max_pixels // short, max(1, round(short * max(size) / min(size))))
    return (long, short) if size[0] >= size[1] else (short, long)


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of one of the `_RESIZABLE` modes to RGB."""
    if image.mode in ("I", "I;16", "F"):
        values = np.nan_to_num(np.asarray(image, dtype=np.float32))
        low, high = float(values.min()), float(values.max())
        if image.mode == "I;16" or (image.mode == "I" and low >= 0 and high <= 65535):
            low, high = 0.0, 65535.0
        values = (values - low) * (255.0 / max(high - low, 1e-12))
        image = Image.fromarray(values.astype(np.uint8))
    if image.mode in ("LA", "RGBA"):
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "wb") -> Iterator[IO]:
    """Open a file for writing that gets its name only when it is complete.

    The content is written to a hidden file in the same folder. If the block ends without an error,
    the hidden file is synced and replaces `path`; otherwise it is deleted and `path` is unchanged.

    Args:
        path: the file to write; its folder must exist.
        mode: "wb", or "w" for UTF-8 text.

    Yields:
        the open file.

    Raises:
        OSError: if the folder does not exist or cannot be written to.
    """
    path = Path(path)
    if mode not in ("wb", "w"):
        raise ValueError(f"atomic_write: the mode must be 'wb' or 'w', got {mode!r}")
    # The name is not derived from `path`, which may already have the maximum length.
    part = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        with open(part, mode, encoding=None if mode == "wb" else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:  # also after KeyboardInterrupt
        part.unlink(missing_ok=True)
        raise


def write_png(
    path: str | os.PathLike,
    array: np.ndarray,
    palette: Sequence[tuple[int, int, int]] | None = None,
    quick: bool = False,
) -> None:
    """Write a PNG file atomically.

    Args:
        path: the file to write.
        array: (H, W, 3) or (H, W) uint8, or (H, W) uint16.
        palette: up to 256 RGB colours; `array`, (H, W) uint8, then contains indices of colours.
        quick: write photographs in a sixth of the time, with a quarter more bytes. Cannot be
            combined with a palette.

    Raises:
        ValueError: if a PNG, or a PNG with a palette, cannot store the array.
        OSError: if the file cannot be written.
    """
    if quick and palette is not None:
        raise ValueError(f"{path}: `quick` cannot be combined with a palette")
    if palette is not None and (array.ndim != 2 or array.dtype != np.uint8 or len(palette) > 256):
        raise ValueError(
            f"{path}: a palette PNG needs (H, W) uint8 indices and at most 256 colours, "
            f"got {array.shape} {array.dtype} and {len(palette)} colours"
        )
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    colour = array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    if not (grey or colour):
        raise ValueError(f"{path}: a PNG cannot store an array {array.shape} {array.dtype}")
    if quick:
        # By default OpenCV uses one row filter and run-length encoding. Pillow tries all filters.
        pixels = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if colour else array
        _, content = cv2.imencode(".png", pixels)
        with atomic_write(path) as f:
            f.write(content)
        return
    image = Image.fromarray(np.ascontiguousarray(array))
    options = {}
    if palette is not None:
        image.putpalette(np.asarray(palette, np.uint8).tobytes())
        options["bits"] = 8  # Pillow would use fewer bits, which some readers do not support
    with atomic_write(path) as f:
        image.save(f, format="PNG", **options)
