#!/usr/bin/env python
"""Train or evaluate DCP-CLIP.

Examples::

    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml
    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml --resume
    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml --eval-only \
        MODEL.WEIGHTS output/model_final.pth
    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml --eval-only --resume
    python train_net.py --config-file configs/camvid/dcp_clip_tiny.yaml --eval-only  # as shipped
    python train_net.py --config-file configs/coco_stuff/dcp_clip_convnext_b.yaml --eval-only \
        MODEL.WEIGHTS output/model_final.pth \
        DATASETS.TEST "('ade20k_150_sem_seg_val','pascal_context_59_sem_seg_val')"
    python train_net.py --num-gpus 8 --config-file configs/coco_stuff/dcp_clip_convnext_b.yaml

Every evaluation leaves OUTPUT_DIR/results.md and results.json, see docs/benchmarks.md.
"""

import logging
import sys
from argparse import Namespace
from pathlib import Path

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from dcp_clip import setup_cfg
from dcp_clip.engine import Trainer
from dcp_clip.engine.checkpoint import has_weights, load_weights, shipped_weights, warn_if_untrained

logger = logging.getLogger("dcp_clip.train_net")


def setup(args: Namespace) -> CfgNode:
    """Config, output folder and loggers of this run."""
    cfg = setup_cfg(args.config_file, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="dcp_clip")
    return cfg


def weights_to_evaluate(cfg: CfgNode, resume: bool, shipped: Path | None = None) -> str:
    """The file to evaluate: with ``--resume`` the last checkpoint in OUTPUT_DIR, as in Detectron2.

    Args:
        cfg: config of the run.
        resume: whether ``--resume`` was given.
        shipped: what to evaluate where the config names no MODEL.WEIGHTS.

    Raises:
        ValueError: if there is no such checkpoint, or the config names no weights at all.
    """
    if resume:
        checkpointer = DetectionCheckpointer(nn.Module(), cfg.OUTPUT_DIR)
        if not checkpointer.has_checkpoint():
            raise ValueError(
                f"--resume asks for the last checkpoint in OUTPUT_DIR, but '{cfg.OUTPUT_DIR}' has "
                "none; name a file as MODEL.WEIGHTS."
            )
        return checkpointer.get_checkpoint_file()
    if shipped and not cfg.MODEL.WEIGHTS:
        logger.info(f"MODEL.WEIGHTS is empty: the weights that come with this config, {shipped}.")
        return str(shipped)
    if not has_weights(cfg):
        raise ValueError(
            "the config names no weights to evaluate: give MODEL.WEIGHTS, or --resume for the last "
            "checkpoint in OUTPUT_DIR."
        )
    return cfg.MODEL.WEIGHTS


def main(args: Namespace) -> dict:
    """Train, or evaluate with ``--eval-only``; one process of the launch."""
    cfg = setup(args)
    if args.eval_only:
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty: name the data sets to evaluate.")
        shipped = shipped_weights(args.config_file, args.opts)
        weights = weights_to_evaluate(cfg, args.resume, shipped)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = weights  # what the report is to name
        model = Trainer.build_model(cfg)
        load_weights(model, weights)
        warn_if_untrained(model, weights)
        results = Trainer.test(cfg, model)
        if comm.is_main_process():
            verify_results(cfg, results)
        return results
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    args = default_argument_parser().parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
    sys.exit(0)
