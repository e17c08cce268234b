"""The order of the training images when a run is resumed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from detectron2.data.common import ToIterableDataset
from torch.utils.data import Sampler

__all__ = ["skip_images"]


def skip_images(loader: Iterable, count: int) -> None:
    """Let a new data loader continue where an interrupted run stopped.

    Detectron2's endless samplers start again in every process. A run that is interrupted often
    would see some images many times and others never.

    Args:
        loader: from ``build_detection_train_loader``, with any sampler, before its first batch.
            Other loaders are left unchanged.
        count: number of images to skip in this process.
    """
    part = loader
    while part is not None and not isinstance(part, ToIterableDataset):
        part = getattr(part, "dataset", None)  # The depth of nesting depends on the config.
    if part is not None:
        part.sampler = _SkipFirst(part.sampler, count)


class _SkipFirst(Sampler):
    """The indices of another sampler without the first `count`."""

    def __init__(self, sampler: Sampler, count: int):
        self.sampler, self.count = sampler, count

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self.sampler, self.count, None)
