"""Recall of the category proposals of stage 1, without those that do not reach stage 4."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from dcp_clip.data.catalog import ignored_label
from dcp_clip.data.label_maps import read_labels
from dcp_clip.evaluation.groups import category_groups

__all__ = ["ProposalRecallEvaluator"]

# Groups of categories with a separate recall.
_GROUPS = ("things", "stuff")


class ProposalRecallEvaluator(DatasetEvaluator):
    """Fraction of the categories present in each image that are among the image's proposals.

    The average is over all pairs of an image and a category present in it. Later stages cannot
    label a category that stage 1 misses, so this is an upper bound for the model. Reads
    ``output["proposals"]["ids"]``.
    """

    def __init__(self, dataset_name: str):
        """
        Args:
            dataset_name: a registered data set with sem_seg labels. If its metadata has
                ``num_foreground``, labels from that number on are background, which is not a
                category to propose.

        Raises:
            ValueError: see :func:`category_groups` and :func:`ignored_label`.
        """
        self._labels = {
            r["file_name"]: r["sem_seg_file_name"] for r in DatasetCatalog.get(dataset_name)
        }
        meta = MetadataCatalog.get(dataset_name)
        self._num_categories = meta.get("num_foreground", len(meta.stuff_classes))
        self._ignore = ignored_label(dataset_name)
        groups = category_groups(dataset_name)
        all_categories = np.ones(len(meta.stuff_classes), bool)
        # (C,) bool by group; "" for all categories.
        self._members = {"": all_categories} | {g: groups[g] for g in _GROUPS if g in groups}
        self.reset()

    def reset(self) -> None:
        self._images = self._proposed = 0
        self._found, self._present = np.zeros((2, len(self._members)), np.int64)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            labels = np.unique(read_labels(self._labels[x["file_name"]]))
            present = labels[(labels != self._ignore) & (labels < self._num_categories)]
            ids = output["proposals"]["ids"].cpu().numpy()
            counted = np.stack([member[present] for member in self._members.values()])
            self._found += (counted & np.isin(present, ids)).sum(1)
            self._present += counted.sum(1)
            self._proposed += len(ids)
            self._images += 1

    def evaluate(self) -> OrderedDict | None:
        """Compute the recall.

        Returns:
            On the main process ``{"proposals": {"recall": percent, "per_image": mean K}}``, with
            "recall_things" and "recall_stuff" if the data set has these groups; NaN for a group
            that occurs in no image. None on other processes.
        """
        counts = comm.gather((self._found, self._present, self._proposed, self._images))
        if not comm.is_main_process():
            return None
        found, present, proposed, images = (sum(parts) for parts in zip(*counts))
        with np.errstate(invalid="ignore"):
            recalls = found / present
        result = {
            f"recall_{group}" if group else "recall": 100.0 * float(recall)
            for group, recall in zip(self._members, recalls)
        }
        result["per_image"] = proposed / max(images, 1)
        return OrderedDict(proposals=result)
