#!/usr/bin/env python
"""Export a model to ONNX and torch.export, to run it without PyTorch. The names stay an input.

    python tools/export.py --config-file configs/camvid/dcp_clip_tiny.yaml \\
        --output output/onnx/camvid
    python tools/export.py --config-file output/mine/config.yaml \\
        --weights output/mine/model_final.pth --output output/onnx/mine

The folder contains image.onnx (image and text features to label map), encoder.onnx and head.onnx
(its two parts, without the label map), text.onnx (names to text features), labels.onnx (logits to a
label map of any size), .pt2 files, tokenizer.json and config.json. docs/export.md explains them and
how to run them.

It needs pip install -e '.[onnx]'.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import add_import, input_name, output_path


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    config_help = "config of the model"
    add("--config-file", required=True, type=input_name, metavar="YAML", help=config_help)
    weights_help = "sets MODEL.WEIGHTS; default: the weights that this repository contains for "
    add("--weights", type=input_name, help=weights_help + "the config")
    add("--output", required=True, type=output_path, metavar="FOLDER", help="a new or empty folder")
    int8_help = "compute the convolutions of encoder.onnx and head.onnx in int8; a folder of "
    add("--int8", type=Path, metavar="PHOTOS", help=int8_help + "photographs like those to segment")
    add_import(parser)
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys")
    return parser


def run(args: argparse.Namespace) -> None:
    # Late imports, so that --help is fast.
    from dcp_clip.config import setup_cfg
    from dcp_clip.engine.checkpoints.loading import shipped_weights
    from dcp_clip.export.folder import export_model
    from dcp_clip.predictor import Predictor
    from dcp_clip.utils.images.listing import list_images

    photographs = None if args.int8 is None else list_images([args.int8])
    weights = args.weights
    if weights is None:
        weights = shipped_weights(args.config_file, args.opts)
    opts = ["MODEL.DEVICE", "cpu", *args.opts]
    opts += [] if weights is None else ["MODEL.WEIGHTS", str(weights)]
    cfg = setup_cfg(args.config_file, opts, imports=args.imports)
    # A config without a training set has no names, and the export needs none.
    predictor = Predictor(cfg, None if cfg.DATASETS.TRAIN else ["thing"])
    export_model(cfg, predictor.model, args.output, photographs)
    for path in sorted(args.output.iterdir()):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def main(argv: Sequence[str] | None = None) -> None:
    args = get_parser().parse_args(argv)
    from dcp_clip.utils.arguments import format_error

    try:
        run(args)
    except (ImportError, KeyError, OSError, RuntimeError, ValueError) as error:
        sys.exit(f"error: {format_error(error)}")


if __name__ == "__main__":
    main()
