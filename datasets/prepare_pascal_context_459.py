#!/usr/bin/env python
"""Prepare PASCAL-Context with all 459 categories, "PC-459"; see datasets/README.md.

    python datasets/prepare_pascal_context_459.py

The input is VOCdevkit/VOC2010 with JPEGImages and trainval/*.mat. The output is
<root>/pascal_context_459/{images,labels}/val, label maps as 16-bit TIFF with 65535 for pixels of no
category.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.label_maps import IGNORE_LABEL_16, label_encoding, read_mat_label_map
from dcp_clip.data.pairing import DatasetError, pair_listed, read_ids
from dcp_clip.data.preparation.program import make_parser, prepare_dataset, run_program
from dcp_clip.vocabulary.categories import load_names

NAMES = BENCHMARKS["pascal_context_459"].names
IMAGE_COUNT = BENCHMARKS["pascal_context_459"].counts["val"]
VAL_IDS = Path(__file__).parent / "pascal_context_val_ids.txt"
SOURCE = (
    "JPEGImages is in VOCtrainval_03-May-2010.tar of host.robots.ox.ac.uk/pascal/VOC/voc2010, "
    "trainval/*.mat in trainval.tar.gz of cs.stanford.edu/~roozbeh/pascal-context; see "
    "datasets/README.md."
)


def prepare_pascal_context_459(
    source: Path,
    root: Path,
    *,
    workers: int = 1,
    val_ids: Path = VAL_IDS,
    image_count: int = IMAGE_COUNT,
) -> None:
    """Write ``<root>/pascal_context_459``; what is finished is skipped.

    Args:
        source: the folder VOC2010.
        root: folder of all datasets.
        workers: processes.
        val_ids: file that lists the validation images.
        image_count: how many it must list.

    Raises:
        DatasetError: if the input is incomplete, before anything is written.
    """
    if not source.is_dir():
        raise DatasetError(f"The input folder {source} does not exist. {SOURCE}")
    pairs = pair_listed(
        read_ids(val_ids, expected_count=image_count),
        source / "JPEGImages",
        source / "trainval",
        label_ext=".mat",
        advice=SOURCE,
    )
    encoding = label_encoding(load_names(NAMES), read_mat_label_map, ignore_label=IGNORE_LABEL_16)
    prepare_dataset(root / "pascal_context_459", {"val": pairs}, encoding, workers=workers)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = make_parser(__doc__, "default: <root>/VOCdevkit/VOC2010").parse_args(argv)
    source = args.input or args.root / "VOCdevkit" / "VOC2010"
    return run_program(lambda: prepare_pascal_context_459(source, args.root, workers=args.workers))


if __name__ == "__main__":
    sys.exit(main())
