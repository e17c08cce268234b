#!/usr/bin/env python
"""Prepare COCO-Stuff (171 categories) for training and evaluation; see datasets/README.md.

    python datasets/prepare_coco_stuff.py

The input has the photographs in train2017 and val2017, or in images/{train2017,val2017}. It has the
label maps of stuffthingmaps_trainval2017.zip in stuffthingmaps/{train2017,val2017}, or in
annotations/{train2017,val2017}. The output is <root>/coco_stuff/{images,labels}/{train,val}; 255
marks unlabelled pixels. <root>/coco_object/{images,labels}/val has the 80 things, and 0, the
background, for all other pixels.
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
        "--input",
        dest="source",
        type=Path,
        help="COCO with label maps (default: <root>/coco or <root>/coco-stuff)",
    )
    add_preparation_arguments(parser)
    parser.add_argument(
        "--splits", nargs="+", choices=("train", "val"), help="default: those that exist"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = parse_args(argv)
    # Imported after parsing: dcp_clip imports torch, and --help must answer at once.
    from dcp_clip.data.preparation.coco_stuff import prepare_coco_stuff
    from dcp_clip.data.preparation.program import run_program

    return run_program(prepare_coco_stuff, **vars(args))


if __name__ == "__main__":
    sys.exit(main())
