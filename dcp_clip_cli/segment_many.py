"""Segment millions of images on a cluster with Ray Data (docs/bulk.md).

    dcp-clip segment-many --input photos/ --vocabulary "sky; tree; car" --output results/
    dcp-clip segment-many --input s3://bucket/list.parquet --output s3://bucket/results \\
        --address auto --actors 32 --gpus-per-actor 1 --batch-size 16

In a clone of the repository, `python tools/segment_many.py` is the same program.

The inputs are folders, glob patterns, image files, lists (.parquet or .jsonl, with a column "file"
or "path") and WebDataset shards (.tar). They and the output can be URLs, such as s3:// and gs://.

The output folder gets Parquet files with one row for each image. Each file holds a fixed part of
the sorted inputs, and is complete or absent. A run can be stopped at any moment, also by the loss
of machines: the same command continues it. A folder with the results of another model, vocabulary
or list of images is refused.

An image that fails becomes a row with an error. The exit status is then 1. After Ctrl-C it is 130.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

from dcp_clip_cli.arguments import (
    BACKENDS,
    add_model_arguments,
    check_backend,
    input_name,
    output_name,
    positive,
)

PACKAGES = ("ray", "pyarrow")


def actors(text: str) -> tuple[int, int]:
    """Parse "4" or "2:8"."""
    low, _, high = text.partition(":")
    numbers = int(low), int(high or low)
    if not 1 <= numbers[0] <= numbers[1]:
        raise ValueError(text)
    return numbers


def get_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the arguments; `prog` is the name of the program in its usage line."""
    parser = argparse.ArgumentParser(
        prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    input_help = "paths or URLs of the inputs"
    add("--input", nargs="+", required=True, type=input_name, help=input_help)
    output_help = "path or URL of a folder that all workers can write to"
    add("--output", required=True, type=output_name, help=output_help)
    add("--vocabulary", help="names, a file of names or a data set, as for `dcp-clip segment`")
    labels_help = "label maps in the results: COCO run-length encoding for each category, or PNG"
    add("--labels", choices=("rle", "png"), default="rle", help=labels_help)
    partition_help = "images in each Parquet file (default: %(default)s)"
    add("--partition-size", type=positive, default=256, metavar="N", help=partition_help)
    retry_help = "segment the partitions that have rows with an error again"
    add("--retry-errors", action="store_true", help=retry_help)
    address_help = 'a Ray cluster, such as "auto"; default: start Ray on this machine'
    add("--address", help=address_help)
    actors_help = "copies of the model; MIN:MAX lets Ray start more when images wait (default: 1)"
    add("--actors", type=actors, default=(1, 1), metavar="N", help=actors_help)
    gpus_help = "GPUs of each copy, such as 1 or 0.5; default: 0, the CPU"
    add("--gpus-per-actor", type=float, default=0, metavar="N", help=gpus_help)
    cpus_help = "CPU cores of each copy (default: %(default)g)"
    add("--cpus-per-actor", type=float, default=1, metavar="N", help=cpus_help)
    batch_help = "images of equal size that a copy segments at once (default: %(default)s)"
    add("--batch-size", type=positive, default=1, metavar="N", help=batch_help)
    add_model_arguments(parser)
    return parser


def make_predictor(args: argparse.Namespace) -> Any:
    """Return the predictor of the arguments."""
    from dcp_clip import Predictor
    from dcp_clip.folder_run.onnx_predictor import RunOnnxPredictor
    from dcp_clip.modeling.large_image import LARGE_IMAGE_PIXELS

    if args.backend != "torch":
        return RunOnnxPredictor(args.weights, args.vocabulary, backend=BACKENDS[args.backend])
    # The actors move the model to their GPUs.
    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    predictor = Predictor.from_config_file(
        args.config_file, args.weights, opts, args.vocabulary, imports=args.imports
    )
    # Images are resized before they are sent to the model, so there are no windows.
    predictor.max_input_pixels = LARGE_IMAGE_PIXELS
    return predictor


def run(args: argparse.Namespace) -> int:
    """Segment the images, and return the exit status."""
    # Late imports, so that --help is fast.
    from dcp_clip import __version__

    predictor = make_predictor(args)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"error: {missing[0]} is not installed: pip install 'dcp_clip[ray]'")
    from dcp_clip.bulk.run import BulkOptions, connect, segment_many

    options = BulkOptions(
        actors=args.actors,
        gpus=args.gpus_per_actor,
        cpus=args.cpus_per_actor,
        batch_size=args.batch_size,
        partition_size=args.partition_size,
        labels=args.labels,
        retry_errors=args.retry_errors,
    )
    connect(args.address, options)
    summary = segment_many(predictor, args.input, args.output, __version__, options)
    skipped, errors = summary["skipped"], summary["errors"]
    notes = [f"{summary['images']} images in {summary['partitions']} partitions"]
    notes += [f"{skipped} partitions skipped"] if skipped else []
    notes += [f"{errors} errors"] if errors else []
    print(f"{', '.join(notes)}; results in {args.output}")
    return int(bool(errors))


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the program, and return its exit status."""
    parser = get_parser(prog)
    args = parser.parse_args(argv)
    check_backend(parser, args)
    if args.backend != "torch" and (args.gpus_per_actor or args.batch_size > 1):
        parser.error(
            f"--backend {args.backend} segments each image alone and on CPUs: leave out "
            "--gpus-per-actor and --batch-size"
        )
    from dcp_clip.utils.arguments import format_error

    try:
        return run(args)
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {format_error(error)}")
