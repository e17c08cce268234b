"""Train or evaluate in one or several processes, with the arguments of `dcp_clip_cli.train`."""

import contextlib
import logging
import os
import re
import sys
from argparse import Namespace

# First, because it silences warnings that Detectron2 causes when it is imported.
import dcp_clip

# isort: split
import torch
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from dcp_clip.data.pairing import DatasetError
from dcp_clip.engine import Trainer
from dcp_clip.engine.checkpoints.loading import (
    WeightsError,
    has_weights,
    last_checkpoint,
    load_weights,
    shipped_weights,
    warn_if_untrained,
)
from dcp_clip.engine.checkpoints.training_folder import training_folder
from dcp_clip.engine.logs import set_up_logs
from dcp_clip.evaluation.build import check_expected_results
from dcp_clip.modeling.clip.loading import CLIPWeightsError
from dcp_clip.utils.arguments import format_error

logger = logging.getLogger("dcp_clip.train_net")

# The environment variables of a process that torchrun has started.
_TORCHRUN = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}

# Errors that a user can cause and correct; the last one is a loss that is not finite.
USER_ERRORS = (
    OSError,
    KeyError,
    ValueError,
    DatasetError,
    CLIPWeightsError,
    WeightsError,
    FloatingPointError,
)


def read_config(args: Namespace) -> CfgNode:
    """Read the config that the arguments name."""
    if args.config_file:
        args.config_file = dcp_clip.model_zoo.get_config_file(args.config_file)
    cfg = dcp_clip.setup_cfg(args.config_file, args.opts, imports=args.imports)
    cfg.freeze()
    return cfg


def weights_to_evaluate(cfg: CfgNode, args: Namespace) -> str:
    """Return the file to evaluate; with ``--resume`` the last checkpoint in OUTPUT_DIR.

    Raises:
        ValueError: if the config names no weights.
        WeightsError: if there is no such checkpoint, or the command line also names weights.
    """
    if args.resume:
        return last_checkpoint(cfg.OUTPUT_DIR, args.opts)
    shipped = shipped_weights(args.config_file, args.opts)
    if shipped and not cfg.MODEL.WEIGHTS:
        logger.info(f"MODEL.WEIGHTS is empty: evaluating the shipped weights {shipped}.")
        return str(shipped)
    if not has_weights(cfg):
        raise ValueError(
            "The config names no weights to evaluate: set MODEL.WEIGHTS, or give --resume for the "
            "last checkpoint in OUTPUT_DIR."
        )
    return cfg.MODEL.WEIGHTS


def evaluate(cfg: CfgNode, args: Namespace) -> dict:
    """Evaluate on DATASETS.TEST, and compare with TEST.EXPECTED_RESULTS."""
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty: set the data sets to evaluate.")
    check_expected_results(cfg)
    weights = weights_to_evaluate(cfg, args)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = weights  # the report shows it
    model = Trainer.build_model(cfg)
    load_weights(model, weights)
    warn_if_untrained(model, weights)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def main(args: Namespace) -> dict | None:
    """Train, or evaluate with ``--eval-only``, in one process."""
    cfg = read_config(args)
    own = contextlib.nullcontext() if args.eval_only else training_folder(cfg, args.resume)
    with own:
        set_up_logs(cfg, args, args.debug)
        if args.eval_only:
            return evaluate(cfg, args)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()


def describe(error: Exception) -> str:
    """Return the message of an error in one line."""
    message = format_error(error).strip()
    if "in DataLoader worker process" in message:  # it contains the worker's traceback
        # The message follows the class of the error: "ValueError: ...".
        message = re.split(r"^[\w.]*(?:Error|Exception): ", message, flags=re.MULTILINE)[-1]
    return " ".join(message.split())


def run(args: Namespace, errors: mp.SimpleQueue) -> None:
    """Run one process of the launch; put the message of a user's error into a queue."""
    try:
        main(args)
    except USER_ERRORS as error:
        if args.debug:
            raise
        errors.put(describe(error))
        sys.exit(1)


def join_torchrun(args: Namespace) -> None:
    """Train or evaluate in one of the processes that torchrun has started.

    Restarted processes continue from the last checkpoint, so --max-restarts needs --resume.
    """
    if (args.num_gpus, args.num_machines, args.dist_url) != (1, 1, "auto"):
        sys.exit(
            "torchrun starts the processes: leave out --num-gpus, --num-machines, --machine-rank "
            "and --dist-url."
        )
    rank, per_machine = (int(os.environ[key]) for key in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    has_gpu = torch.cuda.is_available()
    if has_gpu and per_machine > torch.cuda.device_count():
        sys.exit(
            f"--nproc-per-node of torchrun is {per_machine}, but there are "
            f"{torch.cuda.device_count()} GPUs."
        )
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) and not (args.resume or args.eval_only):
        sys.exit(
            "--max-restarts of torchrun needs --resume, with which restarted processes continue "
            "from the last checkpoint; a new training starts as without it."
        )
    if has_gpu:
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=DEFAULT_TIMEOUT)
    try:
        comm.create_local_process_group(per_machine)
        comm.synchronize()
        main(args)
    except USER_ERRORS as error:
        if args.debug:
            raise
        sys.exit(describe(error))
    # torchrun stops all processes if one fails. So no process ends while another still writes.
    comm.synchronize()
    torch.distributed.destroy_process_group()


def start(args: Namespace) -> None:
    """Start the processes; a user's error ends the program with its message.

    A process that torchrun has started is one of them, and starts no others.
    """
    if _TORCHRUN <= os.environ.keys():
        join_torchrun(args)
        return
    if torch.cuda.is_available() and args.num_gpus > torch.cuda.device_count():
        sys.exit(f"--num-gpus is {args.num_gpus}, but there are {torch.cuda.device_count()} GPUs.")
    errors = mp.get_context("spawn").SimpleQueue()
    try:
        launch(
            run,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args, errors),
        )
    except (SystemExit, mp.ProcessExitedException, mp.ProcessRaisedException):
        if errors.empty():
            raise
        sys.exit(errors.get())
