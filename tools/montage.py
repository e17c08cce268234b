#!/usr/bin/env python
"""Draw a montage of the demo's results: each image beside its regions with their names.

python demo/demo.py --input photos/ --vocabulary "sky; tree" --output results/
python tools/montage.py results/ --output montage.png
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import output_path


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="output folders of demo.py")
    add("--output", type=output_path, required=True, metavar="PNG", help="the picture to write")
    add("--columns", type=int, default=2, help="pairs of pictures in a row (default: 2)")
    add("--side", type=int, default=320, help="long side of a picture in pixels (default: 320)")
    add("--only", type=int, nargs="+", metavar="N", help="use these results, counted from 0")
    add("--caption", default="", help="text below, such as the licence of the images")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    if min(args.columns, args.side) < 1:
        sys.exit("error: --columns and --side must be positive.")
    if not args.output.parent.is_dir():
        sys.exit(f"error: --output {args.output}: its folder does not exist.")
    # Late imports, so that --help is fast.
    from dcp_clip.utils.images.writing import write_png
    from dcp_clip.utils.montage import draw_montage, read_results

    try:
        results = [result for folder in args.folders for result in read_results(folder)]
        if not results:
            sys.exit("error: the folders contain no results.")
        for n in args.only or []:
            if not 0 <= n < len(results):
                sys.exit(f"error: --only {n}: there are {len(results)} results.")
        results = [results[n] for n in args.only] if args.only else results
        montage = draw_montage(results, columns=args.columns, side=args.side, caption=args.caption)
        write_png(args.output, montage)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
