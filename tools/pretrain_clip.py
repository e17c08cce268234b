#!/usr/bin/env python
"""Pre-train the small CLIP of EmojiScenes on its drawings and their names.

    python datasets/prepare_emoji_scenes.py
    python tools/pretrain_clip.py --config-file configs/emoji_scenes/clip_tiny.yaml
    python tools/pretrain_clip.py --config-file configs/emoji_scenes/clip_tiny.yaml --resume
    python tools/pretrain_clip.py --config-file configs/emoji_scenes/clip_tiny.yaml --eval-only \\
        MODEL.WEIGHTS output/emoji_scenes/clip/model_final.pth

The zero-shot accuracy is measured every TEST.EVAL_PERIOD iterations. At the end,
OUTPUT_DIR/clip.pth contains the weights in half precision, with open_clip's parameter names.
MODEL.CLIP.PRETRAINED accepts this file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import add_import


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    config_help = "config file, or the name of a shipped one (default: %(default)s)"
    add("--config-file", default="emoji_scenes/clip_tiny.yaml", metavar="YAML", help=config_help)
    add_import(parser)
    resume_help = "continue from the last checkpoint in OUTPUT_DIR; with --eval-only, evaluate it"
    add("--resume", action="store_true", help=resume_help)
    add("--eval-only", action="store_true", help="only measure the zero-shot accuracy")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    return parser


def pretrain(args: argparse.Namespace) -> dict | None:
    """Pre-train, or evaluate and return the zero-shot accuracies."""
    from dcp_clip import model_zoo
    from dcp_clip.config import get_cfg, setup_cfg
    from dcp_clip.emoji_scenes.pretraining import CLIPTrainer, add_pretraining_config
    from dcp_clip.engine.checkpoints.file_format import half_precision
    from dcp_clip.engine.checkpoints.loading import load_weights
    from dcp_clip.engine.checkpoints.training_folder import training_folder
    from dcp_clip.engine.logs import set_up_logs
    from dcp_clip.utils.tensor_files import write_tensors
    from dcp_clip_cli.training import weights_to_evaluate

    cfg = get_cfg()
    add_pretraining_config(cfg)
    args.config_file = model_zoo.get_config_file(args.config_file)
    cfg = setup_cfg(args.config_file, args.opts, cfg, imports=args.imports)
    cfg.freeze()
    if args.eval_only:
        set_up_logs(cfg, args)
        weights = weights_to_evaluate(cfg, args)
        model = CLIPTrainer.build_model(cfg)
        load_weights(model, weights)
        return CLIPTrainer.test(cfg, model)
    with training_folder(cfg, args.resume):
        set_up_logs(cfg, args)
        trainer = CLIPTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        trainer.train()
        path = Path(cfg.OUTPUT_DIR) / "clip.pth"
        write_tensors(path, half_precision(trainer.model.clip_state()))
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = get_parser().parse_args(argv)
    try:
        pretrain(args)
    except (FloatingPointError, KeyError, OSError, RuntimeError, ValueError) as error:
        from dcp_clip.utils.arguments import format_error

        if type(error) is RuntimeError:  # a bug; user errors are subclasses with a clear message
            raise
        print(f"error: {format_error(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
