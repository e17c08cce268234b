"""Train or evaluate DCP-CLIP.

`dcp-clip train` and `python train_net.py` are the same program.

Examples:
    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml
    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml --resume
    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml --eval-only \\
        MODEL.WEIGHTS output/camvid/dcp_clip_tiny/model_final.pth
    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml --eval-only --resume
    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml --eval-only  # shipped
    python train_net.py --config-file configs/coco_stuff/dcp_clip_convnext_b.yaml --num-gpus 8

The config, the log, the checkpoints and the results go to OUTPUT_DIR. Evaluations write results.md
and results.json, see docs/benchmarks.md.
"""

import argparse
from argparse import Namespace
from collections.abc import Sequence

from dcp_clip_cli.arguments import add_import


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> Namespace:
    """Parse the options of Detectron2's training programs, and ``--debug``."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="config file, or the name of a shipped one",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the training in OUTPUT_DIR; with --eval-only, evaluate its last checkpoint",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate without training")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine")
    parser.add_argument("--num-machines", type=int, default=1, help="number of machines")
    parser.add_argument("--machine-rank", type=int, default=0, help="index of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        metavar="URL",
        help="address for several processes, such as tcp://127.0.0.1:50000; by default a free port "
        "of this machine",
    )
    add_import(parser)
    parser.add_argument("--debug", action="store_true", help="show the traceback of every error")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="config values that replace those of the file; they must follow the other options",
    )
    args = parser.parse_args(argv)
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("several machines need --dist-url, the same on each of them")
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the program; an error of the user ends it with a message."""
    args = parse_args(argv, prog)
    # A late import, so that --help is fast.
    from dcp_clip_cli.training import start

    start(args)
