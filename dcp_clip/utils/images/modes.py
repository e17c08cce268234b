"""Convert decoded images of every mode and depth to 8-bit RGB; docs/image_formats.md has the rules.

If a rule must guess or omit something, it logs a notice that names the file.
"""

import logging
import threading
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from dcp_clip.utils.images.files import orientation_of
from dcp_clip.utils.optional_packages import import_optional

logger = logging.getLogger(__name__)

# The files of a large data set can all have the same property, so notices of a kind are limited.
_MAX_NOTICES = 10
_MINIMUM_IS_WHITE = 0  # value of the TIFF tag 262
_notices: Counter[str] = Counter()
_noticed: set[tuple[str, str]] = set()
_notice_lock = threading.Lock()


def load_rgb(
    image: Image.Image,
    path: Path,
    size: tuple[int, int] | None = None,
    content: bytes | None = None,
) -> tuple[Image.Image, int, bool]:
    """Decode an opened image and convert it to RGB.

    Args:
        image: an image of which only the header has been read.
        path: its file.
        size: (width, height) that the result should have at least. JPEG files are decoded at a
            fraction of their size if that is sufficient.
        content: the bytes of the file, if they are in memory; `path` is then only its name.

    Returns:
        tuple: the RGB image; the EXIF orientation of the file; whether the image is already
        upright, because Pillow rotates TIFF files itself.
    """
    if getattr(image, "is_animated", False) and image.format != "MPO":
        # The further images of MPO, a kind of JPEG, are previews or gain maps of the first.
        _notice("frames", path, "it has several frames or pages; only the first is used")
    if size is not None:
        image.draft(None, size)
    raw_mode = _raw_mode(image)  # unknown after load()
    is_tiff = image.format == "TIFF"
    orientation = orientation_of(image) if is_tiff else 1
    image.load()
    if not is_tiff:
        orientation = orientation_of(image)  # in PNG files, it can follow the pixels
    return _convert(image, raw_mode, path, content), orientation, is_tiff


def _convert(image: Image.Image, raw_mode: str, path: Path, content: bytes | None) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_8_bits(image, raw_mode, path).convert("RGB")
    if ";16" in raw_mode:
        image = _colour_to_8_bits(image, path, content)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image.convert("RGB"), mask=image.getchannel("A"))
        return white
    return image.convert("RGB")


def _grey_to_8_bits(image: Image.Image, raw_mode: str, path: Path) -> Image.Image:
    """Convert grey values of 12, 16 or 32 bits, or floats, to 8 bits."""
    values = np.asarray(image)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if image.mode == "I" and image.format == "TIFF" and tags.get(339, (1,))[0] == 1:
        values = values.view(np.uint32)  # TIFF stores them without a sign
    if image.mode == "F":
        grey = _scale_floats(values, path)
    elif image.mode == "I" and image.format == "TIFF":
        grey = _scale_integers(values, path)
    elif "12" in raw_mode:
        grey = values >> 4
    elif image.format == "JPEG2000" or image.format == "PPM":
        grey = values >> 8  # the file states its range, and Pillow has scaled it to 16 bits
    else:
        grey = values >> _shift_of_16_bits(int(values.max()), path)
    grey = grey.astype(np.uint8)
    if tags.get(262) == _MINIMUM_IS_WHITE:
        grey = 255 - grey
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _shift_of_16_bits(high: int, path: Path) -> int:
    """Return how many of the 16 bits are dropped, from the largest value of the image."""
    if 0 < high <= 4095:
        _notice(
            "12 bits",
            path,
            f"it has 16 bits, but no value above {high}, so it is read as an image of 12 bits",
        )
        return 4
    return 8


def _scale_integers(values: np.ndarray, path: Path) -> np.ndarray:
    low, high = int(values.min()), int(values.max())
    if low >= 0 and high <= 65535:
        bits = 12 if high <= 4095 else 16
        if high:
            _notice(
                "integers",
                path,
                f"its integers have no stated range; from {low} to {high}, they are read as "
                f"values of {bits} bits",
            )
        return values >> (bits - 8)
    _notice(
        "integers",
        path,
        f"its integers have no stated range; {low} becomes black and {high} becomes white",
    )
    return _stretch(values, low, high)


def _scale_floats(values: np.ndarray, path: Path) -> np.ndarray:
    finite = np.isfinite(values)
    if not finite.any():
        raise ValueError("it has no finite value")
    low = float(values.min(where=finite, initial=np.inf))
    high = float(values.max(where=finite, initial=-np.inf))
    if low >= 0 and high <= 255:
        black, white = 0.0, 1.0 if high <= 1 else 255.0
    else:
        black, white = low, high
    _notice(
        "floats",
        path,
        f"its floating-point values, from {low:.4g} to {high:.4g}, have no stated range; "
        f"{black:.4g} becomes black and {white:.4g} becomes white",
    )
    return _stretch(np.where(finite, values, black), black, white)


def _stretch(values: np.ndarray, black: float, white: float) -> np.ndarray:
    # In 64 bits, because the difference of two values can exceed the range of 32 bits.
    scale = 255.0 / max(float(white) - float(black), 1e-300)
    grey = np.empty(values.shape, np.uint8)
    for row in range(len(values)):  # row by row, so that large images need little memory
        grey[row] = np.rint((values[row].astype(np.float64) - black) * scale)
    return grey


def _colour_to_8_bits(image: Image.Image, path: Path, content: bytes | None) -> Image.Image:
    """Check an image of which Pillow has kept the upper 8 of 16 bits; decode it again if needed.

    Cameras with 12 bits often store them in 16, where the upper 8 bits are almost black.
    """
    alpha = "A" in image.getbands()
    extrema = image.getextrema()
    if max(high for _, high in extrema[: len(extrema) - alpha]) > 15:
        transparent = image.info.get("transparency")
        if isinstance(transparent, tuple):
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
        return image
    # OpenCV is imported here because exported models run without it, except for such files.
    need = "An image with 12 bits of each colour needs"
    cv2 = import_optional("cv2", need, "opencv-python-headless")
    # Like Pillow, OpenCV rotates TIFF files but no others.
    stored = np.fromfile(path, np.uint8) if content is None else np.frombuffer(content, np.uint8)
    values = cv2.imdecode(stored, cv2.IMREAD_UNCHANGED)
    if values is None or values.dtype != np.uint16 or values.shape[:2] != image.size[::-1]:
        return image
    if values.ndim == 2:
        values = values[..., None].repeat(3, axis=2)
    colour = values[..., 2::-1]
    pixels = (colour >> _shift_of_16_bits(int(colour.max()), path)).astype(np.uint8)
    if values.shape[2] == 4:
        opacity = values[..., 3:]
        # An alpha channel has the range of the colours, or the full range.
        opacity = opacity >> (4 if opacity.max() <= 4095 else 8)
        pixels = np.concatenate([pixels, opacity.astype(np.uint8)], axis=2)
    return Image.fromarray(np.ascontiguousarray(pixels))


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of the stored depth, such as "RGB;16B"; "" if it has none."""
    arguments = image.tile[0][3] if image.tile else ""
    if isinstance(arguments, tuple):
        arguments = arguments[0] if arguments else ""
    return arguments if isinstance(arguments, str) else ""


def _notice(kind: str, path: Path, text: str) -> None:
    """Log a notice about a file once, and at most `_MAX_NOTICES` of a kind in a process."""
    with _notice_lock:
        if (kind, str(path)) in _noticed or _notices[kind] > _MAX_NOTICES:
            return
        _noticed.add((kind, str(path)))
        _notices[kind] += 1
        last = _notices[kind] > _MAX_NOTICES
    if last:
        logger.warning("More images need the same kind of notice as %s; they are not listed.", path)
    else:
        logger.warning("%s: %s.", path, text)
