#!/usr/bin/env python
"""List the encoders that MODEL.CLIP.NAME can name, and compare them with open_clip.

python tools/list_encoders.py                        # all names; builds on the meta device
python tools/list_encoders.py ViT-B-16 --build       # builds with random weights and compares
python tools/list_encoders.py --build --limit 1.5    # all models up to 1.5 GB of weights

Prints a table in Markdown; docs/encoders.md explains its columns.
"""

import argparse
import sys
from collections.abc import Sequence


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="names of open_clip (default: all)")
    add("--build", action="store_true", help="run the models with random weights and compare")
    add(
        "--limit",
        type=float,
        default=1.5,
        metavar="GB",
        help="with --build, do not run models with more weights than this (default: 1.5)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if args.limit <= 0:
        sys.exit("error: --limit must be positive.")
    # Late imports, so that --help is fast.
    import open_clip

    from dcp_clip.benchmarking.encoders import COLUMNS, examine

    known = open_clip.list_models()
    for name in args.names:
        if name not in known:
            sys.exit(f"error: '{name}' is not a name of open_clip {open_clip.__version__}.")
    print(f"| {' | '.join(COLUMNS)} |\n|{' --- |' * len(COLUMNS)}", flush=True)
    for name in args.names or known:
        row = examine(name, limit=args.limit if args.build else 0.0)
        print(f"| {' | '.join(row.cells())} |", flush=True)


if __name__ == "__main__":
    main()
