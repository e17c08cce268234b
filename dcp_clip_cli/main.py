"""Segment images with any list of names, and train and evaluate the models for it.

    dcp-clip segment --input photos/ --vocabulary "sky; tree; car, automobile" --output results/
    dcp-clip evaluate --config-file camvid/dcp_clip_tiny.yaml

`dcp-clip COMMAND --help` explains the options of a command.
"""

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

# Module and purpose of each command.
COMMANDS = {
    "segment": ("segment", "segment image files and folders on this machine"),
    "segment-many": ("segment_many", "segment millions of images with Ray, also on a cluster"),
    "app": ("app", "serve a page for the browser that segments images"),
    "train": ("train", "train a model"),
    "evaluate": ("train", "evaluate a model: train --eval-only"),
    "check": ("check", "check the installation"),
}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "dcp-clip", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    version = f"dcp_clip {importlib.metadata.version('dcp_clip')}"
    parser.add_argument("--version", action="version", version=version)
    purposes = "; ".join(f"{name}: {purpose}" for name, (_, purpose) in COMMANDS.items())
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=purposes)
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="...", help="options of the command"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit status."""
    args = get_parser().parse_args(argv)
    arguments = ["--eval-only", *args.arguments] if args.command == "evaluate" else args.arguments
    program = importlib.import_module(f"dcp_clip_cli.{COMMANDS[args.command][0]}")
    try:
        return program.main(arguments, prog=f"dcp-clip {args.command}") or 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
