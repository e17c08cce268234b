"""Pictures of a segmentation: the photograph with coloured regions and a legend, and label maps.

The colours, names and order all come from one `Vocabulary`, so a picture cannot be labelled with
the names of another.
"""

import functools
import logging
import math
import os
from dataclasses import dataclass
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dcp_clip.utils.image_io import write_png
from dcp_clip.utils.label_map import category_shares
from dcp_clip.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

# The overlay is for looking at: larger pictures are reduced to this long side, in pixels ...
MAX_SIDE = 2048
# ... and smaller ones enlarged to it, as a legend beside a thumbnail would be larger than it.
MIN_SIDE = 480
# A palette PNG holds 256 values; 255 is left free, as datasets use it for "ignore".
MAX_PALETTE_CATEGORIES = 255

_BACKGROUND, _TEXT, _FAINT, _OTHER = (255,) * 3, (32, 33, 36), (112, 117, 122), (190, 190, 190)
# Longest name in a legend, in multiples of the font size.
_MAX_NAME_EMS = 13


def draw_overlay(
    image: np.ndarray,
    label_map: np.ndarray,
    vocabulary: Vocabulary,
    shares: np.ndarray | None = None,
    alpha: float = 0.5,
    min_share: float = 0.005,
) -> np.ndarray:
    """Draw the regions over a photograph, with a legend beside it that covers nothing.

    The legend stands below a wide picture and to the right of a tall one, the largest category
    first. The picture has its own size, but is reduced to `MAX_SIDE` and enlarged to `MIN_SIDE`
    pixels on its long side.

    Args:
        image: (H, W, 3) uint8 RGB.
        label_map: category ids, of the image's size or larger (when the image was read reduced);
            pixels with other values than 0 ... C-1 stay as they are in the photograph.
        vocabulary: C names and colours.
        shares: (C,) shares of the area, if already known; default: computed from `label_map`.
        alpha: opacity of the regions, 0 ... 1.
        min_share: smaller categories are summed up as "other" in the legend, as are those for which
            it has no room.

    Returns:
        np.ndarray: (H', W', 3) uint8 RGB, the picture with its legend.
    """
    if shares is None:
        shares = category_shares(label_map, len(vocabulary))
    size = drawing_size(image.shape[1], image.shape[0])
    enlarged = size[0] > image.shape[1]
    photo = np.asarray(
        Image.fromarray(image).resize(
            size, Image.Resampling.BICUBIC if enlarged else Image.Resampling.BILINEAR
        )
    )
    picture = _paint_regions(photo, _resize_labels(label_map, size), vocabulary, alpha)
    below = size[0] >= 1.15 * size[1]
    legend = _draw_legend(size, _legend_entries(shares, vocabulary, min_share), below)
    if below:
        shape = (size[1] + legend.height, size[0], 3)
    else:
        shape = (max(size[1], legend.height), size[0] + legend.width, 3)
    canvas = np.full(shape, 255, np.uint8)  # _BACKGROUND; filling with three values takes longer
    canvas[: size[1], : size[0]] = picture
    top, left = (size[1], 0) if below else (0, size[0])
    canvas[top : top + legend.height, left : left + legend.width] = np.asarray(legend)
    return canvas


def save_label_map(path: str | os.PathLike, label_map: np.ndarray, vocabulary: Vocabulary) -> None:
    """Write the category ids as a PNG of the label map's size, atomically.

    Up to 255 categories the file is an 8-bit palette PNG: its values are the category ids, and it
    shows in the vocabulary's colours. Larger vocabularies make a 16-bit greyscale PNG of the ids,
    without colours. Both are what `sem_seg_file_name` of a Detectron2 dataset may point to.

    Args:
        path: the file to write.
        label_map: (H, W) category ids, 0 ... C-1.
        vocabulary: C categories.

    Raises:
        ValueError: if the vocabulary has more than 65,536 categories.
        OSError: if the file cannot be written.
    """
    if len(vocabulary) > 65536:
        raise ValueError(
            f"{path}: a PNG holds ids of at most 65536 categories, the vocabulary has "
            f"{len(vocabulary)}; keep the label map as an array (numpy.save)"
        )
    if len(vocabulary) > MAX_PALETTE_CATEGORIES:
        write_png(path, label_map.astype(np.uint16, copy=False))
    else:
        write_png(path, label_map.astype(np.uint8, copy=False), palette=vocabulary.colors)


def drawing_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) that an image is drawn at in its overlay, which begins at the upper left."""
    long_side = max(width, height)
    if long_side < MIN_SIDE:
        scale = math.ceil(MIN_SIDE / long_side)  # whole, so that all pixels become equally large
    else:
        scale = min(1.0, MAX_SIDE / long_side)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _resize_labels(label_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Take the nearest label at each pixel centre of a (width, height)."""
    for axis, length in enumerate(reversed(size)):
        centres = (np.arange(length) + 0.5) * (label_map.shape[axis] / length)
        if len(centres) != label_map.shape[axis]:
            label_map = label_map.take(centres.astype(np.int64), axis)
    return label_map


def _paint_regions(
    photo: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary, alpha: float
) -> np.ndarray:
    """(H, W, 3) uint8 photo and (H, W) labels to a picture; in bytes, to be quick."""
    labelled = (labels >= 0) & (labels < len(vocabulary))
    everywhere = labelled.all()
    colours = np.rint(alpha * np.asarray(vocabulary.colors, np.float32)).astype(np.uint8)
    # Half the photograph's own colour is taken out, so that it does not compete with the regions'.
    fade = 0.5 * np.eye(3) + 0.5 * np.array([0.299, 0.587, 0.114])
    picture = cv2.transform(photo, (1 - alpha) * fade)
    regions = labels if everywhere else np.where(labelled, labels, 0)
    picture = cv2.add(picture, colours.take(regions, axis=0))
    if not everywhere:
        picture = np.where(labelled[..., None], picture, photo)
    edge = _boundaries(labels, width=max(1, round(max(labels.shape) / 900)))
    bright = np.rint(0.15 * np.arange(256) + 0.85 * 255).astype(np.uint8)
    return cv2.copyTo(cv2.LUT(picture, bright), edge, picture)


def _boundaries(labels: np.ndarray, width: int) -> np.ndarray:
    """Mark lines of `width` pixels between different labels, (H, W) uint8, 1 on a line."""
    edge = np.zeros(labels.shape, np.uint8)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return cv2.dilate(edge, np.ones((width, width), np.uint8)) if width > 1 else edge


@dataclass
class _Entry:
    """A line of the legend: what it says, in which colour."""

    name: str
    colour: tuple[int, int, int]
    share: float
    folded: int = 1  # how many categories it stands for

    @property
    def percent(self) -> str:
        return f"{100 * self.share:.1f} %" if self.share >= 0.0005 else "< 0.1 %"


def _legend_entries(shares: np.ndarray, vocabulary: Vocabulary, min_share: float) -> list[_Entry]:
    found = sorted(np.flatnonzero(shares), key=lambda i: (-shares[i], i))
    entries = [_Entry(vocabulary.display_names[i], vocabulary.colors[i], shares[i]) for i in found]
    large = sum(entry.share >= min_share for entry in entries)
    # "other" in place of a single name would save nothing.
    return entries if len(entries) - large <= 1 else _fold(entries, max(1, large) + 1)


def _fold(entries: list[_Entry], limit: int) -> list[_Entry]:
    """Shorten to at most `limit` entries; the last one then stands for all that are left out."""
    if len(entries) <= limit:
        return entries
    rest = entries[limit - 1 :]
    count = sum(entry.folded for entry in rest)
    share = sum(entry.share for entry in rest)
    return [*entries[: limit - 1], _Entry(f"other ({count})", _OTHER, share, count)]


def _draw_legend(size: tuple[int, int], entries: list[_Entry], below: bool) -> Image.Image:
    """Draw the panel that goes below or to the right of a picture of this (width, height)."""
    em = max(13, min(34, round(max(size) / 52)))
    line, pad, swatch, gap = round(1.9 * em), em, round(1.15 * em), 2 * em
    room = 5 * (size[0] // (12 * em)) if below else (size[1] - 2 * pad) // line
    entries = _fold(entries, max(room, 8))
    names = [_fit_name(entry.name, em) for entry in entries]
    name_width = max((font.getlength(name) for name, font in names), default=0)
    percent_width = max((_font(em).getlength(entry.percent) for entry in entries), default=0)
    column = math.ceil(swatch + 0.6 * em + name_width + 0.9 * em + percent_width)
    columns, width = 1, column + 2 * pad
    if below:
        width = size[0]
        columns = max(1, min(len(entries), (width - 2 * pad + gap) // (column + gap)))
    rows = math.ceil(len(entries) / columns)
    # A last row that is nearly empty looks forlorn: as few columns as make the same number of rows.
    columns = math.ceil(len(entries) / max(1, rows))
    panel = Image.new("RGB", (width, 2 * pad + rows * line), _BACKGROUND)
    draw = ImageDraw.Draw(panel)
    for i, (entry, (name, font)) in enumerate(zip(entries, names, strict=True)):
        x = pad + (i % columns) * (width - 2 * pad + gap) // columns
        middle = pad + (i // columns) * line + line // 2
        _draw_swatch(panel, (x, middle - swatch // 2), swatch, entry.colour)
        draw.text((x + swatch + 0.6 * em, middle), name, _TEXT, font, anchor="lm")
        draw.text((x + column, middle), entry.percent, _FAINT, _font(em), anchor="rm")
    return panel


def _draw_swatch(panel: Image.Image, corner: tuple[int, int], side: int, colour) -> None:
    panel.paste(colour, corner, _swatch(side))


@functools.lru_cache(maxsize=16)
def _swatch(side: int) -> Image.Image:
    """The shape of a swatch of `side` pixels, mode "L"."""
    # PIL draws without antialiasing: draw at four times the size and reduce.
    mask = Image.new("L", (4 * side, 4 * side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), side, fill=255)
    return mask.resize((side, side), Image.Resampling.BOX)


def _fit_name(name: str, em: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """Shorten a name with an ellipsis to the legend's width, and find a font for it."""
    font = font_for(name[:100], em)
    shown = name[:100]
    if len(name) == len(shown) and font.getlength(name) <= _MAX_NAME_EMS * em:
        return name, font
    while shown and font.getlength(shown + "…") > _MAX_NAME_EMS * em:
        shown = shown[:-1]
    return shown.rstrip() + "…", font


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """A font of `size` pixels that can write the text, as far as one is installed."""
    return _font(size, _font_file_for(text))


@functools.lru_cache(maxsize=64)
def _font(size: int, file: str | None = None) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file or _default_font_file(), size)


def _default_font_file() -> str:
    # The one font that is certain to be there: Matplotlib ships it.
    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@functools.lru_cache(maxsize=4096)
def _font_file_for(text: str) -> str | None:
    """Find an installed font that has all the characters which DejaVu Sans lacks; else None."""
    from matplotlib.ft2font import FT2Font

    if set(map(ord, text)) <= _characters(_default_font_file()):
        return None
    from matplotlib import font_manager  # scans the installed fonts, so only when it must

    for candidate in font_manager.fontManager.ttflist:
        try:
            if set(map(ord, text)) <= set(FT2Font(candidate.fname).get_charmap()):
                return candidate.fname
        except (OSError, RuntimeError):  # a font that FreeType cannot use
            continue
    logger.warning("no installed font can write the name %r: it is shown as boxes", text)
    return None


@functools.lru_cache(maxsize=1)
def _characters(file: str) -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(file).get_charmap())
