"""Files that keep the text features of a vocabulary."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from dcp_clip.structures import TextFeatures
from dcp_clip.utils.image_io import atomic_write

__all__ = ["read_features", "write_features"]

logger = logging.getLogger(__name__)


def read_features(path: Path, num_categories: int, device: torch.device) -> TextFeatures | None:
    """What :func:`write_features` wrote; None, with a warning unless there is no such file, if it
    cannot be read or is not of that many categories."""
    if not path.is_file():
        return None
    try:
        data = torch.load(path, map_location=device, weights_only=True)
        features = TextFeatures(data["embeddings"], data["rows"])
        num_rows = len(features.embeddings)
        if (
            len(features.category_rows) != num_categories
            or features.category_rows.max() >= num_rows
        ):
            raise ValueError("its parts do not fit each other")
    except Exception as error:
        logger.warning("Text cache file %s is unreadable (%s); encoding anew.", path, error)
        return None
    return features


def write_features(path: Path, features: TextFeatures) -> None:
    """Write the file as a whole, or, where the folder does not allow it, warn."""
    data = {"embeddings": features.embeddings.cpu(), "rows": features.category_rows.cpu()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            torch.save(data, temporary)
    except OSError as error:
        logger.warning("Text features cannot be cached in %s (%s).", path.parent, error)
