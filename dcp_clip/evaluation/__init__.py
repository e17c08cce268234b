"""Evaluators: mean IoU by a stated convention, recall of the proposals, speed; and their report."""

from .build import build_sem_seg_evaluator, build_test_evaluators
from .environment import evaluation_environment
from .mean_iou import BackgroundMeanIoUEvaluator, MeanIoUEvaluator
from .proposal_recall import ProposalRecallEvaluator
from .report import EvaluationReport
from .speed import SpeedEvaluator

__all__ = [
    "BackgroundMeanIoUEvaluator",
    "EvaluationReport",
    "MeanIoUEvaluator",
    "ProposalRecallEvaluator",
    "SpeedEvaluator",
    "build_sem_seg_evaluator",
    "build_test_evaluators",
    "evaluation_environment",
]
