"""Sprites: the drawings as images, rendered once and stored beside the scenes.

``sprites/<style>.npz`` has ``images`` (N, S, S, 4) uint8, ``names`` (N,) and the ``licence`` of the
art. Images are RGBA with straight alpha. Each drawing is trimmed and centred, and its longer side
has S pixels.
"""

import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from dcp_clip.data.pairing import DatasetError
from dcp_clip.utils.atomic_files import atomic_write

# Pixels with a lower alpha count as margin.
_VISIBLE = 20
# If fewer than this fraction of the pixels are visible, the rendering has failed.
_MIN_AREA = 0.01


def check_renderer() -> None:
    """Raise DatasetError if resvg-py is not installed."""
    _import_renderer()


def render_svg(svg: str, size: int) -> np.ndarray:
    """Render an SVG document with resvg, trim it and fit it into a square.

    Args:
        svg: the document. Fonts are ignored, so that every machine renders the same pixels.
        size: S, length of the longer side in pixels.

    Returns:
        (S, S, 4) uint8, RGBA with straight alpha.

    Raises:
        DatasetError: if resvg-py is not installed, or the document is invalid or empty.
    """
    renderer = _import_renderer()
    try:
        # Twice the size, because the margins are removed and the rest is resized.
        png = renderer.svg_to_bytes(svg_string=svg, width=2 * size, skip_system_fonts=True)
    except (ValueError, RuntimeError) as e:
        raise DatasetError(f"An SVG document cannot be rendered: {e}.") from e
    return _fit_file(bytes(png), "PNG", size)


def render_drawing(drawing: str | bytes, size: int) -> np.ndarray:
    """Turn a drawing, an SVG document or a WebP file, into a sprite (S, S, 4) uint8.

    Raises:
        DatasetError: see :func:`render_svg`; or if the file is no image, or empty.
    """
    if isinstance(drawing, str):
        return render_svg(drawing, size)
    try:
        return _fit_file(drawing, "WEBP", size)
    except (OSError, ValueError) as e:
        raise DatasetError(f"A WebP file cannot be read: {e}.") from e


def _fit_file(data: bytes, file_format: str, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=[file_format]) as image:
        return fit_sprite(np.array(image.convert("RGBA")), size)


def fit_sprite(rgba: np.ndarray, size: int) -> np.ndarray:
    """Trim the transparent margins of an image (H, W, 4) and centre it in a square (S, S, 4).

    Raises:
        DatasetError: if the image is empty.
    """
    rows, columns = np.nonzero(rgba[..., 3] > _VISIBLE)
    if len(rows) < _MIN_AREA * rgba.shape[0] * rgba.shape[1]:
        raise DatasetError("A drawing is empty.")
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    image = Image.fromarray(rgba).crop(tuple(int(v) for v in box))
    scale = size / max(image.size)
    width, height = (max(1, round(scale * side)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BOX)
    square = Image.new("RGBA", (size, size))
    square.paste(image, ((size - width) // 2, (size - height) // 2))
    return np.array(square)


def save_sprites(
    path: Path, names: Sequence[str], images: Sequence[np.ndarray], licence: str = ""
) -> None:
    """Write the sprites of one style: N names, which may repeat, and N images (S, S, 4) uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as f:
        np.savez_compressed(f, names=np.array(names), images=np.stack(images), licence=licence)


def load_sprites(folder: str | Path, styles: Iterable[str]) -> dict[tuple[str, str], np.ndarray]:
    """Load all sprites of some styles.

    Args:
        folder: ``$DETECTRON2_DATASETS/emoji_scenes/sprites``.
        styles: names of styles, see :mod:`dcp_clip.emoji_scenes.art`.

    Returns:
        ``{(style, name): (V, S, S, 4) uint8 RGBA}`` with V >= 1 drawings of each name of a style.

    Raises:
        DatasetError: if a file is missing or damaged.
    """
    sprites: dict[tuple[str, str], np.ndarray] = {}
    for style in styles:
        names, images, _ = _load(str(Path(folder) / f"{style}.npz"))
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(names):
            rows.setdefault(name, []).append(row)
        sprites |= {(style, name): images[found] for name, found in rows.items()}
    return sprites


def describe_sprites(path: Path) -> tuple[int, str]:
    """The size S of a style's sprites, and the licence of its art."""
    _, images, licence = _load(str(path))
    return images.shape[1], licence


def _import_renderer() -> ModuleType:
    try:
        import resvg_py
    except ImportError as e:
        raise DatasetError(
            "The Python package resvg-py, which renders the art, is not installed: "
            "pip install -e '.[emoji]'."
        ) from e
    return resvg_py


@functools.lru_cache(maxsize=16)
def _load(path: str) -> tuple[list[str], np.ndarray, str]:
    try:
        if Path(path).exists() and not Path(path).is_file():  # a pipe would block
            raise ValueError("it is no regular file")
        with np.load(path, allow_pickle=False) as file:
            names, images, licence = (file[key] for key in ("names", "images", "licence"))
        size = images.shape[1] if images.ndim == 4 else 0
        if images.dtype != np.uint8 or images.shape != (names.size, size, size, 4):
            raise ValueError(f"its images are {images.shape} {images.dtype}")
        if names.dtype.kind != "U" or names.ndim != 1:
            raise ValueError(f"its names are {names.shape} {names.dtype}")
        return names.tolist(), images, str(licence)
    except FileNotFoundError as e:
        raise DatasetError(
            f"The sprites {path} do not exist: run `python datasets/prepare_emoji_scenes.py` "
            "(with --pretraining-art for PRETRAIN.MORE_ART)."
        ) from e
    except Exception as e:  # damaged archives raise many types of errors
        reason = " ".join(str(e).split()) or type(e).__name__
        raise DatasetError(f"The sprites {path} cannot be read ({reason}): remove the file.") from e
