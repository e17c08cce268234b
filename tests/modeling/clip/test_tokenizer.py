"""The tokenizer with few tokens encodes any text."""

import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcp_clip.modeling.clip.tokenizer import PrefixTokenizer

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


_TOKENIZERS = {}


def _tokenizer(vocab_size):
    if vocab_size not in _TOKENIZERS:  # each takes a second
        _TOKENIZERS[vocab_size] = PrefixTokenizer(vocab_size, context_length=32)
    return _TOKENIZERS[vocab_size]


@FEW
@given(text=st.text(max_size=30))
def test_with_all_tokens_it_is_the_tokenizer_of_open_clip(text):
    open_clips = open_clip.tokenizer._tokenizer
    assert _tokenizer(49408).encode(text) == open_clips.encode(text)


def test_fewer_tokens_than_bytes_are_refused():
    with pytest.raises(ValueError, match="300"):
        PrefixTokenizer(300)
