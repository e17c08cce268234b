"""From a data set's metadata to its evaluators."""

from __future__ import annotations

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.evaluation.mean_iou import BackgroundMeanIoUEvaluator, MeanIoUEvaluator
from dcp_clip.evaluation.proposal_recall import ProposalRecallEvaluator

__all__ = ["build_sem_seg_evaluator", "build_test_evaluators"]

# By the metadata's evaluator_type.
_KINDS = {"sem_seg": MeanIoUEvaluator, "sem_seg_background": BackgroundMeanIoUEvaluator}


def build_sem_seg_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Mean IoU and proposal recall of one data set.

    Args:
        cfg: the whole config.
        dataset_name: a registered data set; its files are listed.

    Raises:
        VocabularyError: for a name that is not registered.
        ValueError: for one of another task.
        DatasetError: for one whose files are not there.
    """
    dataset_vocabulary(dataset_name)
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _KINDS:
        known = " or ".join(f"'{name}'" for name in _KINDS)
        raise ValueError(
            f"data set '{dataset_name}' has evaluator_type '{kind}' in its metadata, not {known}: "
            "take it out of DATASETS.TEST, or register it for semantic segmentation."
        )
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    mean_iou = _KINDS[kind](
        dataset_name,
        distributed=True,
        output_dir=folder if cfg.TEST.SAVE_PREDICTIONS else None,
        oracle_masks=cfg.TEST.ORACLE_MASKS,
    )
    return DatasetEvaluators([mean_iou, ProposalRecallEvaluator(dataset_name)])


def build_test_evaluators(
    cfg: CfgNode, build: Callable[[CfgNode, str], DatasetEvaluator] = build_sem_seg_evaluator
) -> list[DatasetEvaluator]:
    """The evaluators of all of DATASETS.TEST, so that what is wrong with the last data set is known
    before the first is evaluated.

    Args:
        cfg: the whole config.
        build: makes one of them.

    Raises:
        ValueError: when a data set is named twice; else see :func:`build_sem_seg_evaluator`.
    """
    names = list(cfg.DATASETS.TEST)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"DATASETS.TEST names {', '.join(twice)} more than once; name it once.")
    return [build(cfg, name) for name in names]
