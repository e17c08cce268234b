"""How many of the categories in an image does stage 1 find?"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from dcp_clip.data.label_maps import read_labels
from dcp_clip.evaluation.groups import category_groups

__all__ = ["ProposalRecallEvaluator"]

# The groups of categories whose recall is reported apart.
_GROUPS = ("things", "stuff")


class ProposalRecallEvaluator(DatasetEvaluator):
    """Share of (image, category present) pairs whose category is among the image's proposals.

    Reads ``output["proposals"]["ids"]`` of the model's output. What stage 1 misses, no later stage
    can label, so this bounds the whole.
    """

    def __init__(self, dataset_name: str):
        """
        Args:
            dataset_name: a registered data set with sem_seg labels. Where its metadata has
                ``num_foreground``, the labels from there on are a background that no proposal
                stands for.

        Raises:
            ValueError: see :func:`category_groups`.
        """
        self._labels = {
            r["file_name"]: r["sem_seg_file_name"] for r in DatasetCatalog.get(dataset_name)
        }
        meta = MetadataCatalog.get(dataset_name)
        self._num_categories = meta.get("num_foreground", len(meta.stuff_classes))
        self._ignore = meta.ignore_label
        groups = category_groups(dataset_name)
        everything = np.ones(len(meta.stuff_classes), bool)
        # (C,) bool: whose recall is counted, all categories' first.
        self._members = {"": everything} | {g: groups[g] for g in _GROUPS if g in groups}
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
        """``{"proposals": {"recall": percent, "per_image": mean K}}`` on the main process, with
        "recall_things" and "recall_stuff" as far as the data set has such groups; NaN for one that
        occurs in no image."""
        counts = comm.gather((self._found, self._present, self._proposed, self._images))
        if not comm.is_main_process():
            return None
        found, present, proposed, images = (sum(parts) for parts in zip(*counts))
        with np.errstate(invalid="ignore"):
            shares = found / present
        result = {
            f"recall_{group}" if group else "recall": 100.0 * float(share)
            for group, share in zip(self._members, shares)
        }
        result["per_image"] = proposed / max(images, 1)
        return OrderedDict(proposals=result)
