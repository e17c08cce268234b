"""TextEncoder: parity, any text, synonyms, and a cache that is never wrong."""

import pytest
import torch
from torch.nn import functional as F

from dcp_clip.modeling import TextEncoder
from dcp_clip.modeling.clip.loading import load_clip
from dcp_clip.modeling.clip.tokenizer import PrefixTokenizer
from dcp_clip.vocabulary import Vocabulary

KEY = "MODEL.DCP_CLIP.VOCABULARY."
CLIPS = ["test-convnext", "test-vit-14-quickgelu"]
NAMES = Vocabulary(["sky", "tall tree", ["car", "automobile", "motor car"], "Straße"])


# ---- parity and prompts


@torch.no_grad()
@pytest.mark.parametrize("clip", [*CLIPS, "dcp-tiny-cnn"])
def test_it_is_encode_text(make_cfg, randomize, clip):
    model = randomize(load_clip(make_cfg(clip)))
    tokenizer = PrefixTokenizer(model.text.vocab_size, context_length=32)
    encoder = TextEncoder(
        text=model.text, tokenizer=tokenizer, model_name=clip, templates=("a {}.",)
    ).eval()
    tokens = tokenizer(["a sky.", "a tall tree."])
    expected = model.encode_text(tokens)
    torch.testing.assert_close(encoder(tokens), expected, rtol=1e-5, atol=1e-5)
    features = encoder.encode_vocabulary(Vocabulary(["sky", "tall tree"]))
    expected = F.normalize(expected, dim=-1)
    torch.testing.assert_close(features.embeddings, expected, rtol=1e-5, atol=1e-5)


def test_quickgelu_reaches_the_text_tower(make_cfg):
    activations = {
        clip: type(load_clip(make_cfg(clip)).text.transformer.resblocks[0].mlp.gelu).__name__
        for clip in CLIPS
    }
    assert activations == {"test-convnext": "GELU", "test-vit-14-quickgelu": "QuickGELU"}


@torch.no_grad()
def test_templates_are_averaged_on_the_sphere(make_encoder, tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\nthe small {}.\n")
    encoder = make_encoder(opts={KEY + "TEMPLATES": str(path)})
    features = encoder.encode_vocabulary(Vocabulary(["sky", "car"])).embeddings
    prompts = ["a sky.", "the small sky.", "a car.", "the small car."]
    each = F.normalize(encoder(encoder.tokenizer(prompts)), dim=-1).view(2, 2, -1)
    torch.testing.assert_close(features, F.normalize(each.mean(1), dim=-1))


@torch.no_grad()
def test_synonym_rules(make_encoder):
    single = make_encoder().encode_vocabulary(
        Vocabulary(["sky", "tall tree", "car", "automobile", "motor car", "Straße"])
    )
    mean = make_encoder(opts={KEY + "SYNONYM_POOLING": "mean"}).encode_vocabulary(NAMES)
    assert mean.num_categories == 4 and mean.rows.tolist() == [[0], [1], [2], [3]]
    expected = F.normalize(single.embeddings[2:5].mean(0), dim=0)
    torch.testing.assert_close(mean.embeddings[2], expected)
    torch.testing.assert_close(mean.embeddings[[0, 1, 3]], single.embeddings[[0, 1, 5]])
    best = make_encoder(opts={KEY + "SYNONYM_POOLING": "max"}).encode_vocabulary(NAMES)
    assert best.rows.tolist() == [[0, 0, 0], [1, 1, 1], [2, 3, 4], [5, 5, 5]]
    torch.testing.assert_close(best.embeddings, single.embeddings)
    first = make_encoder(opts={KEY + "SYNONYM_POOLING": "first"}).encode_vocabulary(NAMES)
    assert first.rows.tolist() == [[0], [1], [2], [3]]
    torch.testing.assert_close(first.embeddings, single.embeddings[[0, 1, 2, 5]])


def test_unknown_synonym_rule(make_cfg):
    with pytest.raises(ValueError, match="SYNONYM_POOLING is 'sum'"):
        TextEncoder(make_cfg(opts={KEY + "SYNONYM_POOLING": "sum"}))


@pytest.mark.parametrize("name", ["x" * 1000, "very " * 40 + "tall tree"])
def test_too_long_a_name_is_quoted(make_encoder, name):
    with pytest.raises(ValueError, match=f"'{name[:30]}.*characters.*holds 32; shorten") as error:
        make_encoder().encode_vocabulary(Vocabulary(["sky", name]))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_name_that_just_fits(make_encoder):
    encoder = make_encoder()
    template = encoder.templates[0].replace("{}", "")
    free = 32 - len(encoder.tokenizer.encode(template)) - 2
    name = " ".join("1" * free)  # each digit is a token
    assert encoder.encode_vocabulary(Vocabulary([name])).embeddings.isfinite().all()
    with pytest.raises(ValueError, match="shorten"):
        encoder.encode_vocabulary(Vocabulary([name + " 1"]))


# ---- the cache


@pytest.mark.parametrize("cache", ["text", ""])
def test_memory_hit(make_encoder, count_prompts, cache):
    encoder = make_encoder(cache=cache)
    sizes = count_prompts(encoder)
    first = encoder.encode_vocabulary(NAMES)
    encoder.encode_vocabulary(Vocabulary(["other"]))
    asked = len(sizes)
    again = encoder.encode_vocabulary(Vocabulary(NAMES.synonyms))
    assert len(sizes) == asked and again.embeddings is first.embeddings


@pytest.mark.parametrize(
    "other",
    [
        {"vocabulary": Vocabulary(["sky", "tall tree", ["car", "automobile"], "Straße"])},
        {"vocabulary": Vocabulary(NAMES.synonyms[::-1])},
        {"opts": {KEY + "TEMPLATES": "vild14"}},
        {"opts": {KEY + "SYNONYM_POOLING": "max"}},
    ],
)
def test_what_differs_does_not_clash(make_encoder, other):
    make_encoder().encode_vocabulary(NAMES)
    opts, vocabulary = other.get("opts"), other.get("vocabulary", NAMES)
    shared = make_encoder(opts=opts).encode_vocabulary(vocabulary)
    alone = make_encoder(opts=opts, cache="").encode_vocabulary(vocabulary)
    assert torch.equal(shared.embeddings, alone.embeddings)
    assert torch.equal(shared.rows, alone.rows)


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


@pytest.mark.parametrize(
    "change", [_optimizer_step, _load, _load_by_assignment, _write_through_data]
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


def test_a_tower_that_trains_is_not_cached(make_encoder, count_prompts):
    encoder = make_encoder().requires_grad_(True)
    encoder.encode_vocabulary(NAMES)
    encoder.train()
    sizes = count_prompts(encoder)
    for _ in range(2):
        embeddings = encoder.encode_vocabulary(NAMES).embeddings
        assert embeddings.requires_grad
    assert sum(sizes) == 2 * 6  # each of the names, each time
    embeddings[:, 0].sum().backward()
    assert all(p.grad is not None for p in encoder.text.transformer.parameters())


def test_bf16_runs_do_not_leave_coarse_features_behind(make_encoder):
    """Whoever encodes first, the cached features have the precision of fp32 (contracts 1, 8)."""
    with torch.autocast("cpu", torch.bfloat16):
        make_encoder().encode_vocabulary(NAMES)
    cached = make_encoder().encode_vocabulary(NAMES).embeddings
    exact = make_encoder(cache="").encode_vocabulary(NAMES).embeddings
    torch.testing.assert_close(cached, exact, rtol=1e-5, atol=1e-5)


def test_features_cached_in_inference_mode_serve_training_too(make_encoder):
    encoder = make_encoder()
    with torch.inference_mode():
        encoder.encode_vocabulary(NAMES)
    features = encoder.encode_vocabulary(NAMES).embeddings
    weight = torch.randn(features.shape[1], 1, requires_grad=True)
    (features @ weight).sum().backward()
    assert weight.grad.isfinite().all()


def test_many_names_in_bounded_chunks(make_encoder, count_prompts):
    encoder = make_encoder(opts={KEY + "CHUNK_SIZE": 200})
    sizes = count_prompts(encoder)
    vocabulary = Vocabulary([f"thing {i}" for i in range(3000)])
    features = encoder.encode_vocabulary(vocabulary)
    assert max(sizes) <= 200
    assert features.embeddings.shape == (3000, 48) and features.rows.shape == (3000, 1)
    few = encoder.encode_vocabulary(Vocabulary([f"thing {i}" for i in range(1990, 2010)]))
    torch.testing.assert_close(few.embeddings, features.embeddings[1990:2010])


class Counting:
    """A tokenizer that notes how many prompts it was given at a time."""

    def __init__(self, inner):
        self.inner, self.sizes = inner, []

    def __call__(self, prompts):
        self.sizes.append(len(prompts))
        return self.inner(prompts)

    def __getattr__(self, name):
        return getattr(self.inner, name)


@pytest.mark.parametrize("trains", [False, True])
def test_many_names_are_tokenised_in_bounded_numbers(make_encoder, trains):
    """20,000 names in 80 templates would be a gigabyte of tokens."""
    vocabulary = Vocabulary([f"thing {i}" for i in range(100)])
    opts = {KEY + "CHUNK_SIZE": 2, KEY + "TEMPLATES": "vild14"}
    encoder = make_encoder(opts=opts, cache="").requires_grad_(trains).train(trains)
    encoder.tokenizer = Counting(encoder.tokenizer)
    for _ in range(2):
        encoder.encode_vocabulary(vocabulary)
    assert max(encoder.tokenizer.sizes) <= 64 * 2
    assert sum(encoder.tokenizer.sizes) == 14 * 100  # once: a tower that trains keeps the tokens


def test_more_templates_than_a_chunk_holds(make_encoder, count_prompts):
    encoder = make_encoder(opts={KEY + "CHUNK_SIZE": 5, KEY + "TEMPLATES": "vild14"})
    sizes = count_prompts(encoder)
    features = encoder.encode_vocabulary(NAMES).embeddings
    expected = make_encoder(opts={KEY + "TEMPLATES": "vild14"}).encode_vocabulary(NAMES).embeddings
    torch.testing.assert_close(features, expected)
    assert set(sizes) == {5}


@torch.no_grad()
def test_memory_holds_the_vocabularies_used_last(make_encoder):
    encoder = make_encoder()
    first = encoder.encode_vocabulary(Vocabulary(["first"]))
    for i in range(20):
        encoder.encode_vocabulary(Vocabulary([f"name {i}"]))
        assert encoder.encode_vocabulary(Vocabulary(["first"])) is first
    assert len(encoder._cache) <= 8
