"""Draw a montage of the demo's results: each image beside its regions with their names."""

import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from dcp_clip.utils.fonts import font_for
from dcp_clip.utils.images.files import open_image
from dcp_clip.utils.images.reading import ImageReadError, read_image, reduced_size
from dcp_clip.utils.visualization import drawing_size

GAP = 10  # pixels around a pair of pictures
MIN_SHARE = 0.006  # regions with a smaller share of the area would be covered by their names
MARGIN = 2  # minimum distance of two names in pixels


class MontageError(ValueError):
    """The results cannot be read; the message is one sentence."""


@dataclass
class Result:
    """The result of one image.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        regions: (H, W, 3) uint8 RGB, the picture of the overlay without its legend.
        labels: (H', W') category ids.
        found: id, name and share of each category, the largest first.
    """

    image: np.ndarray
    regions: np.ndarray
    labels: np.ndarray
    found: list[tuple[int, str, float]]


def read_results(folder: Path) -> list[Result]:
    """Read results.jsonl in an output folder of the demo, and the files that it lists.

    Raises:
        MontageError: if a file does not exist or cannot be read.
    """
    path = folder / "results.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        settings = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return [_read_result(folder, settings, line) for line in lines]
    except MontageError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error if isinstance(error, ImageReadError) else f"{path} cannot be used: {error}"
        raise MontageError(f"{reason}; run demo/demo.py --output {folder} again.") from error


def draw_montage(
    results: Sequence[Result], *, columns: int = 2, side: int = 320, caption: str = ""
) -> np.ndarray:
    """Draw each image beside its regions, in a grid.

    Args:
        results: one result or more.
        columns: pairs of pictures in a row.
        side: long side of each picture in pixels.
        caption: text below the grid, such as the licence of the images.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    em = max(11, round(side / 21))  # font size in pixels
    pairs = [_draw_pair(result, side, em) for result in results]
    columns = min(columns, len(pairs))
    width = max(pair.width for pair in pairs) + 2 * GAP
    height = max(pair.height for pair in pairs) + 2 * GAP
    grid_height = height * math.ceil(len(pairs) / columns)
    lines = textwrap.wrap(caption, max(1, round(columns * width / (0.6 * em))))
    page_height = grid_height + (round(1.4 * em) * len(lines) + GAP if lines else 0)
    page = Image.new("RGB", (columns * width, page_height), "white")
    for i, pair in enumerate(pairs):
        x, y = width * (i % columns), height * (i // columns)
        page.paste(pair, (x + (width - pair.width) // 2, y + (height - pair.height) // 2))
    font = font_for(caption, em)
    for i, line in enumerate(lines):
        place = GAP, grid_height + i * round(1.4 * em)
        ImageDraw.Draw(page).text(place, line, (90, 94, 100), font)
    return np.array(page)


def place_names(
    result: Result, size: tuple[int, int], em: int
) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Find a place for the name of each category in its region, without overlaps.

    A name gets the place where its box is deepest in the region. Small regions, and regions in
    which all places are occupied, have no name.

    Args:
        result: the label map and the categories.
        size: (width, height) of the picture in pixels.
        em: font size in pixels.

    Returns:
        each name, and the (left, top, right, bottom) of its box.
    """
    labels = cv2.resize(result.labels.astype(np.float32), size, interpolation=cv2.INTER_NEAREST)
    occupied = np.zeros(labels.shape, np.float32)
    places = []
    for category, name, share in result.found:
        _, _, width, height = font_for(name, em).getbbox(name)
        if share < MIN_SHARE or width >= size[0] or height >= size[1]:
            continue
        region = np.pad((labels == category).astype(np.uint8), 1)
        depth = cv2.distanceTransform(region, cv2.DIST_L2, 3)[1:-1, 1:-1]
        # The value at (y, x) is the mean over the box with this upper left corner.
        box = {"ddepth": -1, "ksize": (width, height), "anchor": (0, 0)}
        score = cv2.boxFilter(depth, **box, borderType=cv2.BORDER_CONSTANT)
        score[cv2.boxFilter(occupied, **box, borderType=cv2.BORDER_CONSTANT) > 1e-6] = 0
        score = score[: size[1] - height, : size[0] - width]
        top, left = (int(i) for i in np.unravel_index(score.argmax(), score.shape))
        if score[top, left] <= 0:
            continue
        right, bottom = left + width, top + height
        occupied[max(0, top - MARGIN) : bottom + MARGIN, max(0, left - MARGIN) : right + MARGIN] = 1
        places.append((name, (left, top, right, bottom)))
    return places


def _read_result(folder: Path, settings: dict, line: dict) -> Result:
    if not {"overlay", "labels"} <= line.keys():
        raise MontageError(
            f"{line['file']} has no overlay or no label map in {folder}; segment the image again "
            "with --format overlay labels --overwrite."
        )
    # Relative paths are relative to the working folder of the run.
    path = Path(settings["working folder"] or "", line["file"])
    max_pixels = settings["max_input_pixels"]  # the overlay shows the reduced image
    size = drawing_size(*reduced_size((line["width"], line["height"]), max_pixels))
    overlay = read_image(folder / line["overlay"])
    with open_image(folder / line["labels"], ["PNG"]) as file:
        labels = np.array(file)
    image = Image.fromarray(read_image(path, max_pixels)).resize(size, Image.Resampling.BICUBIC)
    found = [(c["id"], c["name"], c["share"]) for c in line["categories"]]
    return Result(np.array(image), overlay[: size[1], : size[0]], labels, found)


def _draw_pair(result: Result, side: int, em: int) -> Image.Image:
    """Draw the image beside its regions with names, each with this long side in pixels."""
    height, width = result.image.shape[:2]
    size = tuple(max(1, round(x * side / max(height, width))) for x in (width, height))
    pair = Image.new("RGB", (2 * size[0] + GAP // 2, size[1]), "white")
    regions = Image.fromarray(result.regions).resize(size, Image.Resampling.LANCZOS)
    for name, (left, top, _, _) in place_names(result, size, em):
        ImageDraw.Draw(regions).text(
            (left, top),
            name,
            "white",
            font_for(name, em),
            stroke_width=max(1, round(em / 7)),
            stroke_fill=(25, 25, 30),
        )
    pair.paste(Image.fromarray(result.image).resize(size, Image.Resampling.LANCZOS), (0, 0))
    pair.paste(regions, (size[0] + GAP // 2, 0))
    return pair
