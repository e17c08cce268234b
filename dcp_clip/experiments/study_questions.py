"""What `vocabulary_study.py` asks of each image, and how the answers are scored.

The project's evaluators read data sets from Detectron2's catalog. So each way of scoring is a data
set of its own for the time of the study: the same images, and other names or label maps.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.experiments.study_names import NameSource, StudyError
from dcp_clip.utils.image_io import write_png
from dcp_clip.vocabulary import Vocabulary

BACKGROUND = "background"
_VOID = 65535  # in label maps written here
_NO_NAME = "a name of no category"


@dataclass(frozen=True)
class Question:
    """A vocabulary for one image.

    Attributes:
        vocabulary: the C names.
        meaning: (C,) int64, the category of the scored data set that each name stands for.
    """

    vocabulary: Vocabulary
    meaning: np.ndarray


@dataclass(frozen=True)
class Row:
    """One line of the study.

    Attributes:
        names: C, the size of the vocabulary.
        title: what is in it.
        dataset: registered data set that the answers are scored on.
        ask: the question for an image, by its file name.
        shared: every image gets the same question.
        special: no point of the curve over C, but a question of another kind.
    """

    names: int
    title: str
    dataset: str
    ask: Callable[[str], Question]
    shared: bool = True
    special: bool = False


class StudyImages:
    """Some images of a data set, and what is in them."""

    def __init__(self, dataset: str, limit: int, seed: int = 0) -> None:
        """
        Args:
            dataset: a registered data set with label maps; an `is_thing` in its metadata is used.
            limit: images taken at most, evenly from the whole list.
            seed: of what is chosen for an image.

        Raises:
            StudyError: for a data set whose label maps hold a background that has no name.
        """
        self.own = dataset_vocabulary(dataset)
        records, self.metadata = DatasetCatalog.get(dataset), MetadataCatalog.get(dataset)
        if self.metadata.get("num_foreground") is not None:
            raise StudyError(
                f"{dataset} has a background that is no name: choose another --dataset."
            )
        taken = np.linspace(0, len(records) - 1, min(limit, len(records))).round().astype(int)
        self.dataset, self.seed = dataset, seed
        self.records = [records[i] for i in taken]
        self.is_thing = self.metadata.get("is_thing")
        self.numbers = {record["file_name"]: i for i, record in enumerate(self.records)}
        self.present = [self._present(record) for record in self.records]

    def _present(self, record: dict) -> np.ndarray:
        ids = np.unique(_read(record))
        return ids[ids != self.metadata.ignore_label]

    def random(self, file_name: str, purpose: int) -> np.random.Generator:
        """A generator of this image's own, the same in every run."""
        return np.random.default_rng([self.seed, purpose, self.numbers[file_name]])

    def one_name(self, file_name: str) -> int:
        """A category of the image chosen at random, a thing if there is one."""
        present = self.present[self.numbers[file_name]]
        if not len(present):
            raise StudyError(f"{file_name} has no labelled pixel, so no name to ask for.")
        things = [i for i in present if self.is_thing is not None and self.is_thing[i]]
        return int(self.random(file_name, 0).choice(things or present))


@contextmanager
def registered(images: StudyImages, folder: Path, special: bool) -> Iterator[dict[str, str]]:
    """Register the data sets that answers are scored on, for the time of the context.

    Args:
        images: the images.
        folder: where label maps are written, for the special questions.
        special: whether there are any.

    Yields:
        names of data sets: "names" (the label maps as they are), and with `special` "one" (one name
        of each image before a background) and, where things are told from stuff, "things".
    """
    own, is_thing = list(images.own.display_names), images.is_thing
    flags = None if is_thing is None else [*is_thing, False]
    # One category more than the labels have: what a distractor stands for, which is always wrong.
    sets = {"names": ([*own, _NO_NAME], flags, images.records, images.metadata.ignore_label)}
    if special:
        table = np.full(len(own), len(own))

        def keep_one(record: dict) -> np.ndarray:
            name = images.one_name(record["file_name"])
            return np.where(np.arange(len(own)) == name, name, table)

        records = _relabel(images, folder / "one", keep_one)
        sets["one"] = ([*own, BACKGROUND], flags, records, _VOID)
    if special and is_thing is not None:
        things = np.flatnonzero(is_thing)
        table = np.full(len(own), len(things))
        table[things] = np.arange(len(things))
        records = _relabel(images, folder / "things", lambda record: table)
        names = [*(own[i] for i in things), BACKGROUND]
        sets["things"] = (names, [True] * len(things) + [False], records, _VOID)
    registered_as = {kind: f"{images.dataset}/study_{kind}" for kind in sets}
    try:
        for kind, (names, things, records, ignore) in sets.items():
            DatasetCatalog.register(registered_as[kind], lambda records=records: records)
            metadata = MetadataCatalog.get(registered_as[kind])
            metadata.set(stuff_classes=names, ignore_label=ignore, evaluator_type="sem_seg")
            if things is not None:
                metadata.set(is_thing=things)
        yield registered_as
    finally:
        for name in registered_as.values():
            if name in DatasetCatalog:
                DatasetCatalog.remove(name)
                MetadataCatalog.pop(name)


def make_rows(
    images: StudyImages, source: NameSource, datasets: dict[str, str], sizes: Sequence[int]
) -> list[Row]:
    """The questions: one row a size, and those of :func:`special_rows` if there are data sets.

    Raises:
        StudyError: for a size that an image's own names exceed, or that no list of names reaches.
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
            ask = _few(images, size)
            rows.append(Row(size, title, datasets["names"], ask, shared=False))
            continue
        question = Question(source.vocabulary(size), np.minimum(np.arange(size), own))
        listed, words = min(size, source.num_listed) - own, max(size - source.num_listed, 0)
        title = "the data set's names"
        title += f" + {listed:,} related" * bool(listed) + f" + {words:,} words" * bool(words)
        rows.append(Row(size, title, datasets["names"], _always(question)))
    return rows + (special_rows(images, datasets) if "one" in datasets else [])


def special_rows(images: StudyImages, datasets: dict[str, str]) -> list[Row]:
    """One name, one name and "background", and all things and "background" for all stuff."""
    synonyms, own = images.own.synonyms, len(images.own)

    def one(file_name: str) -> Question:
        name = images.one_name(file_name)
        return Question(Vocabulary([synonyms[name]]), np.array([name]))

    def one_before_background(file_name: str) -> Question:
        name = images.one_name(file_name)
        vocabulary = Vocabulary([synonyms[name], BACKGROUND], warn_shared=False)
        return Question(vocabulary, np.array([name, own]))

    kind = "thing" if images.is_thing is not None else "name"
    rows = [
        Row(1, f"one {kind} of the image: every pixel gets it", datasets["one"], one, False, True),
        Row(
            2,
            f"one {kind} of the image + background (stuff: background)",
            datasets["one"],
            one_before_background,
            False,
            True,
        ),
    ]
    if "things" in datasets:
        names = [synonyms[i] for i in np.flatnonzero(images.is_thing)]
        vocabulary = Vocabulary([*names, BACKGROUND], warn_shared=False)
        question = Question(vocabulary, np.arange(len(vocabulary)))
        title = "the things + background for all stuff (stuff: background)"
        rows.append(
            Row(len(vocabulary), title, datasets["things"], _always(question), special=True)
        )
    return rows


def _always(question: Question) -> Callable[[str], Question]:
    return lambda file_name: question


def _few(images: StudyImages, size: int) -> Callable[[str], Question]:
    """The names of the image, as who asks knows what is on it, and others at random."""

    def ask(file_name: str) -> Question:
        present = images.present[images.numbers[file_name]]
        others = np.setdiff1d(np.arange(len(images.own)), present)
        others = images.random(file_name, size).permutation(others)[: size - len(present)]
        ids = np.sort(np.concatenate([present, others])).astype(np.int64)
        names = [images.own.synonyms[i] for i in ids]
        return Question(Vocabulary(names, warn_shared=False), ids)

    return ask


def _relabel(
    images: StudyImages, folder: Path, table_of: Callable[[dict], np.ndarray]
) -> list[dict]:
    """Write label maps whose values went through a table (C,) of each image; the new records."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for number, record in enumerate(images.records):
        labels = _read(record)
        void = labels == images.metadata.ignore_label
        labels = np.where(void, _VOID, table_of(record)[np.where(void, 0, labels)])
        path = folder / f"{number:06d}.png"
        write_png(path, labels.astype(np.uint16))
        records.append(record | {"sem_seg_file_name": str(path)})
    return records


def _read(record: dict) -> np.ndarray:
    """(H, W) int64 label map."""
    with Image.open(record["sem_seg_file_name"]) as file:
        return np.array(file, np.int64)
