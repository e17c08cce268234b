#!/usr/bin/env python
"""Prepare PASCAL-Context with all 459 categories (PC-459); see datasets/README.md.

    python datasets/prepare_pascal_context_459.py

The input is VOCdevkit/VOC2010 with JPEGImages and trainval/*.mat. The output is
<root>/pascal_context_459/{images,labels}/val. Label maps are 16-bit TIFF files; 65535 marks pixels
without a category.
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
    from dcp_clip.data.preparation.pascal_context import prepare_pascal_context_459
    from dcp_clip.data.preparation.program import run_program

    return run_program(prepare_pascal_context_459, **vars(args), val_ids=VAL_IDS)


if __name__ == "__main__":
    sys.exit(main())
