#!/usr/bin/env python
"""Prepare the full ADE20K with its 847 most frequent categories, "A-847"; see datasets/README.md.

    python datasets/prepare_ade20k_847.py
    python datasets/prepare_ade20k_847.py --original-size

The input is ADE20K_2021_17_01, unpacked: images/ADE/{training,validation}/<scene>/<place>/ with
*.jpg and *_seg.png. The output is <root>/ade20k_847/{images,labels}/val, label maps as 16-bit TIFF
with 65535 for pixels of no category. As is customary, images are shortened to at most 512 pixels
on their short side, unless --original-size is given; published figures refer to the short ones.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.label_maps import IGNORE_LABEL_16, label_encoding, read_ade_objects
from dcp_clip.data.pairing import DatasetError, pair_in_tree
from dcp_clip.data.preparation.program import make_parser, prepare_dataset, run_program
from dcp_clip.vocabulary.categories import load_names

NAMES = BENCHMARKS["ade20k_847"].names
IMAGE_COUNTS = BENCHMARKS["ade20k_847"].counts
FOLDERS = {"train": "training", "val": "validation"}
MAX_SHORT_SIDE = 512
SOURCE = (
    "ADE20K_2021_17_01 comes from groups.csail.mit.edu/vision/datasets/ADE20K, which sends a link "
    "to registered users; see datasets/README.md."
)


def prepare_ade20k_847(
    source: Path,
    root: Path,
    *,
    splits: Sequence[str] = ("val",),
    original_size: bool = False,
    workers: int = 1,
    image_counts: Mapping[str, int | None] = IMAGE_COUNTS,
    max_short_side: int = MAX_SHORT_SIDE,
) -> None:
    """Write ``<root>/ade20k_847``; what is finished is skipped.

    Args:
        source: the folder ADE20K_2021_17_01.
        root: folder of all datasets.
        splits: some of "train", "val".
        original_size: whether to keep the photographs as they are. A prepared folder never mixes
            both, see ``prepared.json`` in it.
        workers: processes.
        image_counts: images each split must have; None for any number.
        max_short_side: in pixels, unless ``original_size``.

    Raises:
        DatasetError: if the input is incomplete. Pairing and counts of all splits are checked
            before anything is written.
    """
    if not source.is_dir():
        raise DatasetError(f"The input folder {source} does not exist. {SOURCE}")
    pairs = {
        split: pair_in_tree(
            source / "images" / "ADE" / FOLDERS[split],
            expected_count=image_counts[split],
            advice=SOURCE,
        )
        for split in splits
    }
    encoding = label_encoding(load_names(NAMES), read_ade_objects, ignore_label=IGNORE_LABEL_16)
    prepare_dataset(
        root / "ade20k_847",
        pairs,
        encoding,
        workers=workers,
        max_short_side=None if original_size else max_short_side,
        settings={"size": "original" if original_size else f"short side <= {max_short_side}"},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = make_parser(__doc__, "default: <root>/ADE20K_2021_17_01")
    parser.add_argument(
        "--splits", nargs="+", choices=IMAGE_COUNTS, default=["val"], help="default: val"
    )
    parser.add_argument(
        "--original-size", action="store_true", help="do not shorten images to 512 pixels"
    )
    args = parser.parse_args(argv)
    source = args.input or args.root / "ADE20K_2021_17_01"
    return run_program(
        lambda: prepare_ade20k_847(
            source,
            args.root,
            splits=args.splits,
            original_size=args.original_size,
            workers=args.workers,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
