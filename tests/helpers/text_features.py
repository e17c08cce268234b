"""Text features for the tests of the cache on disk."""

import torch

from dcp_clip.modeling.clip.text_cache import read_features
from dcp_clip.structures import TextFeatures


def random_features(seed, count=4, width=64):
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, width, generator=generator)
    rows = torch.arange(count)[:, None]
    return TextFeatures(torch.nn.functional.normalize(embeddings, dim=-1), rows)


def read_from(path):
    return read_features(path, torch.arange(4)[:, None], 64, torch.device("cpu"))
