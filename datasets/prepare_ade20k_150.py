#!/usr/bin/env python
"""Prepare ADE20K's scene parsing benchmark, "A-150"; see datasets/README.md.

    python datasets/prepare_ade20k_150.py

The input is ADEChallengeData2016.zip, unpacked: {images,annotations}/{training,validation}. The
output is <root>/ade20k_150/{images,labels}/{train,val}, with 255 for pixels of no category.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.label_maps import label_encoding, read_indices
from dcp_clip.data.preparation.program import find_splits, make_parser, prepare_dataset, run_program
from dcp_clip.vocabulary.categories import load_names

NAMES = BENCHMARKS["ade20k_150"].names
IMAGE_COUNTS = BENCHMARKS["ade20k_150"].counts
FOLDERS = {"train": "training", "val": "validation"}
OTHER = 0
SOURCE = (
    "Photographs and label maps are in ADEChallengeData2016.zip of sceneparsing.csail.mit.edu; "
    "see datasets/README.md."
)


def prepare_ade20k_150(
    source: Path,
    root: Path,
    *,
    splits: Sequence[str] | None = None,
    workers: int = 1,
    image_counts: Mapping[str, int] = IMAGE_COUNTS,
) -> None:
    """Write ``<root>/ade20k_150``; what is finished is skipped.

    Args:
        source: the folder ADEChallengeData2016.
        root: folder of all datasets.
        splits: some of "train", "val"; None for those that are there.
        workers: processes.
        image_counts: images each split must have.

    Raises:
        DatasetError: if the input is incomplete. Pairing and counts of all splits are checked
            before anything is written.
    """
    folders = {
        split: (source / "images" / folder, source / "annotations" / folder)
        for split, folder in FOLDERS.items()
    }
    pairs = find_splits(source, folders, image_counts, wanted=splits, advice=SOURCE)
    encoding = label_encoding(load_names(NAMES), read_indices, ignored_raw=[OTHER])
    prepare_dataset(root / "ade20k_150", pairs, encoding, workers=workers)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = make_parser(__doc__, "default: <root>/ADEChallengeData2016")
    parser.add_argument(
        "--splits", nargs="+", choices=IMAGE_COUNTS, help="default: those that are there"
    )
    args = parser.parse_args(argv)
    source = args.input or args.root / "ADEChallengeData2016"
    return run_program(
        lambda: prepare_ade20k_150(source, args.root, splits=args.splits, workers=args.workers)
    )


if __name__ == "__main__":
    sys.exit(main())
