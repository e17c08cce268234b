"""Text features of a vocabulary, and their files."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..image_io import atomic_write

__all__ = ["TextFeatures", "read_features", "write_features"]

logger = logging.getLogger(__name__)


@dataclass
class TextFeatures:
    """Text features of a vocabulary.

    Attributes:
        embeddings: (N, D), unit length; one row a category, or one a synonym.
        rows: (C, S) int64, the rows that speak for each category; a category with fewer synonyms
            repeats its first one.
    """

    embeddings: Tensor
    rows: Tensor

    @property
    def num_categories(self) -> int:
        return len(self.rows)


def read_features(path: Path, num_categories: int, device: torch.device) -> TextFeatures | None:
    """What :func:`write_features` wrote; None, with a warning unless there is no such file, if it
    cannot be read or is not of that many categories."""
    if not path.is_file():
        return None
    try:
        data = torch.load(path, map_location=device, weights_only=True)
        features = TextFeatures(data["embeddings"], data["rows"])
        num_rows = len(features.embeddings)
        if len(features.rows) != num_categories or features.rows.max() >= num_rows:
            raise ValueError("its parts do not fit each other")
    except Exception as error:
        logger.warning("Text cache file %s is unreadable (%s); encoding anew.", path, error)
        return None
    return features


def write_features(path: Path, features: TextFeatures) -> None:
    """Write the file as a whole, or, where the folder does not allow it, warn."""
    data = {"embeddings": features.embeddings.cpu(), "rows": features.rows.cpu()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            torch.save(data, temporary)
    except OSError as error:
        logger.warning("Text features cannot be cached in %s (%s).", path.parent, error)
