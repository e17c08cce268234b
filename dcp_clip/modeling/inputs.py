"""Read the batched inputs of a segmentor, and the vocabularies of its training."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from dcp_clip.modeling.losses import IGNORE_INDEX
from dcp_clip.vocabulary import Vocabulary

__all__ = ["input_labels", "shared_vocabulary", "train_vocabularies"]


def shared_vocabulary(batched_inputs: list[dict], default: Vocabulary | None) -> Vocabulary:
    """Return the vocabulary of a batch.

    Args:
        batched_inputs: see ``OpenVocabularySegmentor.forward``.
        default: for inputs without a vocabulary of their own.

    Raises:
        ValueError: for an empty batch, without a vocabulary, or with two different ones.
    """
    if not batched_inputs:
        raise ValueError("the batch is empty: give the model one input or more.")
    vocabularies = {x.get("vocabulary") or default for x in batched_inputs}
    if len(vocabularies) != 1:
        raise ValueError("the images of one batch must share a vocabulary; split the batch.")
    vocabulary = vocabularies.pop()
    if vocabulary is None:
        raise ValueError(
            "no vocabulary: call model.set_vocabulary(...), give each input a 'vocabulary', or "
            "set DATASETS.TRAIN to a registered data set."
        )
    return vocabulary


def input_labels(inputs: dict, num_categories: int, device: torch.device) -> Tensor:
    """Return the (H, W) category ids of an input, IGNORE_INDEX where it has no category."""
    # Every value that is not a category is ignored: 255, or 65535 in data sets with more.
    labels = inputs["sem_seg"].to(device).long()
    return labels.masked_fill((labels < 0) | (labels >= num_categories), IGNORE_INDEX)


def train_vocabularies(cfg: CfgNode) -> Iterator[Vocabulary]:
    """Yield the categories of each data set of DATASETS.TRAIN."""
    for name in cfg.DATASETS.TRAIN:
        yield Vocabulary.from_metadata(MetadataCatalog.get(name))
