#!/usr/bin/env python
"""Prepare PASCAL VOC 2012 without background (PAS-20) and with it (PAS-20b, VOC-21).

    python datasets/prepare_pascal_voc.py

The input is VOCdevkit/VOC2012 with JPEGImages, ImageSets/Segmentation/val.txt and label maps in
SegmentationClassAug or SegmentationClass. The outputs are {images,labels}/val in three folders; 255
marks borders. In <root>/pascal_voc_20, 255 also marks the background. In <root>/pascal_voc_20b, the
background is 20, and in <root>/pascal_voc_21, it is 0. See datasets/README.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import add_preparation_arguments


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", dest="source", type=Path, help="default: <root>/VOCdevkit/VOC2012"
    )
    add_preparation_arguments(parser)
    parser.add_argument(
        "--labels",
        choices=("SegmentationClassAug", "SegmentationClass"),
        help="default: the first of these that exists",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = parse_args(argv)
    # Imported after parsing: dcp_clip imports torch, and --help must answer at once.
    from dcp_clip.data.preparation.pascal_voc import prepare_pascal_voc
    from dcp_clip.data.preparation.program import run_program

    return run_program(prepare_pascal_voc, **vars(args))


if __name__ == "__main__":
    sys.exit(main())
