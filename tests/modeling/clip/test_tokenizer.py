"""The tokenizer with few tokens encodes any text."""

import functools
import json
import sys

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from dcp_clip.modeling.clip.loading import CLIPWeightsError
from dcp_clip.modeling.clip.tokenizer import PrefixTokenizer, build_tokenizer, tokenize
from dcp_clip.vocabulary import VocabularyError

FEW = settings(max_examples=30, deadline=None)


@pytest.mark.parametrize("vocab_size", [514, 700, 2048, 49408])
@FEW
@given(text=st.text(max_size=40))
def test_any_text_can_be_encoded(vocab_size, text):
    tokenizer = _tokenizer(vocab_size)
    tokens = tokenizer(text)[0]
    ids = tokenizer.encode(text)
    assert all(0 <= i < vocab_size - 2 for i in ids if i not in tokenizer.all_special_ids)
    assert tokens.max() < vocab_size
    length = min(len(ids) + 2, 32)
    assert tokens[0] == vocab_size - 2 and tokens[length - 1] == vocab_size - 1
    assert (tokens[length:] == 0).all()
    full = _tokenizer(49408)
    assert tokenizer.decode(ids) == full.decode(full.encode(text))


@functools.cache  # the file of the merges takes long to read
def _whole():
    return SimpleTokenizer(context_length=32)


@functools.cache
def _tokenizer(vocab_size):
    return PrefixTokenizer(_whole(), vocab_size)


def test_the_whole_tokenizer_is_not_changed():
    whole, new = _whole(), SimpleTokenizer(context_length=32)
    assert PrefixTokenizer(whole, 700).encode("segmentation") != whole.encode("segmentation")
    assert whole.encode("segmentation") == new.encode("segmentation")
    assert (whole.encoder, whole.bpe_ranks) == (new.encoder, new.bpe_ranks)


def test_models_with_the_same_config_share_a_tokenizer(monkeypatch):
    """It is read once; a model with the same name and another config gets its own."""
    first = build_tokenizer("test-convnext", 1024)
    assert build_tokenizer("test-convnext", 1024) is first
    assert build_tokenizer("test-convnext", 2048).vocab_size == 2048
    config = open_clip.get_model_config("test-convnext")
    config["text_cfg"] = {**config["text_cfg"], "context_length": 16}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "test-convnext", config)
    assert build_tokenizer("test-convnext", 1024)(["sky"]).shape == (1, 16)
    assert first(["sky"]).shape == (1, 32)


@FEW
@given(text=st.text(max_size=30))
def test_with_all_tokens_it_is_the_tokenizer_of_open_clip(text):
    open_clips = open_clip.tokenizer._tokenizer
    assert _tokenizer(49408).encode(text) == open_clips.encode(text)


def test_fewer_tokens_than_bytes_are_refused():
    with pytest.raises(ValueError, match="300"):
        PrefixTokenizer(_whole(), 300)


@pytest.fixture
def hub_clip(tmp_path):
    """A model whose tokenizer is on the Hub, and a folder for its files."""
    text = {"hf_tokenizer_name": "someone/words", "context_length": 6, "vocab_size": 8}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}}
    config = {"embed_dim": 8, "vision_cfg": {}, "text_cfg": text}
    (tmp_path / "test-hub-words.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "test-hub-words.json")
    return "test-hub-words", tmp_path / "weights.pt"


@pytest.mark.parametrize("package", [None, "transformers"])
def test_a_missing_tokenizer_is_reported_when_it_is_needed(hub_clip, monkeypatch, package):
    """Building a model needs no tokenizer; text features can be cached."""
    name, weights = hub_clip
    if package is None:
        monkeypatch.setitem(sys.modules, "transformers", None)
    else:
        pytest.importorskip(package)
    tokenizer = build_tokenizer(name, 8, weights)
    message = "pip install transformers" if package is None else "someone/words.*tokenizer.json"
    with pytest.raises(CLIPWeightsError, match=f"'{name}'.*{message}") as error:
        tokenize(tokenizer, ["sky"], ["{}"])
    assert "\n" not in str(error.value) and str(error.value).count("; ") <= 1


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_a_tokenizer_beside_the_weights(hub_clip, pad):
    """SigLIP's padding is its end of text, that of SigLIP 2 is not."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    name, weights = hub_clip
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "photo": 4, "of": 5, "sky": 6, "blue": 7}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token=pad, eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(weights.parent)
    tokenizer, end = build_tokenizer(name, 8, weights), words[pad]
    tokens = tokenize(tokenizer, ["Sky!", "blue sky"], ["a {}", "a photo of {}"])
    assert tokens.tolist() == [
        [3, 6, 1, end, end, end],
        [3, 4, 5, 6, 1, end],
        [3, 7, 6, 1, end, end],
        [3, 4, 5, 7, 6, 1],
    ]
    with pytest.raises(VocabularyError, match="'blue blue sky'.*7 tokens.*holds 6"):
        tokenize(tokenizer, ["sky", "blue blue sky"], ["a photo of {}"])
