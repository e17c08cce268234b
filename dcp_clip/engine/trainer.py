"""Detectron2's DefaultTrainer with the data, evaluators, optimizer and hooks of DCP-CLIP."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, hooks
from detectron2.engine.train_loop import AMPTrainer, SimpleTrainer, TrainerBase
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dcp_clip.data.catalog import evenly_spaced
from dcp_clip.data.dataset_mapper import SemSegDatasetMapper
from dcp_clip.data.train_loader import (
    ResumableLoader,
    build_train_loader,
    preserve_random_state,
)
from dcp_clip.engine.checkpoints.loading import load_weights
from dcp_clip.engine.checkpoints.remote_copy import RemoteCopy
from dcp_clip.engine.checkpoints.safe_checkpointer import FINAL, SafeCheckpointer
from dcp_clip.engine.checkpoints.training_folder import training_record
from dcp_clip.engine.ema import EMAHook
from dcp_clip.engine.metrics import MetricsHook
from dcp_clip.engine.optimizer import build_optimizer
from dcp_clip.engine.optimizer_state import keep_groups
from dcp_clip.engine.resume import ResumeHook
from dcp_clip.engine.weight_interpolation import WeightInterpolationHook
from dcp_clip.evaluation import (
    EvaluationReport,
    SpeedEvaluator,
    build_sem_seg_evaluator,
    build_test_evaluators,
    evaluation_environment,
)
from dcp_clip.modeling.stages.registry import CATEGORY_PROPOSAL_REGISTRY

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates DCP-CLIP. Use it like :class:`DefaultTrainer`; see ``train_net.py``."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the whole config.

        Raises:
            ValueError: if SOLVER.AMP.ENABLED is set on a CPU.
        """
        # The constructor of DefaultTrainer cannot be used for two reasons. On CPUs,
        # DistributedDataParallel must get no device_ids. Some combinations of stages leave
        # parameters without a gradient: DenseProposal does not use the last layers of a ViT.
        TrainerBase.__init__(self)
        if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
            raise ValueError(
                "SOLVER.AMP.ENABLED trains in float16, which needs CUDA: set it to False on a CPU. "
                "MODEL.DCP_CLIP.BF16 is faster if the CPU has AVX-512 BF16 or AMX."
            )
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        options = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
        options |= {"broadcast_buffers": False, "find_unused_parameters": True}
        model = create_ddp_model(model, **options)
        self._trainer = (AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer)(
            model, loader, optimizer
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        copy = RemoteCopy.from_config(cfg)
        self.checkpointer = SafeCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            record=training_record(cfg),
            copy=copy and copy.add,
            trainer=weakref.proxy(self),
        )
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Resume the training in OUTPUT_DIR, or load MODEL.WEIGHTS.

        Resumed training continues with the same images and random numbers that the interrupted
        training would have used next, see :class:`ResumeHook`. Learning rates, weight decays and
        other settings of the optimizer are those of the config, also if they have changed.

        Raises:
            WeightsError: if MODEL.WEIGHTS does not fit the model, see :func:`load_weights`.
            ValueError: if the checkpoint has more than SOLVER.MAX_ITER iterations, or the processes
                of the training do not see the same checkpoint.
        """
        if resume:
            found = comm.all_gather(Path(self.checkpointer.get_checkpoint_file()).name)
            if len(set(found)) > 1:
                raise ValueError(
                    f"The processes see different checkpoints in '{self.cfg.OUTPUT_DIR}': "
                    f"{', '.join(name or 'none' for name in found)}. Set OUTPUT_DIR to a folder "
                    "that all machines share, or set SOLVER.CHECKPOINT_COPY."
                )
        if resume and self.checkpointer.has_checkpoint():
            optimizer = self._trainer.optimizer
            optimizer.register_load_state_dict_pre_hook(keep_groups)
            super().resume_or_load(resume=True)
            if self.start_iter > self.max_iter:
                raise ValueError(
                    f"SOLVER.MAX_ITER is {self.max_iter}, but the last checkpoint in "
                    f"'{self.cfg.OUTPUT_DIR}' has {self.start_iter} iterations: increase it."
                )
            self.scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
            for group, rate in zip(optimizer.param_groups, self.scheduler.get_lr(), strict=True):
                group["lr"] = rate
            loader = self._trainer.data_loader
            if isinstance(loader, ResumableLoader) and not self._resume_hook.has_loaded:
                # A checkpoint of an earlier version, without the state of the loader.
                images = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH
                loader.skip(images // comm.get_world_size())
        else:
            load_weights(self.model, self.cfg.MODEL.WEIGHTS)

    def build_hooks(self) -> list[HookBase]:
        """Build Detectron2's hooks and those of this package.

        The hooks for SOLVER.EMA_DECAY and SOLVER.WISE_FT_ALPHA change the weights, so they come
        before the checkpointer and the evaluation.
        """
        model, decay = _without_ddp(self.model), self.cfg.SOLVER.EMA_DECAY
        self._ema = EMAHook(model, decay) if decay else None
        average = self._ema.average if self._ema else None
        loader = self._trainer.data_loader
        loader = loader if isinstance(loader, ResumableLoader) else None
        self._wise_ft = WeightInterpolationHook.from_config(self.cfg, model, average)
        self._resume_hook = ResumeHook(loader, self.cfg.SOLVER.CHECKPOINT_PERIOD)
        own_hooks = [self._ema, self._wise_ft, self._resume_hook]
        result = [
            hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._evaluate_during_training)
            if isinstance(hook, hooks.EvalHook)
            else hook
            for hook in super().build_hooks()
        ]
        later = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        index = next(i for i, hook in enumerate(result) if isinstance(hook, later))
        evaluation = next(hook for hook in result if isinstance(hook, hooks.EvalHook))
        writer = next((hook for hook in result if isinstance(hook, hooks.PeriodicWriter)), None)
        metrics = MetricsHook(self.cfg.OUTPUT_DIR, evaluation, writer)
        return [*result[:index], *own_hooks, *result[index:], metrics]

    def _evaluate_during_training(self) -> dict:
        cfg = self.cfg.clone()
        cfg.defrost()
        # The report shows this text instead of the file from which the training started.
        iteration = min(self.iter + 1, self.max_iter)
        cfg.MODEL.WEIGHTS = f"those of this training after {iteration} iterations"
        averaged = self._ema.averaged() if self._ema else contextlib.nullcontext()
        # The evaluation must not change the random numbers of the training.
        with averaged, preserve_random_state():
            self._last_eval_results = self.test(cfg, self.model)
        return self._last_eval_results

    def train(self) -> dict | None:
        """Check that DATASETS.TEST can be evaluated, then train as Detectron2 does."""
        build_test_evaluators(self.cfg, self.build_evaluator)
        # The training was stopped between its last checkpoint and model_final.pth, or MAX_ITER is
        # now that of the last checkpoint: there is no iteration left to write model_final.pth.
        is_finished = 0 < self.start_iter == self.max_iter
        if is_finished and Path(self.checkpointer.get_checkpoint_file()).stem != FINAL:
            for hook in filter(None, (self._ema, self._wise_ft)):
                hook.finish()
            self.checkpointer.save(FINAL, iteration=self.max_iter - 1)
        return super().train()

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> dict:
        """Evaluate as Detectron2 does, and write results.md and results.json into OUTPUT_DIR.

        The files are updated after each data set. Errors in DATASETS.TEST are raised before the
        first image.

        Args:
            cfg: the whole config.
            model: the model to evaluate, possibly wrapped for distributed training.
            evaluators: one for each data set of DATASETS.TEST; None: use :meth:`build_evaluator`.

        Returns:
            The results of the data set. If there are several data sets, a dict of results by name.

        Raises:
            ValueError: if the numbers of evaluators and data sets differ; see also
                :func:`build_test_evaluators`.
        """
        if isinstance(model, DistributedDataParallel):
            # Each process has its own batch norm statistics. Evaluate those of the main process,
            # which the checkpoints contain.
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        model = _without_ddp(model)
        names = cfg.DATASETS.TEST
        if evaluators is None:
            evaluators = build_test_evaluators(cfg, cls.build_evaluator)
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if len(evaluators) != len(names):
            raise ValueError(
                f"DATASETS.TEST names {len(names)} data sets, but there are {len(evaluators)} "
                "evaluators; give one for each data set."
            )
        if not names:
            return {}
        report, results = None, OrderedDict()
        if comm.is_main_process():
            report = EvaluationReport(names, evaluation_environment(cfg, model))
            report.write(cfg.OUTPUT_DIR)  # replaces the results of other weights
        for name, evaluator in zip(names, evaluators, strict=True):
            dataset_cfg = cfg.clone()
            dataset_cfg.defrost()
            dataset_cfg.DATASETS.TEST = (name,)
            with SpeedEvaluator(model) as speed:
                combined = DatasetEvaluators([evaluator, speed])
                results[name] = super().test(dataset_cfg, model, [combined])
            if report:
                report.add(name, results[name])
                report.write(cfg.OUTPUT_DIR)
        if report:
            logger.info("Results, also in %s:\n%s", cfg.OUTPUT_DIR, report.to_markdown())
        return results[names[0]] if len(names) == 1 else results

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """As Detectron2's, with a ValueError for a batch that cannot be divided."""
        world, batch = cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.IMS_PER_BATCH
        if world not in (0, num_workers) and batch % world:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {batch}, which cannot be divided by "
                f"SOLVER.REFERENCE_WORLD_SIZE, {world}: change one of them."
            )
        original, cfg = cfg, DefaultTrainer.auto_scale_workers(cfg, num_workers)
        if cfg.SOLVER.IMS_PER_BATCH % num_workers:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which cannot be divided by "
                f"{num_workers} GPUs."
            )
        if cfg is not original:  # rounding must not give 0
            cfg.defrost()
            for key in ("MAX_ITER", "CHECKPOINT_PERIOD"):
                cfg.SOLVER[key] = max(cfg.SOLVER[key], 1)
            cfg.TEST.EVAL_PERIOD = max(cfg.TEST.EVAL_PERIOD, min(original.TEST.EVAL_PERIOD, 1))
            cfg.freeze()
        return cfg

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        proposal = CATEGORY_PROPOSAL_REGISTRY.get(cfg.MODEL.DCP_CLIP.PROPOSAL.NAME)
        mapper = SemSegDatasetMapper(
            cfg,
            is_train=False,
            dataset_names=[dataset_name],
            # The evaluators read the label maps themselves, at their original size.
            with_labels=getattr(proposal, "needs_labels", False),
        )
        records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
        chosen = evenly_spaced(len(records), cfg.TEST.MAX_IMAGES or len(records))
        return build_detection_test_loader(
            [records[i] for i in chosen], mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_sem_seg_evaluator(cfg, dataset_name)


def _without_ddp(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model
