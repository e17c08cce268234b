"""Detectron2 evaluators for mean IoU, recall of the proposals and speed, and their report."""

from dcp_clip.evaluation.build import build_sem_seg_evaluator, build_test_evaluators
from dcp_clip.evaluation.calibration import CalibrationEvaluator
from dcp_clip.evaluation.environment import evaluation_environment
from dcp_clip.evaluation.mean_iou import BackgroundMeanIoUEvaluator, MeanIoUEvaluator
from dcp_clip.evaluation.proposal_recall import ProposalRecallEvaluator
from dcp_clip.evaluation.report import EvaluationReport
from dcp_clip.evaluation.speed import SpeedEvaluator

__all__ = [
    "BackgroundMeanIoUEvaluator",
    "CalibrationEvaluator",
    "EvaluationReport",
    "MeanIoUEvaluator",
    "ProposalRecallEvaluator",
    "SpeedEvaluator",
    "build_sem_seg_evaluator",
    "build_test_evaluators",
    "evaluation_environment",
]
