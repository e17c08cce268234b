"""Evaluators of the data sets in DATASETS.TEST."""

from __future__ import annotations

import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.evaluation.mean_iou import BackgroundMeanIoUEvaluator, MeanIoUEvaluator
from dcp_clip.evaluation.proposal_recall import ProposalRecallEvaluator

__all__ = ["build_sem_seg_evaluator", "build_test_evaluators", "check_expected_results"]

# By evaluator_type in the metadata.
_EVALUATORS = {"sem_seg": MeanIoUEvaluator, "sem_seg_background": BackgroundMeanIoUEvaluator}


def build_sem_seg_evaluator(cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
    """Build the evaluators of mean IoU and proposal recall for one data set.

    Args:
        cfg: the whole config.
        dataset_name: a registered data set; this lists its files.

    Raises:
        VocabularyError: if the name is not registered.
        ValueError: if the data set is for another task.
        DatasetError: if files of the data set are missing.
    """
    dataset_vocabulary(dataset_name)
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if evaluator_type not in _EVALUATORS:
        known = " or ".join(f"'{name}'" for name in _EVALUATORS)
        raise ValueError(
            f"The metadata of data set '{dataset_name}' has evaluator_type '{evaluator_type}', not "
            f"{known}: remove it from DATASETS.TEST, or register it for semantic segmentation."
        )
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    mean_iou = _EVALUATORS[evaluator_type](
        dataset_name,
        distributed=True,
        output_dir=folder if cfg.TEST.SAVE_PREDICTIONS else None,
        oracle_masks=cfg.TEST.ORACLE_MASKS,
    )
    return DatasetEvaluators([mean_iou, ProposalRecallEvaluator(dataset_name)])


def build_test_evaluators(
    cfg: CfgNode, build: Callable[[CfgNode, str], DatasetEvaluator] = build_sem_seg_evaluator
) -> list[DatasetEvaluator]:
    """Build the evaluators of all data sets in DATASETS.TEST.

    This finds errors in the last data set before the first one is evaluated.

    Args:
        cfg: the whole config.
        build: builds the evaluator of one data set.

    Raises:
        ValueError: if a data set is named twice; see also :func:`build_sem_seg_evaluator` and
            :func:`check_expected_results`.
    """
    check_expected_results(cfg)
    names = list(cfg.DATASETS.TEST)
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"DATASETS.TEST contains {', '.join(repeated)} more than once.")
    return [build(cfg, name) for name in names]


def check_expected_results(cfg: CfgNode) -> None:
    """Raise ValueError if TEST.EXPECTED_RESULTS could be those of several data sets."""
    if cfg.TEST.EXPECTED_RESULTS and len(cfg.DATASETS.TEST) > 1:
        raise ValueError(
            "TEST.EXPECTED_RESULTS does not name data sets, but DATASETS.TEST has "
            f"{len(cfg.DATASETS.TEST)}: evaluate one data set."
        )
