"""Detectron2's training loader with a state, so a resumed training continues with the same data.

If the data sets have different categories, each batch has images of one vocabulary.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.common import AspectRatioGroupedDataset, ToIterableDataset
from detectron2.utils import comm
from torch.utils.data import Dataset, Sampler

from dcp_clip.data.aliases import resolve_dataset_name
from dcp_clip.data.dataset_mapper import SemSegDatasetMapper, SeveralVocabulariesMapper
from dcp_clip.data.vocabularies import dataset_vocabulary

__all__ = [
    "ResumableLoader",
    "build_train_loader",
    "preserve_random_state",
    "redistribute",
]

# RepeatFactorTrainingSampler counts the boxes of each category. RandomSubsetTrainingSampler needs a
# key that Detectron2's config does not have.
_SAMPLERS = ("TrainingSampler", "WeightedTrainingSampler")
_POSITION = "_position"  # of a record in the stream; removed before the model sees the record


class ResumableLoader:
    """A training loader that a resumed training can continue with the same batches.

    Each image has a position in an endless stream, which the sampler defines. The random numbers of
    its augmentation depend only on the seed, the process and this position. They do not depend on
    earlier images or on the number of loader workers. :meth:`state_dict` contains the number of
    used images, and the images that wait for others of a similar aspect ratio or of the same
    vocabulary. Loading does not use the global random number generators.
    """

    def __init__(self, loader, seed: int | None = None):
        """
        Args:
            loader: from ``build_detection_train_loader``, before its first batch.
            seed: seed of the augmentation; None to draw one, the same in all processes.
        """
        self._loader = loader
        self._groups = loader if isinstance(loader, AspectRatioGroupedDataset) else None
        stream = loader
        while not isinstance(stream, ToIterableDataset):
            stream = stream.dataset  # The depth of nesting depends on the config.
        if self._groups is not None:
            # Workers take turns image by image, so that images arrive in the order of the stream.
            stream.shard_chunk_size = 1
        seed = comm.shared_random_seed() if seed is None else seed
        self._images = stream.dataset = _SeededImages(stream.dataset, seed, comm.get_rank())
        self._sampler = stream.sampler = _StreamSampler(stream.sampler)
        self._next = 0  # after the last position that was taken from the stream

    def __iter__(self) -> Iterator[list[dict]]:
        with preserve_random_state():  # without groups, it draws a seed for the workers
            batches = iter(self._loader)
        while True:
            with preserve_random_state():
                batch = next(batches)
            # The image that fills a batch is the last one that was taken.
            self._next = 1 + max(record.pop(_POSITION) for record in batch)
            yield batch

    def state_dict(self) -> dict:
        """Return what a new loader needs to continue after the last batch."""
        groups = [] if self._groups is None else self._groups._buckets
        waiting = [record[_POSITION] for group in groups for record in group]
        # Images that waited when an earlier loader stopped, and have not been taken again yet.
        waiting += [position for position in self._sampler.waiting if position >= self._next]
        return {
            "seed": self._images.seed,
            "sampler_seed": getattr(self._sampler.sampler, "_seed", None),
            "used": max(self._next, self._sampler.start),
            "waiting": sorted(waiting),
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue after the last batch of another loader. Call it before the first batch."""
        self._images.seed = state["seed"]
        if state["sampler_seed"] is not None:
            self._sampler.sampler._seed = state["sampler_seed"]
        self._sampler.start, self._sampler.waiting = state["used"], frozenset(state["waiting"])

    def skip(self, count: int) -> None:
        """Start after the first `count` images of the stream. Call it before the first batch."""
        self._sampler.start = count


def redistribute(states: Sequence[dict], rank: int, num_processes: int) -> dict:
    """Return the state with which a process continues the loaders of another number of processes.

    Process r of n processes takes every n-th image of a common stream, from image r on. The new
    processes take the images that no old process has used, so none is repeated or missed.

    Args:
        states: of :meth:`ResumableLoader.state_dict`, one for each old process. The seeds are those
            of the first one.
        rank: of the new process.
        num_processes: number of new processes.
    """
    used = [state["used"] for state in states]
    end = -(-len(states) * max(used) // num_processes)  # images of the new process until there
    unused = {r + len(states) * p for r, state in enumerate(states) for p in state["waiting"]}
    for image in range(len(states) * min(used), end * num_processes):
        position, process = divmod(image, len(states))
        if position >= used[process]:
            unused.add(image)
    waiting = sorted(i // num_processes for i in unused if i % num_processes == rank)
    return {**states[0], "used": end, "waiting": waiting}


class _StreamSampler(Sampler):
    """Yields (position, index) of the images that wait for a batch, then of those from `start`."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler
        self.start = 0
        self.waiting: frozenset[int] = frozenset()

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for position, index in enumerate(self.sampler):
            if position >= self.start or position in self.waiting:
                yield position, index


class _SeededImages(Dataset):
    """Images whose augmentation depends on the seed, the process and the position only."""

    def __init__(self, images: Dataset, seed: int, rank: int):
        self.images, self.seed, self.rank = images, seed, rank

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[int, int]) -> dict:
        position, index = key
        numbers = np.random.SeedSequence([self.seed, self.rank, position]).generate_state(3)
        with preserve_random_state():
            random.seed(int(numbers[0]))
            np.random.seed(int(numbers[1]))
            torch.default_generator.manual_seed(int(numbers[2]))  # leaves GPUs as they are
            return {**self.images[index], _POSITION: position}


@contextlib.contextmanager
def preserve_random_state() -> Iterator[None]:
    """Leave the global random number generators of the CPU as they were before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class _BatchesOfOneVocabulary(AspectRatioGroupedDataset):
    """Batches of images that share a vocabulary and, if wanted, a similar aspect ratio."""

    def __init__(self, images: AspectRatioGroupedDataset, by_aspect_ratio: bool):
        super().__init__(images.dataset, images.batch_size)
        self._by_aspect_ratio = by_aspect_ratio
        self._buckets: list[list[dict]] = []
        self._numbers: dict[tuple, int] = {}  # of the buckets

    def __iter__(self) -> Iterator[list[dict]]:
        for record in self.dataset:
            is_wide = self._by_aspect_ratio and record["width"] > record["height"]
            number = self._numbers.setdefault((record["vocabulary"], is_wide), len(self._buckets))
            if number == len(self._buckets):
                self._buckets.append([])
            bucket = self._buckets[number]
            bucket.append(record)
            if len(bucket) == self.batch_size:
                batch = bucket[:]
                del bucket[:]  # before the yield, after which the code may not continue
                yield batch


def build_train_loader(cfg: CfgNode) -> ResumableLoader:
    """Build the loader of the images and labels of DATASETS.TRAIN.

    If the data sets have different categories, the images of a batch share a vocabulary, which each
    of them has as "vocabulary". The sampler does not change: it mixes the images of all data sets,
    and an image waits until there are enough of its vocabulary for a batch.

    Args:
        cfg: reads DATASETS.TRAIN, DATASETS.TRAIN_REPEAT_FACTOR, DATALOADER, INPUT,
            SOLVER.IMS_PER_BATCH and SEED.

    Raises:
        ValueError: if DATASETS.TRAIN is empty, DATASETS.TRAIN_REPEAT_FACTOR is wrong, or
            DATALOADER.SAMPLER_TRAIN needs boxes.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise ValueError("DATASETS.TRAIN is empty: set the data sets to train on.")
    if cfg.DATALOADER.SAMPLER_TRAIN not in _SAMPLERS:
        raise ValueError(
            f"DATALOADER.SAMPLER_TRAIN is '{cfg.DATALOADER.SAMPLER_TRAIN}', but for label maps it "
            f"must be one of {', '.join(_SAMPLERS)}."
        )
    cfg = _with_repeat_factors(cfg)
    if len({dataset_vocabulary(name).fingerprint() for name in names}) == 1:
        loader = build_detection_train_loader(cfg, mapper=SemSegDatasetMapper(cfg))
    else:
        filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        loader = build_detection_train_loader(
            cfg,
            mapper=SeveralVocabulariesMapper(cfg),
            dataset=[
                {**record, "dataset": name}
                for name in names
                for record in get_detection_dataset_dicts(name, filter_empty)
            ],
            aspect_ratio_grouping=True,
        )
        loader = _BatchesOfOneVocabulary(loader, cfg.DATALOADER.ASPECT_RATIO_GROUPING)
    return ResumableLoader(loader, cfg.SEED if cfg.SEED >= 0 else None)


def _with_repeat_factors(cfg: CfgNode) -> CfgNode:
    """Check DATASETS.TRAIN_REPEAT_FACTOR, and use this project's names of the data sets in it."""
    key, factors, sampler = "DATASETS.TRAIN_REPEAT_FACTOR", [], cfg.DATALOADER.SAMPLER_TRAIN
    for entry in cfg.DATASETS.TRAIN_REPEAT_FACTOR:
        name, factor = entry if isinstance(entry, list | tuple) and len(entry) == 2 else ("", 0)
        if not isinstance(name, str) or not isinstance(factor, int | float) or not factor > 0:
            raise ValueError(
                f"{key} has the entry {entry!r}, which must be the name of a data set and a "
                "positive number, such as ['camvid_sem_seg_train', 2.0]."
            )
        ours = resolve_dataset_name(name)
        if ours in dict(factors):  # Detectron2 would use the last one
            raise ValueError(f"{key} names '{ours}' twice: remove one of its entries.")
        factors.append([ours, float(factor)])
        if ours not in cfg.DATASETS.TRAIN:
            raise ValueError(f"{key} names '{name}', which is not in DATASETS.TRAIN: add it there.")
    if factors and sampler != "WeightedTrainingSampler":
        raise ValueError(
            f"{key} needs the sampler 'WeightedTrainingSampler', but DATALOADER.SAMPLER_TRAIN is "
            f"'{sampler}'."
        )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = factors
    return cfg
