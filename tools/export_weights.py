#!/usr/bin/env python
"""Reduce a checkpoint of train_net.py to its weights, in half precision.

    python tools/export_weights.py output/camvid/model_final.pth output/camvid_tiny.pth
    python tools/export_weights.py output/mine/model_final.pth output/mine_04.pth \\
        --wise-ft-alpha 0.4 --config-file output/mine/config.yaml
    python tools/export_weights.py output/mine/model_final.pth --output output/my_model \\
        --config-file output/mine/config.yaml --results output/mine/results.json

The file has no optimizer state and no moving average. Matrices and kernels become float16; vectors
(norms, biases, statistics) keep their precision. Loading converts back to float32. The file records
whether its image tower is interpolated, so that it is not interpolated twice.

--output writes a model folder for `Predictor.from_pretrained` instead: config, weights, names,
calibration, and a model card with the evaluation of --results.

--wise-ft-alpha interpolates the image tower with the original CLIP weights, as SOLVER.WISE_FT_ALPHA
does at the end of training. Use it to choose the value for a model that was trained without. The
config, best the config.yaml in the folder of the training, tells which CLIP it started from.
"""

# ruff: noqa: E402  (The arguments are parsed before the imports that take seconds.)

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import add_import, output_path

TOWER = "backbone."
_SUFFIXES = (".pth", ".pt", ".bin")  # of PyTorch's format; other readers choose by the suffix


def alpha(text: str) -> float:
    """Convert an argument to a number between 0 and 1."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint of train_net.py")
    parser.add_argument("weights", type=Path, nargs="?", help="file to write")
    parser.add_argument(
        "--output", type=output_path, metavar="FOLDER", help="model folder to write, new or empty"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="results.json of these weights, for --output"
    )
    parser.add_argument(
        "--wise-ft-alpha",
        type=alpha,
        metavar="ALPHA",
        help="fraction of the original CLIP weights, between 0 and 1",
    )
    parser.add_argument("--config-file", metavar="FILE", help="config of the training")
    add_import(parser)
    args = parser.parse_args(argv)
    if (args.weights is None) == (args.output is None):
        parser.error("give the file to write, or --output")
    needed = args.wise_ft_alpha is not None or args.output is not None
    if needed != (args.config_file is not None):
        parser.error("--config-file is for --wise-ft-alpha and --output, which need it")
    if args.weights is not None:
        if args.weights.suffix not in _SUFFIXES:
            parser.error(f"'{args.weights}' must end in {' or '.join(_SUFFIXES)}")
        if args.weights.resolve() == args.checkpoint.resolve():
            parser.error("the file to write is the checkpoint, which would lose the optimizer")
    if args.results and (args.output is None or args.wise_ft_alpha is not None):
        parser.error("--results is for --output without --wise-ft-alpha, which changes the weights")
    return args


if __name__ == "__main__":
    ARGS = parse_args()  # before the imports, which take seconds

import dcp_clip

# isort: split
from detectron2.modeling import build_backbone
from torch import Tensor

from dcp_clip.engine.checkpoints.file_format import (
    applied_alpha,
    exported_content,
    half_precision,
    read_checkpoint,
    trained_weights,
)
from dcp_clip.engine.weight_interpolation import interpolate_weights
from dcp_clip.hub.card import read_results
from dcp_clip.hub.folder import write_folder
from dcp_clip.modeling.clip.loading import CLIPWeightsError
from dcp_clip.utils.arguments import format_error
from dcp_clip.utils.tensor_files import TensorFileError, write_tensors


def read_original_tower(
    config_file: str, imports: Sequence[str] = ()
) -> tuple[dict[str, Tensor], float]:
    """Build the image tower of a config with the original CLIP weights.

    Returns:
        Its state dict, and SOLVER.WISE_FT_ALPHA of the config.

    Raises:
        SystemExit: if the config names no CLIP weights, or they cannot be read.
    """
    try:
        cfg = dcp_clip.setup_cfg(config_file, ["MODEL.DEVICE", "cpu"], imports=imports)
        if not cfg.MODEL.CLIP.PRETRAINED:
            sys.exit(f"{config_file} names no CLIP weights (MODEL.CLIP.PRETRAINED).")
        return build_backbone(cfg).state_dict(), cfg.SOLVER.WISE_FT_ALPHA
    except (OSError, KeyError, ValueError, CLIPWeightsError) as error:
        sys.exit(f"{config_file}: {format_error(error)}")


def write_model_folder(args: Namespace, weights: dict[str, Tensor]) -> None:
    """Write the folder of --output.

    Raises:
        SystemExit: if the checkpoint, the config and the results do not fit together.
    """
    try:
        opts = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(args.checkpoint)]
        predictor = dcp_clip.Predictor.from_config_file(
            args.config_file, opts=opts, imports=args.imports
        )
        model = predictor.model
        results = None if args.results is None else read_results(args.results, model)
        model.load_state_dict(weights)
        if args.wise_ft_alpha is not None:
            model.temperature = 1.0  # the calibration is that of other weights
        write_folder(args.output, predictor.cfg, model, predictor.vocabulary, results)
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        sys.exit(format_error(error))
    size = sum(path.stat().st_size for path in args.output.iterdir()) / 2**20
    print(f"{args.output}: a model folder for Predictor.from_pretrained, {size:.1f} MiB")


def export(args: Namespace) -> None:
    """Write the weights.

    Raises:
        SystemExit: if the checkpoint does not fit the other arguments.
    """
    try:
        checkpoint = read_checkpoint(args.checkpoint, bare=False)
    except TensorFileError as error:
        sys.exit(str(error))
    weights = dict(trained_weights(checkpoint))
    applied = applied_alpha(checkpoint)
    if args.wise_ft_alpha is not None:
        if applied:
            sys.exit(
                f"{args.checkpoint} is interpolated already, with SOLVER.WISE_FT_ALPHA {applied}: "
                "train with 0.0 to choose another value, or leave out --wise-ft-alpha."
            )
        original, planned = read_original_tower(args.config_file, args.imports)
        if applied is None and planned:
            sys.exit(
                f"{args.checkpoint} may already be interpolated, because {args.config_file} has "
                f"SOLVER.WISE_FT_ALPHA {planned} and the file has no record of it: give the "
                "checkpoint of train_net.py instead, or leave out --wise-ft-alpha."
            )
        # An exported file has half precision, which is not precise enough to interpolate.
        weights = {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}
        tower = {k.removeprefix(TOWER): v for k, v in weights.items() if k.startswith(TOWER)}
        if other := [k for k, v in original.items() if k not in tower or tower[k].shape != v.shape]:
            sys.exit(
                f"{args.checkpoint} has another image tower than the config ({TOWER}{other[0]}): "
                "give the config that it was trained with."
            )
        interpolate_weights(tower, original, args.wise_ft_alpha)
        applied = args.wise_ft_alpha
    weights = half_precision(weights)
    if args.output is not None:
        return write_model_folder(args, weights)
    try:
        args.weights.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(args.weights, exported_content(weights, applied))
    except OSError as error:
        sys.exit(str(error))
    size = args.weights.stat().st_size / 2**20
    print(f"{args.weights}: {sum(v.numel() for v in weights.values()):,} values, {size:.1f} MiB")


if __name__ == "__main__":
    export(ARGS)
