"""Evaluators: Detectron2's mean IoU, and the recall of the proposals."""

from .mean_iou import MeanIoUEvaluator
from .proposal_recall import ProposalRecallEvaluator

__all__ = ["MeanIoUEvaluator", "ProposalRecallEvaluator"]
