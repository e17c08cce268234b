"""The replacements that the benchmark uses behave as the originals."""

import torch
from torch import nn

from dcp_clip.benchmarking.benchmark_model import (
    CachedBackbone,
    RandomTextEncoder,
    make_vocabulary,
)
from dcp_clip.benchmarking.profiling import STAGES


def test_vocabularies_are_distinct_and_nested():
    small, large = make_vocabulary(100), make_vocabulary(6000)
    assert len(set(large.synonyms)) == 6000
    assert large.synonyms[:100] == small.synonyms


def test_random_text_has_the_form_of_text_features():
    encoder = RandomTextEncoder(32, torch.device("cpu"))
    features = encoder.encode_vocabulary(make_vocabulary(50))
    assert features.num_categories == 50
    assert features.category_rows.flatten().tolist() == list(range(50))
    torch.testing.assert_close(features.embeddings.norm(dim=1), torch.ones(50))
    assert encoder.encode_vocabulary(make_vocabulary(50)) is features


def test_cached_features_have_the_size_of_the_image(make_model):
    """Sliding windows and the whole image have different sizes."""
    backbone, calls = make_model().backbone, []
    backbone.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[-2:]))
    cached = CachedBackbone(backbone)
    sizes = [(64, 64), (64, 96), (64, 64), (64, 96)]
    with torch.no_grad():
        features = [cached(torch.rand(1, 3, *size)) for size in sizes]
    assert calls == sizes[:2]
    assert features[0] is features[2] and features[1] is features[3]
    assert features[1]["dense"].shape[-1] > features[0]["dense"].shape[-1]


def test_the_profile_names_the_stages_of_the_model(make_model):
    model = make_model()
    assert all(isinstance(getattr(model, stage), nn.Module) for stage in STAGES)
