"""The text features of an exported model are those of the model."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dcp_clip.runtime.text import clean_text
from dcp_clip.vocabulary import Vocabulary, VocabularyError


def test_names_have_the_features_of_the_model(model, onnx, names):
    vocabulary = Vocabulary.parse([*names, ["car", "auto mobile", "Wagen"], "a" * 20])
    expected, features = model.text_encoder.encode_vocabulary(vocabulary), onnx._text(vocabulary)
    np.testing.assert_allclose(features.embeddings, expected.embeddings, atol=2e-6)
    np.testing.assert_array_equal(features.category_rows, expected.category_rows)
    with pytest.raises(VocabularyError, match="needs .* tokens"):
        onnx.set_vocabulary(["word " * 60, "sky"])
    assert onnx.vocabulary == Vocabulary(names)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_synonyms_are_pooled_as_in_the_model(model, onnx, monkeypatch, pooling):
    vocabulary = Vocabulary([["car", "automobile", "vehicle"], "sky", ["tree", "oak"]])
    monkeypatch.setattr(model.text_encoder, "synonym_pooling", pooling)
    monkeypatch.setitem(onnx.folder.settings, "synonym_pooling", pooling)
    expected, features = (
        model.text_encoder.encode_vocabulary(vocabulary),
        onnx._text._encode(vocabulary),
    )
    assert features.embeddings.dtype == np.float32
    np.testing.assert_allclose(features.embeddings, expected.embeddings, atol=2e-6)
    np.testing.assert_array_equal(features.category_rows, expected.category_rows)


# A vocabulary refuses control characters and halves of surrogate pairs. Libraries of different age
# disagree on characters that were not assigned yet.
@given(
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Cn", "Co"]), max_size=20),
)
@example("<b>İ&lt;ﬁ</b>  ’s")
@example("caf&EACUTE; &amp;amp;amp;EACUTE;")
@example("a\u0345b 'ſ Ϊ\u0301")
def test_texts_are_tokenized_as_by_open_clip(model, onnx, text):
    tokenizer = model.text_encoder.tokenizer
    expected = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
    assert clean_text(text) == tokenizer.clean_fn(text)
    assert onnx._text._tokenizer.encode(clean_text(text)).ids == expected


def test_many_names_are_encoded_in_parts(onnx, monkeypatch):
    """So the memory does not grow with the number of prompts."""
    vocabulary = Vocabulary([[f"name {i}", f"the other name {i}"] for i in range(40)])
    expected, sizes = onnx._text._encode(vocabulary), []
    encode = onnx._text._encode_names
    monkeypatch.setattr("dcp_clip.runtime.text._PROMPTS_PER_PART", 30)
    monkeypatch.setattr(
        onnx._text, "_encode_names", lambda names: sizes.append(len(names)) or encode(names)
    )
    features = onnx._text._encode(vocabulary)
    assert max(sizes) * len(onnx.folder["templates"]) <= 30 and sum(sizes) == 80
    np.testing.assert_allclose(features.embeddings, expected.embeddings, atol=2e-6)
    np.testing.assert_array_equal(features.category_rows, expected.category_rows)


def test_a_name_of_several_categories_has_one_feature(onnx):
    """Else rounding would decide between the categories."""
    long = [f"a very long name of a thing {i}" for i in range(40)]
    text = onnx._text(Vocabulary(["sky", *long, ["sky", "heaven"], ["sky", "air"]]))
    first, *others = text.embeddings[text.category_rows[[0, 41, 42], 0]]
    for other in others:
        np.testing.assert_array_equal(other, first)
