"""Combine the text features of the synonyms of a category."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.structures import TextFeatures

__all__ = ["POOLINGS", "pool_synonyms", "pooled_rows"]

POOLINGS = ("mean", "max", "first")


def pool_synonyms(embeddings: Tensor, counts: Sequence[int], pooling: str) -> TextFeatures:
    """Group the embeddings of all names by category.

    Args:
        embeddings: (N, D) of unit length, the names of the first category first.
        counts: the number of names of each category; their sum is N.
        pooling: "max" keeps all names; "mean" and "first" give one feature for each category.
    """
    rows = _name_rows(counts).to(embeddings.device)
    if pooling == "max" or max(counts) == 1:
        return TextFeatures(embeddings, rows)
    counts_column = torch.tensor(counts)[:, None]
    weight = (torch.arange(max(counts)) < counts_column).to(embeddings)
    mean = (embeddings[rows] * weight[..., None]).sum(1) / weight.sum(1, keepdim=True)
    # The feature of a single name is not normalised again. Otherwise its last bits would depend
    # on the synonyms of other categories.
    alone = (counts_column == 1).to(embeddings.device)
    mean = embeddings[rows[:, 0]].where(alone, F.normalize(mean, dim=-1))
    return TextFeatures(mean, pooled_rows(counts, pooling).to(embeddings.device))


def pooled_rows(counts: Sequence[int], pooling: str) -> Tensor:
    """Return the `category_rows` (C, S) of the result of :func:`pool_synonyms`."""
    return _name_rows(counts if pooling == "max" else [1] * len(counts))


def _name_rows(counts: Sequence[int]) -> Tensor:
    """Return the rows (C, S) of each category's names; with fewer names, the first row repeats."""
    starts = torch.tensor([0, *counts]).cumsum(0)[:-1, None]
    offsets = torch.arange(max(counts))[None]
    return starts + offsets.where(offsets < torch.tensor(counts)[:, None], 0)
