#!/usr/bin/env python
"""Prepare CamVid (11 categories) for training and evaluation; see datasets/README.md.

    python datasets/prepare_camvid.py --input /path/to/CamVid

The input is SegNet's CamVid folder (train, trainannot, val, valannot, test, testannot) or a folder
with images/{train,val,test} and labels/{train,val,test}. The output is
<root>/camvid/{images,labels}/{train,val,test}; 255 marks unlabelled pixels.
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
        required=True,
        help="the downloaded CamVid",
    )
    add_preparation_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = parse_args(argv)
    # Imported after parsing: dcp_clip imports torch, and --help must answer at once.
    from dcp_clip.data.preparation.camvid import prepare_camvid
    from dcp_clip.data.preparation.program import run_program

    return run_program(prepare_camvid, **vars(args))


if __name__ == "__main__":
    sys.exit(main())
