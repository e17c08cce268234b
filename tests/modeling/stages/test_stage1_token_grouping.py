"""Tokens of the dense features: how they are merged and grouped."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from dcp_clip.modeling.stages.stage1_token_grouping import TokenGrouping, merge_tokens


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    count=st.integers(1, 40),
    padded=st.integers(0, 20),
    seed=st.integers(0, 9),
)
def test_at_most_count_tokens_remain_and_padding_has_no_effect(n, count, padded, seed):
    torch.manual_seed(seed)
    valid = torch.rand(2, n).argsort(1) >= min(padded, n - 1)
    tokens = normalize(torch.randn(2, 8, n), dim=1)
    out, kept = merge_tokens(tokens, valid, count)
    assert out.shape == (2, 8, min(n, count)) and kept.shape == (2, min(n, count))
    assert kept.any(1).all()
    norms = out.norm(dim=1)
    torch.testing.assert_close(norms[kept], torch.ones_like(norms[kept]))
    noise = tokens.where(valid[:, None], normalize(torch.randn(2, 8, n), dim=1))
    again, kept_again = merge_tokens(noise, valid, count)
    assert torch.equal(out, again) and torch.equal(kept, kept_again)


def test_a_token_without_a_similar_one_is_not_merged():
    torch.manual_seed(0)
    ground = normalize(torch.randn(16), dim=0)
    tokens = normalize(ground[:, None] + 0.05 * torch.randn(16, 100), dim=0)
    small = normalize(torch.randn(16), dim=0)
    tokens[:, 42] = small
    out, kept = merge_tokens(tokens[None], torch.ones(1, 100, dtype=torch.bool), 10)
    assert kept.all()
    best = (out[0].T @ small).max()
    assert best > 0.999
    assert (out[0].T @ ground).max() > 0.99


def test_untrained_grouping_is_the_identity_and_padding_has_no_effect():
    torch.manual_seed(0)
    grouping = TokenGrouping(16, 8, 2)
    tokens = normalize(torch.randn(2, 16, 12), dim=1)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, 7:] = False
    torch.testing.assert_close(grouping(tokens, valid), tokens)
    with torch.no_grad():
        grouping.gate += 0.7
    out = grouping(tokens, valid)
    assert not torch.allclose(out, tokens, atol=1e-3)
    other = tokens.clone()
    other[1, :, 7:] = normalize(torch.randn(16, 5), dim=0)
    torch.testing.assert_close(grouping(other, valid)[1, :, :7], out[1, :, :7])


def test_grouping_in_chunks_gives_the_same_result(monkeypatch):
    torch.manual_seed(0)
    grouping = TokenGrouping(16, 8, 2)
    with torch.no_grad():
        grouping.gate += 0.7
    tokens = normalize(torch.randn(2, 16, 50), dim=1)
    valid = torch.arange(50).expand(2, -1) < torch.tensor([[50], [31]])
    whole = grouping(tokens, valid)
    monkeypatch.setattr("dcp_clip.modeling.stages.stage1_token_grouping._CHUNK_CPU", 2 * 50 * 7)
    torch.testing.assert_close(grouping(tokens, valid), whole)
