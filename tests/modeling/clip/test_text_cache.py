"""Text features on disk: they are read again, and errors of files do no harm."""

import hashlib
import logging

import pytest
import torch

from dcp_clip.vocabulary import Vocabulary

KEY = "MODEL.DCP_CLIP.VOCABULARY."
NAMES = Vocabulary(["sky", "tall tree", ["car", "automobile", "motor car"], "Straße"])


def test_a_file_is_read_instead_of_encoding(make_encoder, count_prompts, tmp_path):
    first = make_encoder().encode_vocabulary(NAMES)
    assert len(list((tmp_path / "text").iterdir())) == 1
    encoder = make_encoder()
    sizes = count_prompts(encoder)
    again = encoder.encode_vocabulary(NAMES)
    assert not sizes
    assert torch.equal(again.embeddings, first.embeddings) and torch.equal(
        again.category_rows, first.category_rows
    )
    assert not again.embeddings.requires_grad


def test_without_a_folder_nothing_is_written(make_encoder, home):
    before = set(home.rglob("*"))
    make_encoder(cache="").encode_vocabulary(NAMES)
    assert set(home.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "dict", "list", "rows", "truncated"])
def test_a_broken_file_is_replaced(make_encoder, tmp_path, caplog, content):
    expected = make_encoder().encode_vocabulary(NAMES)
    (path,) = (tmp_path / "text").iterdir()
    if content == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        bad_rows = {"embeddings": expected.embeddings[:2], "rows": torch.full((4, 1), 9)}
        torch.save({"dict": {}, "list": [1], "rows": bad_rows}[content], path)
    with caplog.at_level(logging.WARNING):
        features = make_encoder().encode_vocabulary(NAMES)
    assert torch.equal(features.embeddings, expected.embeddings)
    assert torch.equal(features.category_rows, expected.category_rows)
    assert str(path) in caplog.text
    caplog.clear()
    make_encoder().encode_vocabulary(NAMES)
    assert str(path) not in caplog.text  # the file was replaced


def test_a_folder_that_cannot_be_written_gives_a_warning(make_encoder, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    encoder = make_encoder(cache="file/text")
    with caplog.at_level(logging.WARNING):
        assert len(encoder.encode_vocabulary(NAMES).embeddings) == 4
    assert str(tmp_path / "file" / "text") in caplog.text


@pytest.mark.parametrize(
    "other",
    [
        {"vocabulary": Vocabulary(["sky", "tall tree", ["car", "automobile"], "Straße"])},
        {"vocabulary": Vocabulary(NAMES.synonyms[::-1])},
        {"opts": {KEY + "TEMPLATES": "vild14"}},
        {"opts": {KEY + "SYNONYM_POOLING": "max"}},
    ],
)
def test_different_settings_have_different_cache_keys(make_encoder, other):
    make_encoder().encode_vocabulary(NAMES)
    opts, vocabulary = other.get("opts"), other.get("vocabulary", NAMES)
    shared = make_encoder(opts=opts).encode_vocabulary(vocabulary)
    alone = make_encoder(opts=opts, cache="").encode_vocabulary(vocabulary)
    assert torch.equal(shared.embeddings, alone.embeddings)
    assert torch.equal(shared.category_rows, alone.category_rows)


def test_the_key_of_cache_files_has_not_changed(make_encoder, tmp_path):
    """A change of the key makes the files of earlier versions useless, so it must be intended."""
    encoder = make_encoder()
    encoder.encode_vocabulary(NAMES)
    digest = hashlib.sha256()
    for name, tensor in encoder.text.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    kind = "cut at the end of text, all prompts of a name in a chunk"
    parts = [kind, "test-convnext", digest.hexdigest(), *encoder.templates]
    parts += ["mean", hashlib.sha256(repr(NAMES.synonyms).encode()).hexdigest()]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    assert [path.name for path in (tmp_path / "text").iterdir()] == [f"{key}.pt"]
