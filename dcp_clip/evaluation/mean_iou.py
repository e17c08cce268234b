"""Mean IoU: Detectron2's evaluator with stricter checks and one formula for all versions."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator

from dcp_clip.data.catalog import ignored_label
from dcp_clip.data.label_maps import read_labels
from dcp_clip.evaluation.confusion import (
    assign_majority_labels,
    count_pairs,
    score,
    silent_upstream,
)
from dcp_clip.evaluation.groups import category_groups
from dcp_clip.utils.atomic_files import atomic_write
from dcp_clip.utils.tensor_files import write_tensors

__all__ = ["BackgroundMeanIoUEvaluator", "MeanIoUEvaluator", "read_checked_labels"]

logger = logging.getLogger(__name__)


class MeanIoUEvaluator(SemSegEvaluator):
    """:class:`SemSegEvaluator` with these differences:

    * mIoU is the mean over the categories present in the ground truth, with every version of
      Detectron2. The other conventions are reported as well, see
      :mod:`dcp_clip.evaluation.confusion`.
    * Things and stuff, and base and unseen categories, have separate figures if the metadata
      defines these groups, see :mod:`dcp_clip.evaluation.groups`.
    * A label map that differs from the prediction in size or contains an unknown value is an error.
      Detectron2 would count such pixels for another category.
    * Predictions are encoded only if they are written to a file. Detectron2 always encodes, keeps
      and gathers a mask for each category of each image.
    * Boundary IoU is not computed. Detectron2 computes it if OpenCV is installed and there are
      fewer than 255 categories, so the keys of its results depend on the machine.
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
            distributed: whether to gather the results of all processes.
            output_dir: folder for ``sem_seg_predictions.json`` (COCO's run-length encoding) and
                ``sem_seg_evaluation.pth``; None writes neither.
            oracle_masks: give each true mask the category that most of its pixels were predicted
                as, so that only the categories can be wrong.

        Raises:
            ValueError: for `oracle_masks` together with `output_dir`, or if an image has no label
                map; see also :func:`category_groups` and :func:`ignored_label`.
        """
        if oracle_masks and output_dir:
            raise ValueError(
                "TEST.ORACLE_MASKS evaluates the categories of the true masks, not the predicted "
                "masks: set TEST.SAVE_PREDICTIONS to False."
            )
        ignored_label(dataset_name)
        try:
            with silent_upstream():  # it warns if it cannot compute boundary IoU
                super().__init__(dataset_name, distributed, output_dir)
        except KeyError as error:
            if error.args != ("sem_seg_file_name",):
                raise
            raise ValueError(
                f"The data set '{dataset_name}' has images without label maps, so it cannot be "
                "evaluated: give each record a 'sem_seg_file_name'."
            ) from error
        self._compute_boundary_iou = False
        self._oracle_masks = oracle_masks
        self._groups = category_groups(dataset_name)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: dicts with "file_name".
            outputs: dicts with "sem_seg", whose ``argmax(dim=0)`` gives (H, W) ids.

        Raises:
            ValueError: if a label map does not fit; the message names the file.
        """
        for x, output in zip(inputs, outputs, strict=True):
            prediction = self._to_evaluated_ids(output["sem_seg"].argmax(dim=0).cpu().numpy())
            labels = self._read_labels(x["file_name"], prediction.shape)
            pairs = count_pairs(prediction, labels, self._num_classes)
            self._conf_matrix += assign_majority_labels(pairs) if self._oracle_masks else pairs
            if self._output_dir:
                self._predictions.extend(self.encode_json_sem_seg(prediction, x["file_name"]))

    def _to_evaluated_ids(self, prediction: np.ndarray) -> np.ndarray:
        """Map (H, W) ids of the vocabulary to ids of the categories that are evaluated."""
        return prediction

    def _read_labels(self, file_name: str, size: tuple[int, int]) -> np.ndarray:
        """Read (H, W) int64 ids; C where ignored."""
        path = self.input_file_to_gt_file[file_name]
        categories = self._num_classes, self._ignore_label
        labels = read_checked_labels(path, file_name, size, self._dataset_name, *categories)
        return np.where(labels == self._ignore_label, self._num_classes, labels)

    def evaluate(self) -> OrderedDict | None:
        """Compute the scores in percent.

        Returns:
            On the main process the results of :class:`SemSegEvaluator` and

            * in "sem_seg": "mIoU_things", "mIoU_stuff", "mIoU_base" and "mIoU_unseen" if the data
              set has these groups; NaN for a group with no category present;
            * "classes": the numbers of categories by convention, "present", "present_or_predicted"
              and "all", and "mIoU_present_or_predicted" and "mIoU_all".

            None on other processes.

        Raises:
            WriteError: if a file of the results cannot be written.
        """
        # Without labels, scores are NaN. Only the mIoU computed below is logged and written.
        folder, self._output_dir = self._output_dir, None  # upstream's files are not atomic
        try:
            with np.errstate(invalid="ignore"), silent_upstream():
                results = super().evaluate()  # also gathers the confusion matrices and predictions
        finally:
            self._output_dir = folder
        if results is None:
            return None
        scores = score(self._conf_matrix)
        results["sem_seg"]["mIoU"] = 100 * scores.mean_iou()
        if not scores.num_categories():  # upstream's value is 0
            results["sem_seg"]["fwIoU"] = float("nan")
        for group, member in self._groups.items():
            results["sem_seg"][f"mIoU_{group}"] = 100 * scores.group_mean_iou(member)
        results["classes"] = {
            **{c: scores.num_categories(c) for c in ("present", "present_or_predicted", "all")},
            **{f"mIoU_{c}": 100 * scores.mean_iou(c) for c in ("present_or_predicted", "all")},
        }
        plain = {name: float(value) for name, value in results["sem_seg"].items()}
        short = {name: round(value, 2) for name, value in plain.items()}
        logger.info("%s: %s", self._dataset_name, short)
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with atomic_write(Path(folder) / "sem_seg_predictions.json", "w") as file:
                json.dump(self._predictions, file)
            write_tensors(Path(folder) / "sem_seg_evaluation.pth", plain)
        return results


class BackgroundMeanIoUEvaluator(MeanIoUEvaluator):
    """Evaluates the first F categories of a vocabulary; all others count as background.

    This is PAS-20b as CAT-Seg defines it (arXiv 2303.11797, and the evaluator of its train_net.py):
    the vocabulary has 59 categories, the first F = 20 are those of VOC, and any other prediction is
    background. mIoU is over these F + 1 categories.
    """

    def __init__(self, dataset_name: str, *args, **kwargs):
        """
        Args:
            dataset_name: its metadata has ``num_foreground`` (F). Label maps contain 0 ... F-1, F
                for background, and the ignore label.
            *args, **kwargs: of :class:`MeanIoUEvaluator`.

        Raises:
            ValueError: if ``num_foreground`` is missing or out of range.
        """
        super().__init__(dataset_name, *args, **kwargs)
        foreground = MetadataCatalog.get(dataset_name).get("num_foreground")
        if not isinstance(foreground, int) or not 0 < foreground <= self._num_classes:
            raise ValueError(
                f"The metadata of data set '{dataset_name}' needs num_foreground from 1 to "
                f"{self._num_classes} for evaluator_type 'sem_seg_background', but has "
                f"{foreground}."
            )
        self._num_classes = foreground + 1
        self._class_names = [*self._class_names[:foreground], "background"]
        # The background belongs to no group.
        self._groups = {g: np.append(m[:foreground], False) for g, m in self._groups.items()}

    def _to_evaluated_ids(self, prediction: np.ndarray) -> np.ndarray:
        return np.minimum(prediction, self._num_classes - 1)


def read_checked_labels(
    path: str, file_name: str, size: tuple[int, int], dataset: str, num_categories: int, ignore: int
) -> np.ndarray:
    """Read the (H, W) int64 label map of an image of an evaluation.

    Args:
        path: the label map.
        file_name: the image, for messages.
        size: (H, W) of the prediction.
        dataset: name of the data set, for messages.
        num_categories: number of its categories.
        ignore: its ignored label.

    Raises:
        ValueError: if the size differs, or a value is neither a category nor the ignored label.
    """
    # Early builds of Detectron2 have no loader to replace.
    labels = read_labels(path).astype(np.int64)
    if labels.shape != size:
        raise ValueError(
            f"The label map {path} has shape {labels.shape}, but the prediction for {file_name} "
            f"has {size}: one of the two files is rotated, resized or of another image."
        )
    unknown = labels[(labels != ignore) & ((labels < 0) | (labels >= num_categories))]
    if unknown.size:
        raise ValueError(
            f"The label map {path} contains the value {unknown[0]}, but '{dataset}' has the "
            f"categories 0 to {num_categories - 1} and ignores {ignore}: prepare the data set "
            "again."
        )
    return labels
