"""Cache files for the text features of a vocabulary."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from dcp_clip.structures import TextFeatures
from dcp_clip.utils.image_io import atomic_write

__all__ = ["read_features", "write_features"]

logger = logging.getLogger(__name__)


def read_features(path: Path, num_categories: int, device: torch.device) -> TextFeatures | None:
    """Read a file of :func:`write_features`.

    Returns:
        the features; None if the file does not exist, or, with a warning, if it cannot be read or
        does not contain `num_categories` categories.
    """
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
            raise ValueError("its tensors do not fit each other")
    except Exception as error:
        logger.warning("Cannot read the text cache %s (%s); encoding the names again.", path, error)
        return None
    return features


def write_features(path: Path, features: TextFeatures) -> None:
    """Write the features to a file, atomically; log a warning if that is not possible."""
    data = {"embeddings": features.embeddings.cpu(), "rows": features.category_rows.cpu()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            torch.save(data, temporary)
    except OSError as error:
        logger.warning("Cannot cache text features in %s (%s).", path.parent, error)
