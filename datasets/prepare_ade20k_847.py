#!/usr/bin/env python
"""Prepare full ADE20K with its 847 most frequent categories (A-847); see datasets/README.md.

    python datasets/prepare_ade20k_847.py
    python datasets/prepare_ade20k_847.py --original-size

The input is ADE20K_2021_17_01, unpacked: images/ADE/{training,validation}/<scene>/<place>/ with
*.jpg and *_seg.png. The output is <root>/ade20k_847/{images,labels}/val. Label maps are 16-bit TIFF
files; 65535 marks pixels without a category. Images are shrunk to a short side of at most 512
pixels, because published figures refer to this size; --original-size keeps their size.
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
        "--input", dest="source", type=Path, help="default: <root>/ADE20K_2021_17_01"
    )
    add_preparation_arguments(parser)
    parser.add_argument(
        "--splits", nargs="+", choices=("train", "val"), default=["val"], help="default: val"
    )
    parser.add_argument(
        "--original-size", action="store_true", help="do not shrink images to 512 pixels"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = parse_args(argv)
    # Imported after parsing: dcp_clip imports torch, and --help must answer at once.
    from dcp_clip.data.preparation.ade20k import prepare_ade20k_847
    from dcp_clip.data.preparation.program import run_program

    return run_program(prepare_ade20k_847, **vars(args))


if __name__ == "__main__":
    sys.exit(main())
