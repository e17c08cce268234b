"""Truncated prompts have the same text features."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transformer import TextTransformer
from torch.nn import functional as F

from dcp_clip.modeling import TextEncoder
from dcp_clip.modeling.clip.loading import load_clip
from dcp_clip.modeling.clip.text_tower import (
    can_truncate,
    encode_tokens,
    needed_lengths,
    rounded_lengths,
)
from dcp_clip.modeling.clip.tokenizer import build_tokenizer
from dcp_clip.vocabulary import Vocabulary

KEY = "MODEL.DCP_CLIP.VOCABULARY."
NAMES = ["sky", "tree", "car", "wall", "cat", "Straße", "hot dog", "street lamp post", "x" * 8]


@pytest.fixture(scope="module")
def tower(make_cfg, randomize):
    """``tower(**settings)``: a small text tower; open_clip's keys of ``text_cfg``."""

    def make(**settings):
        torch.manual_seed(0)
        sizes = {"context_length": 32, "vocab_size": 1024, "width": 32, "heads": 2, "layers": 2}
        return randomize(TextTransformer(**sizes, output_dim=24, **settings)).eval()

    return make


@pytest.fixture(scope="module")
def tokens():
    """(N, 32), prompts of many lengths; the end of text is the highest id, and it is 1023."""
    return build_tokenizer("test-convnext", 1024)([f"a photo of a {name}" for name in NAMES])[
        :, :32
    ]


@pytest.mark.parametrize(
    "options",
    [{}, {"pool_type": "eos", "eos_id": 1023}, {"proj_bias": True}, {"proj_type": "none"}],
)
@torch.no_grad()
def test_truncated_tokens_have_no_effect(tower, tokens, options):
    text = tower(**options)
    lengths = needed_lengths(text, tokens)
    assert can_truncate(text) and len(lengths.unique()) > 3 and lengths.max() < 32
    for row, length, expected in zip(tokens, lengths.tolist(), text(tokens), strict=True):
        for kept in (length, length + 1, 32):
            cut = encode_tokens(text, row[None, :kept])[0]
            torch.testing.assert_close(cut, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"no_causal_mask": True},
        {"no_causal_mask": True, "use_pad_mask": True},
        {"embed_cls": True},
        {"pool_type": "last"},
        {"pool_type": "first", "no_causal_mask": True},
        {"output_tokens": True},
    ],
)
@torch.no_grad()
def test_towers_that_depend_on_all_tokens_are_not_truncated(tower, tokens, options):
    text = tower(**options)
    assert not can_truncate(text)
    assert needed_lengths(text, tokens).tolist() == [32] * len(tokens)
    out = text(tokens)  # with output_tokens, features and tokens
    expected = out[0] if isinstance(out, tuple) else out
    assert torch.equal(encode_tokens(text, tokens), expected)


def test_a_tower_with_a_forward_of_its_own_is_not_truncated(tower):
    text = tower()
    text.__class__ = type("Other", (type(text),), {})
    assert not can_truncate(text)


def test_a_mask_that_is_not_causal_is_not_truncated(tower):
    text = tower()
    text.attn_mask[2, 5] = 0.0
    assert not can_truncate(text)


@torch.no_grad()
def test_a_vocabulary_of_a_tower_that_is_not_truncated(tower, make_cfg):
    text = tower(no_causal_mask=True)
    tokenizer = build_tokenizer("test-convnext", 1024)
    tokenizer.context_length = 32
    encoder = TextEncoder(text=text, tokenizer=tokenizer, model_name="x", templates=("a {}.",))
    features = encoder.eval().encode_vocabulary(Vocabulary(NAMES)).embeddings
    expected = F.normalize(text(tokenizer([f"a {name}." for name in NAMES])), dim=1)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 90), min_size=1), context=st.integers(1, 90))
def test_rounded_lengths(lengths, context):
    lengths = torch.tensor(lengths).clamp(max=context)
    rounded = rounded_lengths(lengths, context)
    assert (rounded >= lengths).all() and (rounded <= context).all()
    assert (rounded <= (1.5 * lengths).clamp(min=8)).all()
    shapes = rounded_lengths(torch.arange(1, context + 1), context).unique()
    assert len(shapes) <= 8


@torch.no_grad()
@pytest.mark.parametrize("templates", ["single", "vild14"])
@pytest.mark.parametrize("clip", ["test-convnext", "dcp-tiny-cnn"])
def test_a_name_has_the_same_bits_in_every_vocabulary(make_cfg, randomize, templates, clip):
    opts = {KEY + "TEMPLATES": templates, KEY + "CACHE_DIR": ""}
    encoder = randomize(TextEncoder(make_cfg(clip, opts))).eval()
    encoder.chunk_size = 8
    together = encoder.encode_vocabulary(Vocabulary(NAMES)).embeddings
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 5, len(NAMES)):
        ids = torch.randperm(len(NAMES), generator=generator)[:count].tolist()
        others = [f"thing number {i}" for i in range(3 * count)]
        names = Vocabulary([NAMES[i] for i in ids] + others)
        assert torch.equal(encoder.encode_vocabulary(names).embeddings[:count], together[ids])


@pytest.mark.parametrize("chunk_size", [4, 64])
def test_gradients_of_a_tower_that_trains(make_cfg, randomize, chunk_size):
    encoder = TextEncoder(make_cfg(opts={KEY + "CACHE_DIR": ""}))
    randomize(encoder).requires_grad_(True)
    encoder.chunk_size = chunk_size
    plain = copy.deepcopy(encoder.text)
    weight = torch.randn(len(NAMES), 48)
    (encoder.train().encode_vocabulary(Vocabulary(NAMES)).embeddings * weight).sum().backward()
    prompts = [encoder.templates[0].replace("{}", name) for name in NAMES]
    (F.normalize(plain(encoder.tokenizer(prompts)), dim=1) * weight).sum().backward()
    for own, expected in zip(encoder.text.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-5)


def test_short_prompts_are_encoded_with_few_tokens(make_cfg):
    """The tower runs on far fewer tokens than the context holds."""
    encoder = TextEncoder(make_cfg(opts={KEY + "CACHE_DIR": ""})).eval()
    encoder.chunk_size = 4
    shapes = []
    encoder.text.transformer.register_forward_pre_hook(lambda _, x: shapes.append(x[0].shape[:2]))
    encoder.encode_vocabulary(Vocabulary([f"{c}{d}" for c in "abcdef" for d in "xyz"]))
    assert {n for n, _ in shapes} == {4} and max(length for _, length in shapes) < 20


def test_the_towers_of_load_clip_can_be_truncated(make_cfg, tiny_clips):
    assert all(
        can_truncate(load_clip(make_cfg(clip)).text) for clip in [*tiny_clips, "dcp-tiny-cnn"]
    )
