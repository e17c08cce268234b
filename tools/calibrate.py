#!/usr/bin/env python
"""Calibrate the confidence of trained weights, and measure it.

    python tools/calibrate.py --config-file configs/camvid/dcp_clip_tiny.yaml \\
        --fit camvid_sem_seg_val --write
    python tools/calibrate.py --config-file configs/camvid/dcp_clip_tiny.yaml \\
        --test camvid_sem_seg_val --unknown 3 --plot reliability.png

--fit finds the temperature on validation data. The error on the same data is that of the other half
of the images (two-fold cross-validation). --write stores the temperature next to the weights, where
Predictor and train_net.py find it. --test measures other data sets with this temperature, or with
the stored one.

--unknown removes a tenth of the names (three of fewer than 30) from the vocabulary, several times,
and measures how well the pixels of these names are detected: by confidence, by the entropy over the
proposals, by the scores of stages 1 and 5, and by a combination that is fitted on half of the
images. All figures are measured on the other half.

All results are measured on random pixels of each image. --opts changes keys of the config, for
example --opts TEST.MAX_IMAGES 250.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import add_import


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="YAML", help="file, or name of a shipped config")
    add_import(parser)
    add("--fit", nargs="+", default=[], metavar="DATASET", help="fit the temperature on these")
    add("--write", action="store_true", help="store the temperature next to MODEL.WEIGHTS")
    add("--test", nargs="+", default=[], metavar="DATASET", help="measure these as well")
    add("--unknown", type=int, default=0, metavar="N", help="unknown detection: N choices of names")
    add("--pixels", type=int, default=400, metavar="N", help="of each image (default: %(default)s)")
    add("--json", type=Path, metavar="FILE", help="also write all figures to this file")
    add("--plot", type=Path, metavar="PNG", help="also draw a reliability diagram")
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys to override")
    return parser


def run(args: argparse.Namespace) -> None:
    from dcp_clip.benchmarking.calibration_study import CalibrationStudy, save_diagram
    from dcp_clip.utils.arguments import require_folders
    from dcp_clip.utils.atomic_files import atomic_write

    require_folders({"--json": args.json, "--plot": args.plot})
    study = CalibrationStudy(
        args.config_file,
        args.opts,
        args.pixels,
        args.imports,
        refit=bool(args.fit),
        write=args.write,
    )
    datasets = dict.fromkeys([*args.fit, *args.test])
    for name in datasets if args.unknown else ():
        study.check_unknown(name, args.unknown)
    if args.fit:
        study.fit(args.fit)
    if args.write:
        print(f"Wrote {study.write(args.fit)}.")
    for name in datasets:
        if name not in args.fit:
            study.measure(name)
    try:
        for name in datasets if args.unknown else ():
            study.measure_unknown(name, args.unknown)
    finally:  # an error of the second part loses nothing of the first
        print(study.to_markdown())
        if args.json:
            with atomic_write(args.json, "w") as file:
                file.write(json.dumps(study.results, indent=1) + "\n")
    if args.plot:
        save_diagram(args.plot, study.results["calibration"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if not (args.fit or args.test):
        parser.error("give --fit or --test")
    if args.write and not args.fit:
        parser.error("--write needs --fit")
    if args.unknown < 0 or args.pixels < 1:
        parser.error("--unknown must be at least 0, and --pixels at least 1")
    from dcp_clip.utils.arguments import format_error

    try:
        run(args)
    except (KeyError, OSError, RuntimeError, ValueError, ImportError) as error:
        if type(error) is RuntimeError:  # a bug; user errors are subclasses with a clear message
            raise
        sys.exit(f"error: {format_error(error)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
