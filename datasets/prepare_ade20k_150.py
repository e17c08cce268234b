#!/usr/bin/env python
"""Prepare ADE20K with 150 categories (A-150); see datasets/README.md.

    python datasets/prepare_ade20k_150.py

The input is ADEChallengeData2016.zip, unpacked: {images,annotations}/{training,validation}. The
output is <root>/ade20k_150/{images,labels}/{train,val}; 255 marks pixels without a category.
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
        "--input", dest="source", type=Path, help="default: <root>/ADEChallengeData2016"
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
    from dcp_clip.data.preparation.ade20k import prepare_ade20k_150
    from dcp_clip.data.preparation.program import run_program

    return run_program(prepare_ade20k_150, **vars(args))


if __name__ == "__main__":
    sys.exit(main())
