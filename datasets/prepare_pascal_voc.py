#!/usr/bin/env python
"""Prepare PASCAL VOC 2012 without and with background, "PAS-20", "PAS-20b"; see datasets/README.md.

    python datasets/prepare_pascal_voc.py

The input is VOCdevkit/VOC2012 with JPEGImages, ImageSets/Segmentation/val.txt and label maps in
SegmentationClassAug or SegmentationClass. The outputs are <root>/pascal_voc_20, in which 255 stands
for background and borders, and <root>/pascal_voc_20b, in which 20 is background and 255 borders:
{images,labels}/val in both.
"""

import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.label_maps import label_encoding, read_indices
from dcp_clip.data.pairing import DatasetError, pair_listed, read_ids
from dcp_clip.data.preparation.program import make_parser, prepare_dataset, run_program
from dcp_clip.vocabulary.categories import load_names

logger = logging.getLogger("prepare_pascal_voc")

NAMES = BENCHMARKS["pascal_voc_20"].names
IMAGE_COUNT = BENCHMARKS["pascal_voc_20"].counts["val"]
BACKGROUND, BORDER = 0, 255
# The first is what most of the field evaluates with.
LABEL_FOLDERS = ("SegmentationClassAug", "SegmentationClass")
SOURCE = (
    "JPEGImages, ImageSets and SegmentationClass are in VOCtrainval_11-May-2012.tar of "
    "host.robots.ox.ac.uk/pascal/VOC/voc2012; SegmentationClassAug.zip is the one of "
    "github.com/kazuto1011/deeplab-pytorch; see datasets/README.md."
)


def prepare_pascal_voc(
    source: Path,
    root: Path,
    *,
    labels: str | None = None,
    workers: int = 1,
    image_count: int = IMAGE_COUNT,
) -> None:
    """Write ``<root>/pascal_voc_20`` and ``<root>/pascal_voc_20b``; what is finished is skipped.

    Args:
        source: the folder VOC2012.
        root: folder of all datasets.
        labels: which of LABEL_FOLDERS to use; None for the first that is there. A prepared folder
            never mixes both, see ``prepared.json`` in it.
        workers: processes.
        image_count: how many validation images there must be.

    Raises:
        DatasetError: if the input is incomplete, before anything is written.
    """
    if not source.is_dir():
        raise DatasetError(f"The input folder {source} does not exist. {SOURCE}")
    if labels is None:
        found = [name for name in LABEL_FOLDERS if (source / name).is_dir()]
        if not found:
            raise DatasetError(f"{source} holds neither {' nor '.join(LABEL_FOLDERS)}. {SOURCE}")
        labels = found[0]
    logger.info("The label maps are those of %s.", source / labels)
    ids = read_ids(
        source / "ImageSets" / "Segmentation" / "val.txt",
        expected_count=image_count,
        advice=SOURCE,
    )
    pairs = pair_listed(ids, source / "JPEGImages", source / labels, advice=SOURCE)
    categories = load_names(NAMES)
    background = replace(
        categories[0], name="background", train_id=len(categories), raw_id=BACKGROUND
    )
    for name, encoding in (
        (
            "pascal_voc_20",
            label_encoding(categories, read_indices, ignored_raw=[BACKGROUND, BORDER]),
        ),
        (
            "pascal_voc_20b",
            label_encoding([*categories, background], read_indices, ignored_raw=[BORDER]),
        ),
    ):
        logger.info("%s:", name)
        settings = {"labels": labels}
        prepare_dataset(root / name, {"val": pairs}, encoding, workers=workers, settings=settings)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    parser = make_parser(__doc__, "default: <root>/VOCdevkit/VOC2012")
    parser.add_argument(
        "--labels", choices=LABEL_FOLDERS, help="default: the first of these that is there"
    )
    args = parser.parse_args(argv)
    source = args.input or args.root / "VOCdevkit" / "VOC2012"
    return run_program(
        lambda: prepare_pascal_voc(source, args.root, labels=args.labels, workers=args.workers)
    )


if __name__ == "__main__":
    sys.exit(main())
