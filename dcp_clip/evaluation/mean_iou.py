"""Detectron2's semantic segmentation evaluator, without what nobody asked for."""

from __future__ import annotations

from detectron2.evaluation import SemSegEvaluator

__all__ = ["MeanIoUEvaluator"]


class MeanIoUEvaluator(SemSegEvaluator):
    """:class:`SemSegEvaluator` whose boundary IoU is off unless asked for.

    Upstream computes boundary IoU whenever OpenCV is installed and there are fewer than 255
    categories; it takes longer than a small model's inference, and makes the result's keys depend
    on the machine.
    """

    def __init__(self, dataset_name: str, *args, boundary_iou: bool = False, **kwargs):
        """
        Args:
            dataset_name: a registered data set; the rest as in :class:`SemSegEvaluator`.
            boundary_iou: compute it after all.
        """
        super().__init__(dataset_name, *args, **kwargs)
        self._compute_boundary_iou &= boundary_iou
