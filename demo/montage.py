"""One picture of the demo's results: image, and segmentation with names written into the regions.

    python demo/demo.py --input photos/ --vocabulary "sky; tree" --output results/
    python demo/montage.py results/ --output montage.png

Reads results.jsonl in the folders that demo.py has written, and the files that it names.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dcp_clip.utils.arguments import positive
from dcp_clip.utils.image_io import ImageReadError, read_image, write_png
from dcp_clip.utils.visualization import drawing_size, font_for

GAP = 10
# A region gets its name if it has this share of the area; smaller ones would be hidden by it.
MIN_SHARE = 0.006
# Pixels that stay free of other names around each name.
MARGIN = 2


class MontageError(ValueError):
    """A montage that cannot be made; the message is one sentence."""


@dataclass
class Result:
    """One image of a demo: (H', W', 3) uint8 image and painted regions, both as large as they are
    drawn in the overlay; (H, W) category ids; and (id, name, share) of what was found."""

    image: np.ndarray
    regions: np.ndarray
    labels: np.ndarray
    found: list[tuple[int, str, float]]


def read_results(folder: Path) -> list[Result]:
    """Read what demo.py has left in a folder.

    Raises:
        MontageError: if it is no such folder, or one of its files is missing.
    """
    path = folder / "results.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [_read_result(folder, line) for line in lines]
    except (OSError, ValueError, KeyError) as error:
        reason = error if isinstance(error, ImageReadError) else f"{path} cannot be used: {error}"
        raise MontageError(f"{reason}; run demo/demo.py --output {folder} again.") from error


def _read_result(folder: Path, line: dict) -> Result:
    size = drawing_size(line["width"], line["height"])
    overlay = read_image(folder / line["overlay"])
    with Image.open(folder / line["labels"]) as file:
        labels = np.array(file)
    image = Image.fromarray(read_image(line["file"])).resize(size, Image.Resampling.BICUBIC)
    found = [(c["id"], c["name"], c["share"]) for c in line["categories"]]
    return Result(np.array(image), overlay[: size[1], : size[0]], labels, found)


def draw_pair(result: Result, side: int, em: int) -> Image.Image:
    """The image beside its regions with their names, each `side` pixels high at most and wide."""
    height, width = result.image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pair = Image.new("RGB", (2 * size[0] + GAP // 2, size[1]), "white")
    for i, pixels in enumerate((result.image, result.regions)):
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        if i:
            write_names(picture, result, em)
        pair.paste(picture, (i * (size[0] + GAP // 2), 0))
    return pair


def write_names(picture: Image.Image, result: Result, em: int) -> None:
    """Write each category's name where it has most room, the large ones first; none over another.

    Args:
        picture: the regions, any size.
        result: what they are.
        em: size of the font in pixels.
    """
    labels = cv2.resize(
        result.labels.astype(np.float32), picture.size, interpolation=cv2.INTER_NEAREST
    )
    draw, taken = ImageDraw.Draw(picture), np.zeros(labels.shape, bool)
    for category, name, share in result.found:
        if share < MIN_SHARE:
            continue
        font = font_for(name, em)
        box = _find_place(labels == category, taken, draw.textbbox((0, 0), name, font))
        if box is None:
            continue
        left, top, right, bottom = box
        taken[max(0, top - MARGIN) : bottom + MARGIN, max(0, left - MARGIN) : right + MARGIN] = True
        _write(draw, (left, top), name, font)


def _find_place(
    region: np.ndarray, taken: np.ndarray, text: tuple[int, int, int, int]
) -> tuple[int, int, int, int] | None:
    """The box (left, top, right, bottom) of a text that lies deepest in its region, None if it has
    no room.

    Args:
        region: (H, W) bool.
        taken: (H, W) bool, where other names are.
        text: the text's own box at (0, 0).
    """
    height, width = region.shape
    wide, high = text[2], text[3]
    if wide >= width or high >= height:
        return None
    # Distance from the region's border, averaged over the box at each place that it could have.
    depth = cv2.distanceTransform(np.pad(region, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    box = {"ddepth": -1, "ksize": (wide, high), "anchor": (0, 0)}
    inside = cv2.boxFilter(depth, **box, borderType=cv2.BORDER_CONSTANT)
    blocked = cv2.boxFilter(taken.astype(np.float32), **box, borderType=cv2.BORDER_CONSTANT)
    inside[blocked > 1e-6] = -1
    inside = inside[: height - high, : width - wide]  # elsewhere it would leave the picture
    top, left = np.unravel_index(int(inside.argmax()), inside.shape)
    if inside[top, left] <= 0:
        return None
    return int(left), int(top), int(left) + wide, int(top) + high


def _write(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], name: str, font: ImageFont.FreeTypeFont
) -> None:
    width = max(1, round(font.size / 7))
    draw.text(corner, name, "white", font, stroke_width=width, stroke_fill=(25, 25, 30))


def draw_montage(
    results: Sequence[Result], *, columns: int = 2, side: int = 320, caption: str = ""
) -> np.ndarray:
    """All pairs in a grid.

    Args:
        results: at least one.
        columns: pairs in a row.
        side: longer side of each picture, in pixels.
        caption: a line below, such as the licence of what is shown.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    em = max(11, round(side / 21))
    pairs = [draw_pair(result, side, em) for result in results]
    columns = min(columns, len(pairs))
    rows = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    width = max(pair.width for pair in pairs)
    heights = [max(pair.height for pair in row) for row in rows]
    lines = _wrap(caption, columns * (width + 2 * GAP) - 2 * GAP, em) if caption else []
    below = len(lines) * round(1.4 * em) + GAP * bool(lines)
    page = Image.new(
        "RGB", (columns * (width + 2 * GAP), sum(heights) + 2 * GAP * len(rows) + below), "white"
    )
    y = GAP
    for row, height in zip(rows, heights):
        for column, pair in enumerate(row):
            x = column * (width + 2 * GAP) + GAP + (width - pair.width) // 2
            page.paste(pair, (x, y + (height - pair.height) // 2))
        y += height + 2 * GAP
    draw = ImageDraw.Draw(page)
    for i, line in enumerate(lines):
        draw.text((GAP, y + i * round(1.4 * em)), line, (90, 94, 100), font_for(line, em))
    return np.array(page)


def _wrap(text: str, width: int, em: int) -> list[str]:
    """Lines of at most `width` pixels; a longer word has one of its own."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font_for(text, em).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="--output of demo.py")
    add("--output", type=Path, required=True, metavar="PNG", help="the picture to write")
    add("--columns", type=positive, default=2, help="pairs in a row (default: 2)")
    add("--side", type=positive, default=320, help="pixels of a picture's side (default: 320)")
    add("--only", type=int, nargs="+", metavar="N", help="these results, counted from 0, in order")
    add("--caption", default="", help="a line below, such as the licence of what is shown")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Write the montage; what is wrong ends the program with one sentence."""
    args = get_parser().parse_args(argv)
    if not args.output.parent.is_dir():
        sys.exit(f"error: --output {args.output}: its folder does not exist.")
    try:
        results = [result for folder in args.folders for result in read_results(folder)]
        if args.only:
            strange = [n for n in args.only if not 0 <= n < len(results)]
            if strange:
                raise MontageError(f"--only {strange[0]}: there are {len(results)} results.")
            results = [results[n] for n in args.only]
        if not results:
            raise MontageError("There are no results to show: demo.py has labelled no image.")
        montage = draw_montage(results, columns=args.columns, side=args.side, caption=args.caption)
        write_png(args.output, montage)
    except (MontageError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
