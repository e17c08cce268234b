"""TextEncoder: agreement with open_clip, any text, and synonyms."""

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch.nn import functional as F

from dcp_clip.modeling import TextEncoder
from dcp_clip.modeling.clip.loading import load_clip
from dcp_clip.modeling.clip.tokenizer import PrefixTokenizer
from dcp_clip.vocabulary import Vocabulary

KEY = "MODEL.DCP_CLIP.VOCABULARY."
CLIPS = ["test-convnext", "test-vit-14-quickgelu"]
NAMES = Vocabulary(["sky", "tall tree", ["car", "automobile", "motor car"], "Straße"])


@torch.no_grad()
@pytest.mark.parametrize("clip", [*CLIPS, "dcp-tiny-cnn"])
def test_features_are_those_of_encode_text(make_cfg, randomize, clip):
    model = randomize(load_clip(make_cfg(clip)))
    tokenizer = PrefixTokenizer(SimpleTokenizer(context_length=32), model.text.vocab_size)
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
def test_unit_length_features_of_the_templates_are_averaged(make_encoder, tmp_path):
    path = tmp_path / "templates.txt"
    path.write_text("a {}.\nthe small {}.\n")
    encoder = make_encoder(opts={KEY + "TEMPLATES": str(path)})
    features = encoder.encode_vocabulary(Vocabulary(["sky", "car"])).embeddings
    prompts = ["a sky.", "the small sky.", "a car.", "the small car."]
    each = F.normalize(encoder(encoder.tokenizer(prompts)), dim=-1).view(2, 2, -1)
    torch.testing.assert_close(features, F.normalize(each.mean(1), dim=-1))


@torch.no_grad()
def test_synonym_pooling(make_encoder):
    single = make_encoder().encode_vocabulary(
        Vocabulary(["sky", "tall tree", "car", "automobile", "motor car", "Straße"])
    )
    mean = make_encoder(opts={KEY + "SYNONYM_POOLING": "mean"}).encode_vocabulary(NAMES)
    assert mean.num_categories == 4 and mean.category_rows.tolist() == [[0], [1], [2], [3]]
    expected = F.normalize(single.embeddings[2:5].mean(0), dim=0)
    torch.testing.assert_close(mean.embeddings[2], expected)
    torch.testing.assert_close(mean.embeddings[[0, 1, 3]], single.embeddings[[0, 1, 5]])
    best = make_encoder(opts={KEY + "SYNONYM_POOLING": "max"}).encode_vocabulary(NAMES)
    assert best.category_rows.tolist() == [[0, 0, 0], [1, 1, 1], [2, 3, 4], [5, 5, 5]]
    torch.testing.assert_close(best.embeddings, single.embeddings)
    first = make_encoder(opts={KEY + "SYNONYM_POOLING": "first"}).encode_vocabulary(NAMES)
    assert first.category_rows.tolist() == [[0], [1], [2], [3]]
    torch.testing.assert_close(first.embeddings, single.embeddings[[0, 1, 2, 5]])


def test_unknown_synonym_pooling_is_refused(make_cfg):
    with pytest.raises(ValueError, match="SYNONYM_POOLING is 'sum'"):
        TextEncoder(make_cfg(opts={KEY + "SYNONYM_POOLING": "sum"}))


@pytest.mark.parametrize("name", ["x" * 1000, "very " * 40 + "tall tree"])
def test_the_error_for_a_long_name_quotes_it(make_encoder, name):
    with pytest.raises(ValueError, match=f"'{name[:30]}.*characters.*holds 32; shorten") as error:
        make_encoder().encode_vocabulary(Vocabulary(["sky", name]))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_a_name_that_fills_the_context_is_encoded(make_encoder):
    encoder = make_encoder()
    template = encoder.templates[0].replace("{}", "")
    free = 32 - len(encoder.tokenizer.encode(template)) - 2
    name = " ".join("1" * free)  # each digit is a token
    assert encoder.encode_vocabulary(Vocabulary([name])).embeddings.isfinite().all()
    with pytest.raises(ValueError, match="shorten"):
        encoder.encode_vocabulary(Vocabulary([name + " 1"]))
