"""Logs of a training or an evaluation: on the screen and in OUTPUT_DIR/log.txt."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from dcp_clip.engine.checkpoints.safe_checkpointer import LAST
from dcp_clip.utils.atomic_files import atomic_write

__all__ = ["set_up_logs"]

# Long messages of Detectron2 that go to OUTPUT_DIR/log.txt only.
_FILE_ONLY = ("Environment info", "Contents of args", "Running with full config", "Model:\n")


def set_up_logs(cfg: CfgNode, args: argparse.Namespace, debug: bool = False) -> None:
    """Do what Detectron2's ``default_setup`` does: loggers, ``config.yaml`` and the seed.

    An evaluation keeps the ``config.yaml`` of a training in OUTPUT_DIR; its own config is in the
    log. Log files are in UTF-8 in every locale. The screen shows no tracebacks and no long
    messages.

    Args:
        cfg: the whole config.
        args: the arguments of the program.
        debug: show everything on the screen.
    """
    # default_setup imports a module that warns about every machine without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    rank = comm.get_rank()
    loggers = [
        # default_setup calls the first two in the same way and gets the same loggers.
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="fvcore"),
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank),
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=rank, name="dcp_clip"),
    ]
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if handler.stream is not sys.stdout:
            handler.stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        elif not debug:
            handler.addFilter(_is_for_screen)
    config = Path(cfg.OUTPUT_DIR, "config.yaml")
    is_of_training = config.exists() and config.with_name(LAST).exists()
    kept = config.read_bytes() if args.eval_only and is_of_training else None
    # default_setup would read the config file in the encoding of the locale.
    default_setup(cfg, argparse.Namespace(**{**vars(args), "config_file": ""}))
    if kept is not None and comm.is_main_process():
        with atomic_write(config) as file:
            file.write(kept)
        logging.getLogger(__name__).info("Kept %s, the config of the training", config)
    if args.config_file:
        logging.getLogger(__name__).info("Config file: %s", args.config_file)


def _is_for_screen(record: logging.LogRecord) -> bool:
    """Return False for long messages and for tracebacks."""
    return not record.exc_info and not record.getMessage().startswith(_FILE_ONLY)
