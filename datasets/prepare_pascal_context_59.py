#!/usr/bin/env python
"""Prepare PASCAL-Context with its 59 most frequent categories (PC-59), and with background
(PC-60); see datasets/README.md.

    python datasets/prepare_pascal_context_59.py

The input is VOCdevkit/VOC2010 with JPEGImages and PASCAL in Detail's trainval_merged.json. The
output is <root>/pascal_context_59/{images,labels}/val; 255 marks pixels without a category.
In <root>/pascal_context_60 they are category 0, background.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import add_preparation_arguments

VAL_IDS = Path(__file__).parent / "pascal_context_val_ids.txt"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--input", dest="source", type=Path, help="default: <root>/VOCdevkit/VOC2010"
    )
    add_preparation_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = parse_args(argv)
    # Imported after parsing: dcp_clip imports torch, and --help must answer at once.
    from dcp_clip.data.preparation.pascal_context import prepare_pascal_context_59
    from dcp_clip.data.preparation.program import run_program

    return run_program(prepare_pascal_context_59, **vars(args), val_ids=VAL_IDS)


if __name__ == "__main__":
    sys.exit(main())
