"""The order of the training images, across interruptions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from detectron2.data.common import ToIterableDataset
from torch.utils.data import Sampler

__all__ = ["skip_images"]


def skip_images(loader: Iterable, count: int) -> None:
    """Let a loader that has not begun yet go on where a training stopped.

    Detectron2's endless samplers begin anew with every process, so that a training that is often
    interrupted would see some images again and again and others never.

    Args:
        loader: of ``build_detection_train_loader``, with any sampler; others are left alone.
        count: images to pass over, of this process's share.
    """
    part = loader
    while part is not None and not isinstance(part, ToIterableDataset):
        part = getattr(part, "dataset", None)  # nested, how deep depends on the config
    if part is not None:
        part.sampler = _Remainder(part.sampler, count)


class _Remainder(Sampler):
    """What another sampler yields behind its first `count` indices."""

    def __init__(self, sampler: Sampler, count: int):
        self.sampler, self.count = sampler, count

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(self.sampler, self.count, None)
