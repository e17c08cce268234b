#!/usr/bin/env python
"""Pre-train a small CLIP on the drawings of EmojiScenes (docs/emoji_scenes.md).

    python datasets/prepare_emoji_scenes.py
    python tools/pretrain_clip.py --config-file configs/emoji_scenes/clip_tiny.yaml
    python tools/pretrain_clip.py --config-file configs/emoji_scenes/clip_tiny.yaml --resume

Zero-shot accuracy is measured every TEST.EVAL_PERIOD iterations. OUTPUT_DIR/clip.pth holds the
weights in half precision, as open_clip names them: MODEL.CLIP.PRETRAINED takes the file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils.logger import setup_logger

from dcp_clip import setup_cfg
from dcp_clip.emoji_scenes.pretraining.trainer import CLIPTrainer
from dcp_clip.engine.checkpoint import half_precision
from dcp_clip.utils.image_io import atomic_write


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Detectron2's arguments, but for those that need several processes."""
    parser = default_argument_parser()
    args = parser.parse_args(argv)
    if args.num_gpus > 1 or args.num_machines > 1:
        parser.error("this pre-training is one process: leave --num-gpus and --num-machines out.")
    return args


def main(args: argparse.Namespace) -> dict | None:
    """Pre-train, or with ``--eval-only`` measure and return what was measured."""
    cfg = setup_cfg(args.config_file, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(output=cfg.OUTPUT_DIR, name="dcp_clip")
    trainer = CLIPTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    if args.eval_only:
        return CLIPTrainer.test(cfg, trainer.model)
    trainer.train()
    path = Path(cfg.OUTPUT_DIR) / "clip.pth"
    with atomic_write(path) as file:
        torch.save(half_precision(trainer.model.clip_state()), file)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")
    return None


if __name__ == "__main__":
    main(parse_arguments())
