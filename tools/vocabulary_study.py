#!/usr/bin/env python
"""Measure accuracy and time of a trained model for vocabularies of different sizes.

    python tools/vocabulary_study.py --config-file configs/emoji_scenes/dcp_clip_tiny.yaml \\
        --dataset emoji_scenes_unseen_test --special --plot study.png

The images stay the same, and the number of names changes:

- A vocabulary smaller than the data set's contains the names of the image and random other names of
  the data set: users know what is in their image.
- A larger vocabulary contains the names of the data set and distractors: the names of --related,
  then English words by their frequency (from the package wordfreq). A pixel that gets a distractor
  is wrong, even if the word is correct ("animal" for an otter), so the figures are lower bounds.

Prints a Markdown table: mIoU of all names, of things and of stuff, the recall of the proposals in
percent, their mean number K, and the median time until every pixel has a category, without the text
features. --special adds three rows: one name; one name and "background"; all things and
"background" instead of the stuff.

The config's shipped weights are used unless MODEL.WEIGHTS names others. KEY VALUE changes the
config, e.g. MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING max.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import add_import, positive

SIZES = [20, 50, 174, 611, 2000, 6000, 20000]


def size_list(text: str) -> list[int]:
    """Convert "174,611,2000" to numbers."""
    return [positive(part) for part in text.split(",")]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--config-file",
        default="emoji_scenes/dcp_clip_tiny.yaml",
        metavar="YAML",
        help="config file, or the name of a shipped one (default: %(default)s)",
    )
    add_import(parser)
    add("--dataset", default="emoji_scenes_unseen_test", help="default: %(default)s")
    add("--sizes", type=size_list, default=SIZES, metavar="N,N,...", help=f"default: {SIZES}")
    add(
        "--related",
        default="emoji_scenes_all_test",
        metavar="DATASET",
        help="its names are the first distractors; '' for none (default: %(default)s)",
    )
    add("--images", type=positive, default=200, metavar="N", help="at most (default: 200)")
    add("--seed", type=int, default=0, help="of the random names of an image (default: 0)")
    add("--special", action="store_true", help="also one name, and names with a background")
    add("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    add("--plot", type=Path, metavar="PNG", help="also plot them over the number of names")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    return parser


def format_report(args: argparse.Namespace, result: dict) -> str:
    """A heading, what the figures depend on, and the table."""
    from dcp_clip.experiments.vocabulary_report import format_table

    environment = result["environment"]
    return (
        f"## {args.dataset}, {result['images']} images\n\n"
        f"{args.config_file}; weights: {environment['MODEL.WEIGHTS']}, fingerprint "
        f"{environment['weights fingerprint']}; prompts: {environment.get('prompts', '–')}; seed "
        f"{args.seed}; {environment['CPU']}, {environment['device']}.\n\n"
        f"{format_table(result['rows'])}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = get_parser().parse_args(argv)

    from dcp_clip.experiments.vocabulary_report import save_plot
    from dcp_clip.experiments.vocabulary_study import run_study
    from dcp_clip.utils.arguments import format_error, require_folders
    from dcp_clip.utils.atomic_files import WriteError, atomic_write

    require_folders({"--json": args.json, "--plot": args.plot})
    try:
        result = run_study(
            args.config_file,
            args.opts,
            args.dataset,
            args.sizes,
            related=args.related,
            limit=args.images,
            seed=args.seed,
            special=args.special,
            imports=args.imports,
        )
    except (KeyError, OSError, RuntimeError, ValueError) as error:
        if type(error) is RuntimeError:  # a bug; user errors are subclasses with a clear message
            raise
        print(f"error: {format_error(error)}", file=sys.stderr)
        return 1
    print(format_report(args, result))
    try:
        if args.json:
            settings = {k: v for k, v in vars(args).items() if k not in ("json", "plot")}
            with atomic_write(args.json, "w") as file:
                json.dump({"settings": settings, **result}, file, indent=1)
        if args.plot:
            save_plot(args.plot, result["rows"], result["own_names"])
    except WriteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
