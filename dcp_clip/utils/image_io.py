"""Reading photographs of every kind, and writing results safely.

Everything a user may hand to the demo or to `Predictor` comes in through `read_image` (or
`read_image_and_size`), and everything goes out through `atomic_write`, so that bad files and half
written results are dealt with in one place.
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
from PIL import Image, UnidentifiedImageError

# Formats recognised by their content. Of Pillow's others, some have no reliable signature (any file
# may pass for TGA), and EPS starts another program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
# The largest cameras make about 200 megapixels. Pillow's own limit (89) refuses honest photographs.
_MAX_FILE_PIXELS = 300_000_000
# Modes that Pillow resizes as they are; the others become RGB or RGBA first.
_RESIZABLE = ("L", "LA", "RGB", "RGBA", "CMYK", "I", "I;16", "F")
_open_lock = threading.Lock()


class ImageReadError(ValueError):
    """A file could not be read as an image; the message is one sentence that names the file."""


def read_image(path: str | os.PathLike, max_pixels: int | None = None) -> np.ndarray:
    """`read_image_and_size` for those who need the image only."""
    return read_image_and_size(path, max_pixels)[0]


def read_image_and_size(
    path: str | os.PathLike, max_pixels: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image file as an RGB array, reduced while decoding if it is very large.

    - The EXIF orientation is obeyed.
    - Greyscale, palette and CMYK images become RGB.
    - Transparent pixels are laid over white, as a page would show them.
    - 16-bit images are scaled by their full range; 32-bit integer and float images, whose range no
      format declares, are stretched from their lowest to their highest value.
    - Of animations and of files with several pages, the first frame is read.

    Args:
        path: an image file; its format is recognised by content, not by name.
        max_pixels: if given and the image has more pixels, it is reduced to at most so many. A JPEG
            is then decoded at a fraction of its size, so that memory stays small as well.

    Returns:
        tuple: the image, (H, W, 3) uint8 RGB, and the upright (height, width) before reduction.

    Raises:
        ImageReadError: if the file does not exist, is empty, damaged, truncated, no image, or has
            more than 300 million pixels.
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
            reason = "HEIC is not among the formats read here; convert it to JPEG"
        raise ImageReadError(f"cannot read {path}: {reason}") from e
    except Exception as e:  # on damaged files, Pillow's decoders raise nearly any kind of exception
        reason = getattr(e, "strerror", None) or str(e) or type(e).__name__
        raise ImageReadError(f"cannot read {path}: {' '.join(reason.split())}") from e


def _open(path: Path) -> Image.Image:
    """`Image.open` without Pillow's limit, which `_decode` replaces by a wider one."""
    # The limit is a module global that is looked at while the header is parsed: change it briefly.
    with _open_lock:
        Image.init()  # loads the plugins, once; Image.open knows only the common ones otherwise
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _decode(
    image: Image.Image, path: Path, max_pixels: int | None
) -> tuple[np.ndarray, tuple[int, int]]:
    # Imported here: detectron2.data is heavy, and who only lists or writes files does without.
    from detectron2.data.detection_utils import _apply_exif_orientation

    width, height = image.size
    if width * height > _MAX_FILE_PIXELS:
        raise ImageReadError(
            f"cannot read {path}: {width} x {height} pixels are more than the limit of "
            f"{_MAX_FILE_PIXELS // 10**6} megapixels; reduce the image first"
        )
    target = reduced_size(image.size, max_pixels)
    # Must come before the pixels are loaded: tells a JPEG decoder to work at 1/2, 1/4 or 1/8 size.
    image.draft(None, (2 * target[0], 2 * target[1]))
    image.load()
    info = {k: v for k, v in image.info.items() if k != "transparency"}
    rotated = False
    with suppress(Exception):  # a damaged EXIF block does not make the photograph unreadable
        # TIFF turns its pixels while loading; no orientation is left then, and the size is upright.
        rotated = image.getexif().get(0x0112) in (5, 6, 7, 8)
    if image.mode.startswith("I;16"):  # in either order of bytes
        image = Image.fromarray(np.asarray(image).astype(np.uint16))
    if image.mode not in _RESIZABLE or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if max_pixels is not None and image.width * image.height > max_pixels:
        # The bilinear filter covers the whole source area and, unlike bicubic, never overshoots.
        image = image.resize(target, Image.Resampling.BILINEAR, reducing_gap=2.0)
    image = _to_rgb(image)
    image.info = info
    image = _apply_exif_orientation(image)
    return np.array(image), (width, height) if rotated else (height, width)


def reduced_size(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Scale a (width, height), or (height, width), down to at most `max_pixels` pixels."""
    long, short = max(size), min(size)
    if max_pixels is None or long * short <= max_pixels:
        return size
    short = max(1, int(short * (max_pixels / (long * short)) ** 0.5))
    # From the short side, so that the sides of a strip one pixel wide still fit the limit.
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
    """Open a file for writing that appears under its name only when it is complete.

    The content goes to a hidden file in the same folder, which is synced and renamed when the block
    ends without an error, and removed otherwise. An older file of that name stays whole until then.

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
        raise ValueError(f"atomic_write: mode {mode!r} is neither 'wb' nor 'w'")
    # A name of its own, not one made from `path`: that may already have the longest legal name.
    part = path.parent / f".{uuid.uuid4().hex}.part"
    try:
        with open(part, mode, encoding=None if mode == "wb" else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except BaseException:  # KeyboardInterrupt as well: leave nothing behind
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
        palette: up to 256 RGB colours; `array`, (H, W) uint8, then holds indices into them.
        quick: compress less: a photograph takes a sixth of the time, and a quarter more bytes. Not
            with a palette.

    Raises:
        ValueError: if the array's shape and type do not fit a PNG, or do not fit a palette.
        OSError: if the file cannot be written.
    """
    if quick and palette is not None:
        raise ValueError(f"{path}: a palette PNG cannot be written quickly")
    if palette is not None and (array.ndim != 2 or array.dtype != np.uint8 or len(palette) > 256):
        raise ValueError(
            f"{path}: a palette PNG needs (H, W) uint8 indices and at most 256 colours, "
            f"not {array.shape} {array.dtype} and {len(palette)}"
        )
    grey = array.ndim == 2 and array.dtype in (np.uint8, np.uint16)
    colour = array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.uint8
    if not (grey or colour):
        raise ValueError(f"{path}: no PNG can be made of an array {array.shape} {array.dtype}")
    if quick:
        # OpenCV's own settings: one row filter and run lengths. Pillow tries every filter on a row.
        in_its_order = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if colour else array
        _, content = cv2.imencode(".png", in_its_order)
        with atomic_write(path) as f:
            f.write(content)
        return
    image = Image.fromarray(np.ascontiguousarray(array))
    options = {}
    if palette is not None:
        image.putpalette(np.asarray(palette, np.uint8).tobytes())
        options["bits"] = 8  # Pillow would pack small palettes, which not every reader unpacks
    with atomic_write(path) as f:
        image.save(f, format="PNG", **options)
