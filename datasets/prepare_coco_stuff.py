#!/usr/bin/env python
"""Prepare COCO-Stuff (171 categories) for training and evaluation; see datasets/README.md.

    python datasets/prepare_coco_stuff.py

The input has the photographs in train2017 and val2017, or in images/{train2017,val2017}, and the
label maps of stuffthingmaps_trainval2017.zip in stuffthingmaps/{train2017,val2017}, or in
annotations/{train2017,val2017}. The output is <root>/coco_stuff/{images,labels}/{train,val}, with
255 for unlabelled pixels.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.label_maps import label_encoding, read_indices
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.program import find_splits, make_parser, prepare_dataset, run_program
from dcp_clip.vocabulary.categories import load_names

NAMES = BENCHMARKS["coco_stuff"].names
IMAGE_COUNTS = BENCHMARKS["coco_stuff"].counts
UNLABELLED = 255
IMAGE_FOLDERS = ("{}2017", "images/{}2017")
LABEL_FOLDERS = (
    "stuffthingmaps/{}2017",
    "annotations/{}2017",
    "stuffthingmaps_trainval2017/{}2017",
)
SOURCE = (
    "The photographs are train2017.zip and val2017.zip of cocodataset.org, the label maps "
    "stuffthingmaps_trainval2017.zip of github.com/nightrome/cocostuff; see datasets/README.md."
)


def default_input(root: Path) -> Path:
    """The conventional folder that holds label maps; the first of them if none does."""
    candidates = [root / "coco", root / "coco-stuff"]
    for folder in candidates:
        if any((folder / part.format("val")).is_dir() for part in LABEL_FOLDERS):
            return folder
    return next((folder for folder in candidates if folder.is_dir()), candidates[0])


def prepare_coco_stuff(
    source: Path,
    root: Path,
    *,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    image_counts: Mapping[str, int] = IMAGE_COUNTS,
) -> None:
    """Write ``<root>/coco_stuff``; what is finished is skipped.

    Args:
        source: input folder.
        root: folder of all datasets.
        splits: some of "train", "val"; None for those that are there.
        workers: processes.
        image_counts: images each split must have.

    Raises:
        DatasetError: if the input is not a complete COCO-Stuff. Pairing and counts of all splits
            are checked before anything is written.
    """
    folders = {
        split: (_the_one(source, IMAGE_FOLDERS, split), _the_one(source, LABEL_FOLDERS, split))
        for split in image_counts
    }
    pairs = find_splits(source, folders, image_counts, wanted=splits, advice=SOURCE)
    # The raw labels that never occur (COCO's unused categories) are refused: train ids use them
    # all, so that label maps which are converted already are found out.
    encoding = label_encoding(load_names(NAMES), read_indices, ignored_raw=[UNLABELLED])
    prepare_dataset(root / "coco_stuff", pairs, encoding, workers=workers)


def _the_one(source: Path, layouts: Sequence[str], split: str) -> Path:
    candidates = [source / layout.format(split) for layout in layouts]
    found = [folder for folder in candidates if folder.is_dir()]
    if len(found) > 1:
        raise DatasetError(f"{source} holds both {found[0]} and {found[1]}: keep one.")
    return found[0] if found else candidates[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = make_parser(__doc__, "COCO with label maps (default: <root>/coco or coco-stuff)")
    parser.add_argument(
        "--splits", nargs="+", choices=IMAGE_COUNTS, help="default: those that are there"
    )
    args = parser.parse_args(argv)
    source = args.input or default_input(args.root)
    return run_program(
        lambda: prepare_coco_stuff(source, args.root, splits=args.splits, workers=args.workers)
    )


if __name__ == "__main__":
    sys.exit(main())
