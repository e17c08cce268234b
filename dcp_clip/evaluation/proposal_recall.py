"""How many of the categories in an image does stage 1 find?"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image

__all__ = ["ProposalRecallEvaluator"]


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
        """
        self._labels = {
            r["file_name"]: r["sem_seg_file_name"] for r in DatasetCatalog.get(dataset_name)
        }
        meta = MetadataCatalog.get(dataset_name)
        self._num_categories = meta.get("num_foreground", len(meta.stuff_classes))
        self._ignore = meta.ignore_label
        self.reset()

    def reset(self) -> None:
        self._found = self._present = self._images = self._proposed = 0

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for x, output in zip(inputs, outputs, strict=True):
            labels = np.unique(np.asarray(Image.open(self._labels[x["file_name"]])))
            present = labels[(labels != self._ignore) & (labels < self._num_categories)]
            ids = output["proposals"]["ids"].cpu().numpy()
            self._found += int(np.isin(present, ids).sum())
            self._present += len(present)
            self._proposed += len(ids)
            self._images += 1

    def evaluate(self) -> OrderedDict | None:
        """``{"proposals": {"recall": percent, "per_image": mean K}}`` on the main process."""
        counts = comm.gather((self._found, self._present, self._proposed, self._images))
        if not comm.is_main_process():
            return None
        found, present, proposed, images = np.sum(counts, axis=0).tolist()
        return OrderedDict(
            proposals={
                "recall": 100.0 * found / max(present, 1),
                "per_image": proposed / max(images, 1),
            }
        )
