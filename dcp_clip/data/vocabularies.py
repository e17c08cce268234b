"""Vocabularies of registered data sets."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from dcp_clip.data.aliases import resolve_dataset_name
from dcp_clip.vocabulary import Vocabulary, VocabularyError
from dcp_clip.vocabulary.vocabulary import suggest

__all__ = ["dataset_vocabulary", "parse_vocabulary"]

logger = logging.getLogger(__name__)


def dataset_vocabulary(name: str) -> Vocabulary:
    """Return the categories of a data set that is registered in Detectron2.

    Args:
        name: name of the data set, or another project's name for it (:mod:`dcp_clip.data.aliases`).

    Raises:
        VocabularyError: if there is no such data set, or it has no ``stuff_classes``.
    """
    name = resolve_dataset_name(name)
    if name not in DatasetCatalog:
        hint = suggest(name, DatasetCatalog.list())
        raise VocabularyError(f"No data set '{name}' is registered in Detectron2.{hint}")
    return Vocabulary.from_metadata(MetadataCatalog.get(name))


def parse_vocabulary(spec: Vocabulary | str | Path | Sequence) -> Vocabulary:
    """Make a vocabulary from the name of a data set, a list of names, a string or a file.

    The name of a registered data set gives its categories. A string that looks like such a name
    ("..._sem_seg...") but is not registered is an error. Everything else is read by
    :meth:`Vocabulary.parse`.

    Raises:
        VocabularyError: if the names cannot be read.
    """
    if isinstance(spec, str):
        text = spec.strip()
        if resolve_dataset_name(text) in DatasetCatalog:
            return dataset_vocabulary(text)
        word = re.fullmatch(r"[\w-]+", text)
        if word and re.search(r"_sem_seg(_|$)", text):
            return dataset_vocabulary(text)
        if word and "_" in text:
            logger.warning(
                "'%s' is not a registered data set, so it is read as the name of a category.%s",
                text,
                suggest(text, DatasetCatalog.list()),
            )
    return Vocabulary.parse(spec)
