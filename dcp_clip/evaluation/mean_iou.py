"""Detectron2's semantic segmentation evaluator, made strict and independent of its version."""

from __future__ import annotations

import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from dcp_clip.data.label_maps import read_labels
from dcp_clip.evaluation.confusion import (
    assign_majority_labels,
    count_pairs,
    score,
    silent_upstream,
)
from dcp_clip.evaluation.groups import category_groups
from dcp_clip.utils.image_io import atomic_write

__all__ = ["BackgroundMeanIoUEvaluator", "MeanIoUEvaluator"]

logger = logging.getLogger(__name__)


class MeanIoUEvaluator(SemSegEvaluator):
    """:class:`SemSegEvaluator` with one formula for mIoU, and without what nobody asked for.

    * mIoU is over the categories present in the ground truth, whichever Detectron2 is installed;
      the other conventions are reported beside it, see :mod:`dcp_clip.evaluation.confusion`.
    * Things and stuff, base and unseen names are reported apart where the metadata tells which are
      which, see :mod:`dcp_clip.evaluation.groups`.
    * A label map of another size than the prediction, or with a value that is no category, is an
      error: upstream's sum would credit such pixels to another category without a word.
    * Predictions are encoded only if they are to be written; upstream encodes a mask for each
      category of each image, keeps and gathers them all.
    * Boundary IoU is off unless asked for, and then that of :mod:`dcp_clip.evaluation.boundary`.
      Upstream computes its own whenever OpenCV is installed and there are fewer than 255
      categories, which makes the result's keys depend on the machine.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        oracle_masks: bool = False,
    ):
        """
        Args:
            dataset_name: a registered data set.
            distributed: gather from all processes of the run.
            output_dir: folder for ``sem_seg_predictions.json`` (COCO's run-length encoding) and
                ``sem_seg_evaluation.pth``; None writes neither.
            oracle_masks: an oracle for measuring where the error is: score the names alone, see
                :func:`dcp_clip.evaluation.confusion.assign_majority_labels`.

        Raises:
            ValueError: when true masks are asked for together with their boundaries or files of
                predictions, which are the model's own; also see :func:`category_groups`.
        """
        if oracle_masks and output_dir:
            raise ValueError(
                "TEST.ORACLE_MASKS scores names within the true masks; the model's own masks have no "
                "part in it: set TEST.BOUNDARY_IOU and TEST.SAVE_PREDICTIONS False."
            )
        super().__init__(dataset_name, distributed, output_dir)
        self._compute_boundary_iou = False  # upstream's
        self._oracle_masks = oracle_masks
        self._groups = category_groups(dataset_name)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg", which answers ``argmax(dim=0)`` with (H, W) ids.

        Raises:
            ValueError: naming the label map that does not fit.
        """
        for x, output in zip(inputs, outputs, strict=True):
            prediction = self.decide(output["sem_seg"].argmax(dim=0).cpu().numpy())
            labels = self._read_labels(x["file_name"], prediction.shape)
            pairs = count_pairs(prediction, labels, self._num_classes)
            self._conf_matrix += assign_majority_labels(pairs) if self._oracle_masks else pairs
            if self._output_dir:
                self._predictions.extend(self.encode_json_sem_seg(prediction, x["file_name"]))

    def decide(self, prediction: np.ndarray) -> np.ndarray:
        """(H, W) ids of the vocabulary to ids of the categories that are scored."""
        return prediction

    def _read_labels(self, file_name: str, size: tuple[int, int]) -> np.ndarray:
        """(H, W) int64 ids, C where void."""
        path = self.input_file_to_gt_file[file_name]
        # Not by upstream's loader, which early builds do not have.
        labels = read_labels(path).astype(np.int64)
        if labels.shape != size:
            raise ValueError(
                f"label map {path} has shape {labels.shape}, the prediction for {file_name} has "
                f"{size}: one of the two files is rotated, resized or another image's."
            )
        void = labels == self._ignore_label
        wrong = labels[~void & ((labels < 0) | (labels >= self._num_classes))]
        if wrong.size:
            raise ValueError(
                f"label map {path} holds the value {wrong[0]}, but '{self._dataset_name}' has the "
                f"categories 0 to {self._num_classes - 1} and ignores {self._ignore_label}; "
                "prepare the data set again."
            )
        return np.where(void, self._num_classes, labels)

    def evaluate(self) -> OrderedDict | None:
        """As :class:`SemSegEvaluator`, in percent, on the main process; besides there are

        * in "sem_seg": "mIoU_things", "mIoU_stuff", "mIoU_base" and "mIoU_unseen", as far as the
          data set has such groups; NaN for one of which no category is present;
        * "classes": how many are "present", "seen" and there at "all", and "mIoU_seen" and
          "mIoU_all" by those conventions.
        """
        # Where nothing is labelled, NaN is the answer; and one mIoU is logged and written, ours.
        with np.errstate(invalid="ignore"), silent_upstream():
            results = super().evaluate()  # afterwards the matrix is that of all processes
        if results is None:
            return None
        scores = score(self._conf_matrix)
        results["sem_seg"]["mIoU"] = 100 * scores.mean_iou()
        for group, member in self._groups.items():
            results["sem_seg"][f"mIoU_{group}"] = 100 * scores.group_mean_iou(member)
        results["classes"] = {
            **{c: scores.num_categories(c) for c in ("present", "seen", "all")},
            **{f"mIoU_{c}": 100 * scores.mean_iou(c) for c in ("seen", "all")},
        }
        logger.info("%s: %s", self._dataset_name, dict(results))
        if self._output_dir:
            with atomic_write(Path(self._output_dir) / "sem_seg_evaluation.pth") as file:
                torch.save(results["sem_seg"], file)
        return results


class BackgroundMeanIoUEvaluator(MeanIoUEvaluator):
    """Of a longer vocabulary only the first F names are scored; all others mean background.

    PAS-20b as CAT-Seg defines it (arXiv 2303.11797, and the evaluator of its train_net.py): the
    model is given 59 names, the first F = 20 are VOC's, any other answer is the 21st category. It
    is one of the F + 1 that mIoU is over.
    """

    def __init__(self, dataset_name: str, *args, **kwargs):
        """
        Args:
            dataset_name: its metadata has ``num_foreground`` (F); label maps hold 0 ... F-1,
                F = background, and the ignore label. The rest as in :class:`MeanIoUEvaluator`.

        Raises:
            ValueError: without such a number.
        """
        super().__init__(dataset_name, *args, **kwargs)
        foreground = MetadataCatalog.get(dataset_name).get("num_foreground")
        if not isinstance(foreground, int) or not 0 < foreground <= self._num_classes:
            raise ValueError(
                f"data set '{dataset_name}' needs num_foreground in its metadata, from 1 to its "
                f"{self._num_classes} names, for evaluator_type 'sem_seg_background'; it has "
                f"{foreground}."
            )
        self._num_classes = foreground + 1
        self._class_names = [*self._class_names[:foreground], "background"]
        # The background belongs to no group.
        self._groups = {g: np.append(m[:foreground], False) for g, m in self._groups.items()}

    def decide(self, prediction: np.ndarray) -> np.ndarray:
        return np.minimum(prediction, self._num_classes - 1)
