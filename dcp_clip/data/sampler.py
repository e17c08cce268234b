"""The order of the training images, across interruptions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from detectron2.data.samplers import TrainingSampler

__all__ = ["ResumableTrainingSampler", "resume_sampler"]


class ResumableTrainingSampler(TrainingSampler):
    """Detectron2's endless shuffled order, which can be entered where a training stopped.

    Upstream's begins anew with every process, so that a training that is often interrupted sees
    some images again and again and others never.

    Attributes:
        start: indices of this process's share that are passed over.
    """

    start = 0

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(super().__iter__(), self.start, None)


def resume_sampler(loader: Iterable, start: int) -> None:
    """Let a loader that has not begun yet go on behind the first images of this process; one
    without a :class:`ResumableTrainingSampler` is left as it is.

    Args:
        loader: of ``build_detection_train_loader``.
        start: images to pass over.
    """
    part = loader
    while part is not None:  # Detectron2 nests data sets, by configuration
        sampler = getattr(part, "sampler", None)
        if isinstance(sampler, ResumableTrainingSampler):
            sampler.start = start
            return
        part = getattr(part, "dataset", None)
