"""Draw a segmentation over its photograph with a legend.

Names, colours and ids come from one `Vocabulary`, so they always belong together.

The regions are not drawn with Detectron2's `Visualizer`: it takes 20 to 40 times as long (2.6 s
instead of 0.07 s for 1920 x 1281 pixels), draws no boundary around a region with a hole, and writes
names of small regions onto other regions.
"""

import math

import cv2
import numpy as np
from PIL import Image, ImageDraw

from dcp_clip.utils.fonts import font_for
from dcp_clip.utils.images.arrays import check_rgb
from dcp_clip.utils.label_maps import UNKNOWN_COLOR, UNKNOWN_NAME, category_shares
from dcp_clip.vocabulary import Vocabulary

# Long side of an overlay in pixels: larger images are reduced, smaller ones are enlarged.
MAX_SIDE, MIN_SIDE = 2048, 480
# Limits of the legend: entries, and characters of a name.
MAX_ENTRIES, MAX_CHARACTERS = 20, 24

_TEXT, _FAINT_TEXT, _OTHER = (32, 33, 36), (112, 117, 122), (190, 190, 190)

LegendEntry = tuple[str, tuple[int, int, int], float]  # name, RGB colour, share of the area


def draw_overlay(
    image: np.ndarray,
    label_map: np.ndarray,
    vocabulary: Vocabulary,
    shares: np.ndarray | None = None,
    alpha: float = 0.5,
    min_share: float = 0.005,
    unknown_share: float = 0.0,
) -> np.ndarray:
    """Draw coloured regions over an image, and a legend below it.

    The long side of the image is reduced to at most `MAX_SIDE` pixels and enlarged to at least
    `MIN_SIDE` pixels. The legend lists the categories by area, the largest first.

    Args:
        image: (H, W, 3) uint8 RGB.
        label_map: (H', W') category ids, of the image's size or larger (if the image was reduced
            while reading). Pixels with other values than 0 to C-1 are not coloured.
        vocabulary: C names and colours.
        shares: (C,) fractions of the area; default: computed from `label_map`.
        alpha: opacity of the regions, 0 to 1.
        min_share: the legend combines categories with a smaller share as "other".
        unknown_share: fraction of the area with the value `Vocabulary.unknown_id`. Above 0, these
            pixels have grey stripes and an entry in the legend.

    Returns:
        np.ndarray: (H'', W'', 3) uint8 RGB, the picture with its legend.

    Raises:
        ValueError: if the image is no RGB array, or its aspect ratio is not that of the label map.
    """
    check_rgb(image)
    if not _have_equal_ratio(image.shape[:2], label_map.shape):
        raise ValueError(
            f"The image has {image.shape[1]} x {image.shape[0]} pixels, but the label map has "
            f"{label_map.shape[1]} x {label_map.shape[0]}: give the image that was segmented."
        )
    if shares is None:
        shares = category_shares(label_map, len(vocabulary))
    width, height = drawing_size(image.shape[1], image.shape[0])
    if image.shape[:2] != (height, width):
        photo = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        image = np.asarray(photo)
    labels = label_map
    if labels.shape != (height, width):  # the label at the centre of each pixel
        rows = ((np.arange(height) + 0.5) * (labels.shape[0] / height)).astype(np.int64)
        columns = ((np.arange(width) + 0.5) * (labels.shape[1] / width)).astype(np.int64)
        labels = labels[np.ix_(rows, columns)]
    picture = _paint_regions(image, labels, vocabulary, alpha)
    entries = _legend_entries(shares, vocabulary, min_share)
    if unknown_share:
        _paint_unknown(picture, labels == vocabulary.unknown_id)
        entries.append((UNKNOWN_NAME, UNKNOWN_COLOR, unknown_share))
    legend = _draw_legend(entries, max(width, MIN_SIDE))
    canvas = np.full((height + legend.height, legend.width, 3), 255, np.uint8)
    canvas[:height, :width] = picture
    canvas[height:] = legend
    return canvas


def _have_equal_ratio(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two (height, width) differ by a scale and by rounding."""
    scale = max(a) / max(b)
    return all(abs(x - scale * y) <= max(1.5, 1.5 * scale) for x, y in zip(a, b, strict=True))


def drawing_size(width: int, height: int) -> tuple[int, int]:
    """Return the (width, height) of an image in its overlay, where it is at the upper left."""
    long_side = max(width, height)
    if long_side < MIN_SIDE:
        scale = math.ceil(MIN_SIDE / long_side)  # an integer, so that all pixels get the same size
    else:
        scale = min(1.0, MAX_SIDE / long_side)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _paint_regions(
    photo: np.ndarray, labels: np.ndarray, vocabulary: Vocabulary, alpha: float
) -> np.ndarray:
    """Tint the regions of an (H, W, 3) uint8 image, and draw white lines between them."""
    labelled = (labels >= 0) & (labels < len(vocabulary))
    colors = np.asarray(vocabulary.colors, np.uint8)
    tint = colors.take(np.where(labelled, labels, 0), axis=0)
    # The image loses half of its saturation, so that the colours of the regions are recognisable.
    grey = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    pale = cv2.addWeighted(photo, 0.5, grey, 0.5, 0)
    picture = cv2.addWeighted(pale, 1 - alpha, tint, alpha, 0)
    if not labelled.all():
        picture[~labelled] = photo[~labelled]
    edge = np.zeros(labels.shape, np.uint8)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    line_width = max(1, round(max(labels.shape) / 900))
    edge = cv2.dilate(edge, np.ones((line_width, line_width), np.uint8))
    return cv2.copyTo(cv2.convertScaleAbs(picture, alpha=0.15, beta=0.85 * 255), edge, picture)


def _paint_unknown(picture: np.ndarray, unknown: np.ndarray) -> None:
    """Draw diagonal grey stripes over the pixels of an (H, W) bool mask."""
    period = max(6, round(max(unknown.shape) / 60))
    y, x = np.nonzero(unknown)
    stripe = (x + y) % period < period // 2
    picture[y[stripe], x[stripe]] = UNKNOWN_COLOR


def _stripes(side: int) -> Image.Image:
    """Return a square with diagonal grey stripes."""
    period = max(4, side // 2)
    light = np.indices((side, side)).sum(axis=0) % period >= period // 2
    return Image.fromarray(np.where(light[..., None], 225, UNKNOWN_COLOR).astype(np.uint8))


def _legend_entries(
    shares: np.ndarray, vocabulary: Vocabulary, min_share: float
) -> list[LegendEntry]:
    found = sorted(np.flatnonzero(shares), key=lambda i: (-shares[i], i))
    shown = [i for i in found if shares[i] >= min_share][: MAX_ENTRIES - 1] or found[:1]
    rest = found[len(shown) :]
    if len(rest) == 1:  # "other (1)" would not save a line
        shown, rest = found, []
    entries = [(vocabulary.display_names[i], vocabulary.colors[i], shares[i]) for i in shown]
    return entries + ([(f"other ({len(rest)})", _OTHER, shares[rest].sum())] if rest else [])


def _draw_legend(entries: list[LegendEntry], width: int) -> Image.Image:
    """Draw the entries in columns of equal width, at least `width` pixels in all."""
    em = min(max(round(width / 52), 13), 34)  # font size in pixels
    swatch, line = round(1.15 * em), round(1.9 * em)
    names = [n if len(n) <= MAX_CHARACTERS else n[: MAX_CHARACTERS - 1] + "…" for n, *_ in entries]
    name_width = max((font_for(name, em).getlength(name) for name in names), default=0)
    column = math.ceil(swatch + name_width + 6 * em)  # with 4.5 em for the percentage
    rows = math.ceil(len(entries) / max(1, (width - em) // (column + em)))
    columns = math.ceil(len(entries) / max(1, rows))
    width = max(width, column + 2 * em)
    panel = Image.new("RGB", (width, 2 * em + rows * line), "white")
    draw = ImageDraw.Draw(panel)
    for i, (name, (_, color, share)) in enumerate(zip(names, entries, strict=True)):
        x = em + (i % columns) * (width - em) // columns
        y = em + (i // columns) * line + line // 2
        box = (x, y - swatch // 2, x + swatch - 1, y - swatch // 2 + swatch - 1)
        draw.rounded_rectangle(box, swatch // 5, fill=color)
        if (name, color) == (UNKNOWN_NAME, UNKNOWN_COLOR):  # as in the picture
            mask = Image.new("L", (swatch, swatch))
            ImageDraw.Draw(mask).rounded_rectangle((0, 0, swatch - 1, swatch - 1), swatch // 5, 255)
            panel.paste(_stripes(swatch), box[:2], mask)
        draw.text((x + swatch + 0.6 * em, y), name, _TEXT, font_for(name, em), anchor="lm")
        percent = f"{100 * share:.1f} %" if share >= 0.0005 else "< 0.1 %"
        draw.text((x + column, y), percent, _FAINT_TEXT, font_for(percent, em), anchor="rm")
    return panel
