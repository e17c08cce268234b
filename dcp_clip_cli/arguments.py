"""Arguments that several commands have, and their types."""

import argparse
from pathlib import Path

__all__ = [
    "BACKENDS",
    "DEFAULT_CONFIG",
    "add_import",
    "add_model_arguments",
    "add_preparation_arguments",
    "check_backend",
    "input_name",
    "output_name",
    "output_path",
    "positive",
]

DEFAULT_CONFIG = "camvid/dcp_clip_tiny.yaml"
# Values of --backend, and the backend of an exported model.
BACKENDS = {"torch": None, "onnx": "onnxruntime", "openvino": "openvino"}


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that choose a model, its weights and its config keys."""
    add = parser.add_argument
    add("--config-file", type=input_name, default=DEFAULT_CONFIG, help="default: %(default)s")
    weights_help = "sets MODEL.WEIGHTS; default: the weights that this repository contains for "
    add("--weights", type=input_name, help=weights_help + "the config")
    backend_help = "with onnx or openvino, --weights is a folder of tools/export.py "
    backend_help += "(docs/export.md); default: %(default)s"
    add("--backend", choices=BACKENDS, default="torch", help=backend_help)
    add_import(parser)
    add("--opts", nargs="*", default=[], metavar="KEY VALUE", help="config keys to override")


def check_backend(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """End the program if an exported model lacks --weights, or gets options without effect."""
    if args.backend == "torch":
        return
    if args.weights is None or args.config_file != DEFAULT_CONFIG or args.opts or args.imports:
        parser.error(
            f"--backend {args.backend} needs --weights with a folder of tools/export.py, and takes "
            "no --config-file, no --opts and no --import"
        )


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add --import, whose modules are in the list `imports`."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module of your own first, such as my_heads for my_heads.py in this folder "
        "(docs/new_head.md); can be repeated",
    )


def add_preparation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all programs in datasets/ have."""
    add = parser.add_argument
    add("--root", type=output_path, help="default: $DETECTRON2_DATASETS or ./datasets")
    add("--workers", type=positive, help="number of processes (default: all processors)")


def positive(text: str) -> int:
    """Parse a number above 0."""
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def input_name(text: str) -> str:
    """Parse a path or URL to read, or the name of a shipped config.

    An empty one, such as a shell variable without a value, would be the current folder, or the
    defaults of Detectron2, or random weights.
    """
    return _not_empty(text, "name what to read, or . for the current folder")


def output_name(text: str) -> str:
    """Parse a path or URL to write to; an empty one would be the current folder."""
    return _not_empty(text, "name where to write, or . for the current folder")


def _not_empty(text: str, advice: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"'{text}' is empty: {advice}")
    return text


def output_path(text: str) -> Path:
    """Parse a path to write to, as `output_name` does."""
    return Path(output_name(text))
