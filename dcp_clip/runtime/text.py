"""Names to text features, as :class:`dcp_clip.modeling.clip.text_encoder.TextEncoder` does it."""

from __future__ import annotations

import html
import re
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock
from typing import NamedTuple

import numpy as np

from dcp_clip.runtime.folder import ModelFolder, damaged_file
from dcp_clip.runtime.sessions import Program
from dcp_clip.utils.optional_packages import import_optional
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.prompts import build_prompts, name_too_long

__all__ = ["TextEncoder", "TextFeatures", "clean_text"]

_PROMPTS_PER_CALL = 128
_PROMPTS_PER_PART = 8192  # tokenised at once; 40,000 prompts take 170 MB
_KEPT_VOCABULARIES = 8
_HTML_ENTITY = re.compile("&#?[0-9A-Za-z]+;")


class TextFeatures(NamedTuple):
    """The text features of a vocabulary.

    Attributes:
        embeddings: (N, D) float32, of unit length.
        category_rows: (C, S) int64, the rows of the synonyms of each category; a category with
            fewer than S synonyms repeats its first row.
    """

    embeddings: np.ndarray
    category_rows: np.ndarray


class TextEncoder:
    """Encodes vocabularies, and keeps the features of the last ones in memory."""

    def __init__(self, folder: ModelFolder, program: Program):
        """
        Args:
            folder: the exported model.
            program: its text.onnx.
        """
        tokenizers = import_optional("tokenizers", "An exported model needs")
        self._folder, self._program = folder, program
        path = folder.path / "tokenizer.json"
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the package has no type of its own
            raise damaged_file(path, error) from error
        self._tokenizer.normalizer = tokenizers.normalizers.Sequence([])  # clean_text does it
        self._kept: OrderedDict[str, TextFeatures] = OrderedDict()
        self._lock = Lock()

    def __call__(self, vocabulary: Vocabulary) -> TextFeatures:
        """Return the text features of a vocabulary.

        Raises:
            VocabularyError: if a name does not fit CLIP's context; the message quotes it.
        """
        key = vocabulary.fingerprint()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._encode(vocabulary)
                if len(self._kept) > _KEPT_VOCABULARIES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _encode(self, vocabulary: Vocabulary) -> TextFeatures:
        pooling, groups = self._folder["synonym_pooling"], vocabulary.synonyms
        if pooling == "first":
            groups = tuple(names[:1] for names in groups)
        names = [name for names in groups for name in names]
        # A name of several categories is encoded once, so that their features are exactly equal.
        number = {name: i for i, name in enumerate(dict.fromkeys(names))}
        distinct = list(number)
        size = max(_PROMPTS_PER_PART // len(self._folder["templates"]), 1)
        parts = [distinct[i : i + size] for i in range(0, len(distinct), size)]
        features = np.concatenate([self._encode_names(part) for part in parts])
        features = features[[number[name] for name in names]]
        counts = np.array([len(names) for names in groups])
        rows = _name_rows(counts)
        if pooling == "max" or counts.max() == 1:
            return TextFeatures(features, rows)
        starts = rows[:, 0]
        means = np.add.reduceat(features, starts) / counts[:, None].astype(np.float32)
        means = np.where(counts[:, None] == 1, features[starts], _unit(means))
        return TextFeatures(means, np.arange(len(groups))[:, None])

    def _encode_names(self, names: Sequence[str]) -> np.ndarray:
        """(N, D): the mean over the templates of each name."""
        templates = self._folder["templates"]
        prompts = build_prompts(names, templates)
        cleaned = list(map(clean_text, prompts))
        tokens = [encoding.ids for encoding in self._tokenizer.encode_batch(cleaned)]
        context = self._folder["context_length"]
        for i, ids in enumerate(tokens):
            if len(ids) > context:
                raise name_too_long(names[i // len(templates)], len(ids), context)
        features = np.empty((len(tokens), self._folder["embedding"]), np.float32)
        # Prompts of similar length together, because the text tower runs up to the longest one.
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        for start in range(0, len(order), _PROMPTS_PER_CALL):
            chosen = order[start : start + _PROMPTS_PER_CALL]
            shorter = self._folder["shorter_prompts"]
            batch = np.zeros((len(chosen), len(tokens[chosen[-1]]) if shorter else context), int)
            for row, i in zip(batch, chosen, strict=True):
                row[: len(tokens[i])] = tokens[i]
            (features[chosen],) = self._program({"tokens": batch}, ["features"])
        return _unit(features.reshape(len(names), len(templates), -1).mean(1))


def clean_text(text: str) -> str:
    """Correct a text as open_clip does: damaged encodings, HTML entities, spaces, lower case."""
    if not text.isascii() or _HTML_ENTITY.search(text):
        text = _repair(text)
    text = html.unescape(html.unescape(text))
    return " ".join(text.split()).lower()


def _repair(text: str) -> str:
    need = f"The name '{text}' has letters beyond ASCII or HTML entities, for which CLIP's "
    return import_optional("ftfy", need + "tokenizer needs").fix_text(text)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def _name_rows(counts: np.ndarray) -> np.ndarray:
    """(C, S) rows of each category's names; with fewer names, the first row repeats."""
    starts = np.cumsum([0, *counts[:-1]])[:, None]
    offsets = np.arange(counts.max())[None]
    return starts + np.where(offsets < counts[:, None], offsets, 0)
