"""The questions of the vocabulary study: a vocabulary for each image, and the correct answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from dcp_clip.data.catalog import evenly_spaced, ignored_label
from dcp_clip.data.label_maps import read_labels
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.evaluation.groups import category_groups
from dcp_clip.experiments.growing_vocabulary import GrowingVocabulary, StudyError
from dcp_clip.vocabulary import Vocabulary

_BACKGROUND = "background"


@dataclass(frozen=True)
class Question:
    """A vocabulary for one image, and how it is scored.

    The scored categories are the C categories of the data set and one more, C. It stands for
    distractors, which are always wrong, or for the background.

    Attributes:
        vocabulary: the N names.
        meaning: (N,) int64, the scored category of each name.
        truth: (C,) int64, the scored category of each label of the data set.
    """

    vocabulary: Vocabulary
    meaning: np.ndarray
    truth: np.ndarray


@dataclass(frozen=True)
class Row:
    """One row of the study.

    Attributes:
        names: N, the size of the vocabulary.
        title: description of the vocabulary.
        ask: the question for an image, by its index in :class:`StudyImages`.
        shared: whether all images have the same question.
        special: whether it is a row of :func:`special_rows`, not a point of the curve over N.
    """

    names: int
    title: str
    ask: Callable[[int], Question]
    shared: bool = True
    special: bool = False


class StudyImages:
    """Some images of a data set.

    Attributes:
        own: the vocabulary of the data set.
        indices: indices of the images in the data set.
        is_thing: (C,) bool from the metadata of the data set, or None.
        present: for each image the label ids that it contains.
    """

    def __init__(self, dataset: str, limit: int, seed: int = 0) -> None:
        """
        Args:
            dataset: a registered data set with label maps.
            limit: largest number of images, taken evenly from the whole data set.
            seed: seed of the random choices for each image.

        Raises:
            StudyError: if the data set has a background class without a name, or no image with
                labels.
            ValueError: if its metadata has no ``ignore_label``.
        """
        self.dataset, self.seed = dataset, seed
        self.own = dataset_vocabulary(dataset)
        records, metadata = DatasetCatalog.get(dataset), MetadataCatalog.get(dataset)
        if metadata.get("num_foreground") is not None:
            raise StudyError(f"{dataset} has a background without a name: use another --dataset.")
        self.is_thing = category_groups(dataset).get("things")
        self._ignore_label = ignored_label(dataset)
        self.indices, self._files, self.present = [], [], []
        for i in evenly_spaced(len(records), limit):
            file = records[i]["sem_seg_file_name"]
            ids = np.unique(self._read(file))
            if (ids := ids[ids >= 0]).size:  # an image without labels scores nothing
                self.indices.append(i)
                self._files.append(file)
                self.present.append(ids)
        if not self.indices:
            raise StudyError(f"No image of {dataset} has a labelled pixel: use another --dataset.")

    def labels(self, index: int) -> np.ndarray:
        """(H, W) int64 label map of an image, -1 where it is not labelled."""
        return self._read(self._files[index])

    def _read(self, file: str) -> np.ndarray:
        labels = read_labels(file).astype(np.int64)
        return np.where(labels == self._ignore_label, -1, labels)

    def random(self, index: int, purpose: int) -> np.random.Generator:
        """A random generator for one image, the same in every run."""
        return np.random.default_rng([self.seed, purpose, index])

    def one_name(self, index: int) -> int:
        """A random category of the image; a thing if there is one."""
        present = self.present[index]
        things = [i for i in present if self.is_thing is not None and self.is_thing[i]]
        return int(self.random(index, 0).choice(things or present))


def make_rows(
    images: StudyImages, source: GrowingVocabulary, sizes: Sequence[int], special: bool = False
) -> list[Row]:
    """Make the rows of the study, one for each size, and those of :func:`special_rows`.

    Raises:
        StudyError: if an image has more categories than a size, or there are not enough names.
    """
    own, rows = len(images.own), []
    most = max(len(present) for present in images.present)
    for size in sizes:
        if size < most:
            raise StudyError(
                f"--sizes {size}: an image of {images.dataset} has {most} names; give {most} or "
                "more."
            )
        if size < own:
            title = "the image's names, others of the data set"
            rows.append(Row(size, title, _few(images, size), shared=False))
            continue
        meaning = np.minimum(np.arange(size), own)
        question = Question(source.first(size), meaning, np.arange(own))
        related, words = min(size, source.num_listed) - own, max(size - source.num_listed, 0)
        title = "the data set's names"
        title += f" + {related:,} related" * bool(related) + f" + {words:,} words" * bool(words)
        rows.append(Row(size, title, _always(question)))
    return rows + (special_rows(images) if special else [])


def special_rows(images: StudyImages) -> list[Row]:
    """One name; one name and "background"; all things and "background" instead of the stuff."""
    synonyms, own = images.own.synonyms, len(images.own)

    def one(index: int) -> Question:
        name = images.one_name(index)
        truth = np.where(np.arange(own) == name, name, own)
        return Question(Vocabulary([synonyms[name]]), np.array([name]), truth)

    def one_and_background(index: int) -> Question:
        name = images.one_name(index)
        vocabulary = Vocabulary([synonyms[name], _BACKGROUND], warn_shared=False)
        return Question(vocabulary, np.array([name, own]), one(index).truth)

    kind = "thing" if images.is_thing is not None else "name"
    titles = (
        f"one {kind} of the image: every pixel gets it",
        f"one {kind} of the image + background (stuff: background)",
        "the things + background for all stuff (stuff: background)",
    )
    rows = [
        Row(1, titles[0], one, shared=False, special=True),
        Row(2, titles[1], one_and_background, shared=False, special=True),
    ]
    if images.is_thing is not None:
        things = np.flatnonzero(images.is_thing)
        names = [*(synonyms[i] for i in things), _BACKGROUND]
        truth = np.where(images.is_thing, np.arange(own), own)
        question = Question(Vocabulary(names, warn_shared=False), np.append(things, own), truth)
        rows.append(Row(len(names), titles[2], _always(question), special=True))
    return rows


def _always(question: Question) -> Callable[[int], Question]:
    return lambda index: question


def _few(images: StudyImages, size: int) -> Callable[[int], Question]:
    """The names of the image, and random others of the data set."""
    own = len(images.own)

    def ask(index: int) -> Question:
        present = images.present[index]
        others = np.setdiff1d(np.arange(own), present)
        others = images.random(index, size).permutation(others)[: size - len(present)]
        ids = np.sort(np.concatenate([present, others])).astype(np.int64)
        names = [images.own.synonyms[i] for i in ids]
        return Question(Vocabulary(names, warn_shared=False), ids, np.arange(own))

    return ask
