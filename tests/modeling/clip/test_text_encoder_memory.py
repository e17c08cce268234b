"""TextEncoder: what is encoded only once, and what is encoded again."""

import copy
import hashlib

import pytest
import torch

from dcp_clip.vocabulary import Vocabulary

KEY = "MODEL.DCP_CLIP.VOCABULARY."
NAMES = Vocabulary(["sky", "tall tree", ["car", "automobile", "motor car"], "Straße"])


@pytest.mark.parametrize("cache", ["text", ""])
def test_a_vocabulary_is_encoded_once(make_encoder, count_prompts, cache):
    encoder = make_encoder(cache=cache)
    sizes = count_prompts(encoder)
    first = encoder.encode_vocabulary(NAMES)
    encoder.encode_vocabulary(Vocabulary(["other"]))
    asked = len(sizes)
    again = encoder.encode_vocabulary(Vocabulary(NAMES.synonyms))
    assert len(sizes) == asked and again.embeddings is first.embeddings


def _optimizer_step(encoder):
    encoder.requires_grad_(True)
    tokens = encoder.tokenizer(["a car"])
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.05)
    encoder(tokens).square().sum().backward()
    optimizer.step()
    encoder.requires_grad_(False)


def _load(encoder, **options):
    state = {k: v + 0.1 if v.is_floating_point() else v for k, v in encoder.state_dict().items()}
    encoder.load_state_dict(state, **options)


def _load_by_assignment(encoder):
    _load(encoder, assign=True)


def _write_through_data(encoder):
    for parameter in encoder.parameters():
        parameter.data = parameter.data + 0.1


def _replace_parameter(encoder):
    embedding = encoder.text.token_embedding
    embedding.weight = torch.nn.Parameter(embedding.weight.flip(0), requires_grad=False)


@pytest.mark.parametrize(
    "change",
    [_optimizer_step, _load, _load_by_assignment, _write_through_data, _replace_parameter],
)
def test_new_weights_give_new_features(make_encoder, change):
    encoder = make_encoder()
    before = encoder.encode_vocabulary(NAMES).embeddings
    change(encoder)
    after = encoder.encode_vocabulary(NAMES).embeddings
    with torch.no_grad():
        expected = encoder._encode(NAMES).embeddings
    assert not torch.allclose(after, before, atol=1e-3)
    torch.testing.assert_close(after, expected)


def test_the_cache_is_used_again_for_earlier_weights(make_encoder, count_prompts):
    encoder = make_encoder(cache="")
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    first = encoder.encode_vocabulary(NAMES)
    _load(encoder)
    encoder.encode_vocabulary(NAMES)
    encoder.load_state_dict(state)
    sizes = count_prompts(encoder)
    assert encoder.encode_vocabulary(NAMES) is first and not sizes


def test_a_lookup_does_not_read_the_weights(make_encoder, monkeypatch):
    """Every forward pass looks up the vocabulary: nothing is hashed or encoded."""
    encoder = make_encoder()
    first = encoder.encode_vocabulary(NAMES)

    def fail(*args, **kwargs):
        raise AssertionError("this lookup does more than it should")

    monkeypatch.setattr(hashlib, "sha256", fail)
    for name in ("state_dict", "forward"):
        monkeypatch.setattr(encoder.text, name, fail)
    assert encoder.encode_vocabulary(NAMES) is first


def test_a_tower_moved_to_another_precision_is_encoded_again(make_encoder):
    encoder = make_encoder()
    exact = encoder.encode_vocabulary(NAMES).embeddings
    coarse = encoder.to(torch.bfloat16).encode_vocabulary(NAMES).embeddings
    assert not torch.equal(coarse, exact)
    torch.testing.assert_close(coarse, exact, rtol=0.1, atol=0.1)


def test_a_copy_has_its_own_cache(make_encoder):
    encoder = make_encoder(cache="")
    before = encoder.encode_vocabulary(NAMES).embeddings.clone()
    other = copy.deepcopy(encoder)
    _load(other)
    assert not torch.allclose(other.encode_vocabulary(NAMES).embeddings, before, atol=1e-3)
    assert torch.equal(encoder.encode_vocabulary(NAMES).embeddings, before)


def test_a_tower_that_trains_is_not_cached(make_encoder, count_prompts):
    encoder = make_encoder().requires_grad_(True)
    encoder.encode_vocabulary(NAMES)
    encoder.train()
    sizes = count_prompts(encoder)
    for _ in range(2):
        embeddings = encoder.encode_vocabulary(NAMES).embeddings
        assert embeddings.requires_grad
    assert sum(sizes) == 2 * 6  # all names, each time
    embeddings[:, 0].sum().backward()
    assert all(p.grad is not None for p in encoder.text.transformer.parameters())


def test_autocast_does_not_change_the_cached_features(make_encoder):
    """The cached features have the precision of fp32 (contracts 1 and 8)."""
    with torch.autocast("cpu", torch.bfloat16):
        make_encoder().encode_vocabulary(NAMES)
    cached = make_encoder().encode_vocabulary(NAMES).embeddings
    exact = make_encoder(cache="").encode_vocabulary(NAMES).embeddings
    torch.testing.assert_close(cached, exact, rtol=1e-5, atol=1e-5)


def test_features_cached_in_inference_mode_can_be_used_in_training(make_encoder):
    encoder = make_encoder()
    with torch.inference_mode():
        encoder.encode_vocabulary(NAMES)
    features = encoder.encode_vocabulary(NAMES).embeddings
    weight = torch.randn(features.shape[1], 1, requires_grad=True)
    (features @ weight).sum().backward()
    assert weight.grad.isfinite().all()


def test_many_names_are_encoded_in_chunks(make_encoder, count_prompts):
    encoder = make_encoder(chunk_size=200)
    sizes = count_prompts(encoder)
    vocabulary = Vocabulary([f"thing {i}" for i in range(3000)])
    features = encoder.encode_vocabulary(vocabulary)
    assert max(sizes) <= 200
    assert features.embeddings.shape == (3000, 48) and features.category_rows.shape == (3000, 1)
    names = Vocabulary([f"thing {i}" for i in range(1990, 2010)])
    few = make_encoder(cache="", chunk_size=200).encode_vocabulary(names)
    assert torch.equal(few.embeddings, features.embeddings[1990:2010])


@pytest.mark.parametrize("templates", ["single", "vild14"])
def test_only_new_names_are_encoded(make_encoder, count_prompts, templates):
    opts = {KEY + "TEMPLATES": templates}
    encoder = make_encoder(opts=opts, cache="")
    sizes = count_prompts(encoder)
    first = encoder.encode_vocabulary(Vocabulary(["sky", "a very tall tree"])).embeddings
    sizes.clear()
    more = encoder.encode_vocabulary(Vocabulary(["car", "sky", "a very tall tree"])).embeddings
    assert sizes == [28 if templates == "vild14" else 32]  # one chunk
    assert torch.equal(more[1:], first)
    other = make_encoder(opts=opts, cache="").encode_vocabulary(Vocabulary(["sofa", "car"]))
    assert torch.equal(other.embeddings[1], more[0])
    encoder.clear_cache()
    sizes.clear()
    assert torch.equal(encoder.encode_vocabulary(Vocabulary(["sky"])).embeddings, first[:1])
    assert len(sizes) == 1
    with torch.no_grad():  # other weights
        encoder.text.ln_final.weight.mul_(torch.rand_like(encoder.text.ln_final.weight))
    assert not torch.equal(encoder.encode_vocabulary(Vocabulary(["sky"])).embeddings, first[:1])


class Counting:
    """A tokenizer that records the number of prompts of each call."""

    def __init__(self, inner):
        self.inner, self.sizes = inner, []

    def __call__(self, prompts):
        self.sizes.append(len(prompts))
        return self.inner(prompts)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("trains", [False, True])
def test_many_names_are_tokenised_in_blocks(make_encoder, trains):
    """The tokens of 20,000 names in 80 templates would take a gigabyte."""
    vocabulary = Vocabulary([f"thing {i}" for i in range(100)])
    encoder = make_encoder(opts={KEY + "TEMPLATES": "vild14"}, cache="", chunk_size=2)
    encoder.requires_grad_(trains).train(trains)
    encoder.tokenizer = Counting(encoder.tokenizer)
    for _ in range(2):
        encoder.encode_vocabulary(vocabulary)
    assert max(encoder.tokenizer.sizes) <= 64 * 2
    assert sum(encoder.tokenizer.sizes) == 14 * 100  # once; a tower that trains keeps the tokens


def test_there_can_be_more_templates_than_a_chunk_has_prompts(make_encoder, count_prompts):
    encoder = make_encoder(opts={KEY + "TEMPLATES": "vild14"}, chunk_size=5)
    sizes = count_prompts(encoder)
    features = encoder.encode_vocabulary(NAMES).embeddings
    expected = make_encoder(opts={KEY + "TEMPLATES": "vild14"}).encode_vocabulary(NAMES).embeddings
    torch.testing.assert_close(features, expected)
    assert set(sizes) == {14}  # all prompts of a name


@torch.no_grad()
def test_memory_keeps_the_vocabularies_used_last(make_encoder):
    encoder = make_encoder()
    first = encoder.encode_vocabulary(Vocabulary(["first"]))
    for i in range(20):
        encoder.encode_vocabulary(Vocabulary([f"name {i}"]))
        assert encoder.encode_vocabulary(Vocabulary(["first"])) is first
    assert len(encoder._cache) <= 8
