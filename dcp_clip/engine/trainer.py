"""Detectron2's DefaultTrainer with this project's data, evaluators, optimiser and weight
averaging."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
)
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, hooks
from detectron2.engine.train_loop import AMPTrainer, SimpleTrainer, TrainerBase
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from torch import nn

from dcp_clip.data.augmentation import ResizeForTest, build_sem_seg_augmentations
from dcp_clip.data.dataset_mapper import SemSegDatasetMapper, VocabularyMapper
from dcp_clip.data.sampler import skip_images
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine.checkpoint import Checkpointer, load_weights
from dcp_clip.engine.ema import EMAHook
from dcp_clip.engine.optimizer import build_optimizer
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

_FINAL = "model_final"  # as Detectron2 calls it
logger = logging.getLogger(__name__)


class Trainer(DefaultTrainer):
    """Trains and evaluates DCP-CLIP as Detectron2 users expect; see ``train_net.py``."""

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: the whole config.

        Raises:
            ValueError: for mixed precision of a kind that the device does not have.
        """
        # DefaultTrainer's own __init__ cannot wrap a CPU model for distributed training.
        TrainerBase.__init__(self)
        if cfg.SOLVER.AMP.ENABLED and cfg.MODEL.DEVICE == "cpu":
            raise ValueError(
                "SOLVER.AMP.ENABLED is float16 training on CUDA; on a CPU set it to False and "
                "MODEL.DCP_CLIP.BF16 to True (pays with AVX-512 BF16 or AMX only)."
            )
        self.cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(self.cfg)
        optimizer = self.build_optimizer(self.cfg, model)
        loader = self.build_train_loader(self.cfg)
        options = {"device_ids": None} if cfg.MODEL.DEVICE == "cpu" else {}
        model = create_ddp_model(model, find_unused_parameters=True, **options)
        loop = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = loop(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(self.cfg, optimizer)
        self.checkpointer = Checkpointer(
            model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        self.start_iter, self.max_iter = 0, self.cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """As Detectron2's, but MODEL.WEIGHTS that do not fit are an error, and the order of the
        images goes on, too."""
        if resume and self.checkpointer.has_checkpoint():
            super().resume_or_load(resume=True)
            seen = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
            skip_images(self._trainer.data_loader, seen)
        else:
            load_weights(self.model, self.cfg.MODEL.WEIGHTS)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks, and before the checkpointer and the evaluation those of
        SOLVER.EMA_DECAY and SOLVER.WISE_FT_ALPHA, which change the weights."""
        model = self.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        decay = self.cfg.SOLVER.EMA_DECAY
        self._ema = EMAHook(model, decay) if decay else None
        average = self._ema.average if self._ema else None
        interpolation = WeightInterpolationHook.from_config(self.cfg, model, average)
        result, waiting = [], [hook for hook in (self._ema, interpolation) if hook]
        for hook in super().build_hooks():
            if isinstance(hook, hooks.PeriodicCheckpointer | hooks.EvalHook):
                result += waiting
                waiting = []
            if isinstance(hook, hooks.EvalHook):
                hook = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, self._test_trained)
            result.append(hook)
        return result

    def _test_trained(self) -> dict:
        cfg = self.cfg.clone()
        cfg.defrost()
        # What the report is to name: not the file that the training started from.
        done = min(self.iter + 1, self.max_iter)
        cfg.MODEL.WEIGHTS = f"those of this training after {done} iterations"
        with self._ema.averaged() if self._ema else contextlib.nullcontext():
            self._last_eval_results = self.test(cfg, self.model)
        return self._last_eval_results

    def train(self) -> dict | None:
        """As Detectron2's, once all of DATASETS.TEST is known to be there.

        A training that was stopped between its last checkpoint and ``model_final.pth`` has no step
        left that would write the latter, so it is written here.
        """
        build_test_evaluators(self.cfg, self.build_evaluator)
        nothing_left = 0 < self.start_iter == self.max_iter
        if nothing_left and Path(self.checkpointer.get_checkpoint_file()).stem != _FINAL:
            self.checkpointer.save(_FINAL, iteration=self.max_iter - 1)
        return super().train()

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> dict:
        """As Detectron2's, with a report of all data sets in results.md and results.json.

        The report is logged at the end, and written after each data set. What is wrong with any of
        them is raised before the first image.

        The model is taken out of its distributed wrapper, which broadcasts buffers in every forward
        pass, in evaluation too, where the processes have different numbers of images: they would
        wait for each other for ever. It is done once here, as each process has statistics of batch
        norm of its own.
        """
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        names = cfg.DATASETS.TEST
        if evaluators is None:
            evaluators = build_test_evaluators(cfg, cls.build_evaluator)
        elif isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        if len(evaluators) != len(names):
            raise ValueError(
                f"{len(evaluators)} evaluators for the {len(names)} data sets of DATASETS.TEST."
            )
        if not names:
            return {}
        report, results = None, OrderedDict()
        if comm.is_main_process():
            report = EvaluationReport(names, evaluation_environment(cfg, model))
        for name, evaluator in zip(names, evaluators, strict=True):
            one = cfg.clone()
            one.defrost()
            one.DATASETS.TEST = (name,)
            with SpeedEvaluator(model) as speed:
                both = DatasetEvaluators([evaluator, speed])
                results[name] = super().test(one, model, [both])
            if report:
                report.add(name, results[name])
                report.write(cfg.OUTPUT_DIR)
        if report:
            logger.info("Evaluation, also in %s:\n%s", cfg.OUTPUT_DIR, report.to_markdown())
        return results[names[0]] if len(names) == 1 else results

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        vocabularies = {dataset_vocabulary(name) for name in cfg.DATASETS.TRAIN}
        if len(vocabularies) != 1:
            raise ValueError(
                f"DATASETS.TRAIN must name one or more data sets of the same categories, got "
                f"{cfg.DATASETS.TRAIN}."
            )
        augmentations = build_sem_seg_augmentations(cfg)
        mapper = SemSegDatasetMapper.from_datasets(cfg, cfg.DATASETS.TRAIN, augmentations)
        # Nothing is added to the records: the model's own vocabulary is that of DATASETS.TRAIN.
        return build_detection_train_loader(cfg, mapper=mapper)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = SemSegDatasetMapper.from_datasets(cfg, [dataset_name], [ResizeForTest(cfg)])
        proposal = CATEGORY_PROPOSAL_REGISTRY.get(cfg.MODEL.DCP_CLIP.PROPOSAL.NAME)
        # The evaluators read the label maps themselves, at their own size.
        mapper.with_labels = getattr(proposal, "needs_labels", False)
        vocabulary = dataset_vocabulary(dataset_name)
        return build_detection_test_loader(
            cfg, dataset_name, mapper=VocabularyMapper(mapper, vocabulary)
        )

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_sem_seg_evaluator(cfg, dataset_name)
