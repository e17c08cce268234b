"""Text features on the disk: read again, never wrong, and no harm where that fails."""

import logging

import pytest
import torch

from dcp_clip.vocabulary import Vocabulary

NAMES = Vocabulary(["sky", "tall tree", ["car", "automobile", "motor car"], "Straße"])


def test_disk_hit(make_encoder, count_prompts, tmp_path):
    first = make_encoder().encode_vocabulary(NAMES)
    assert len(list((tmp_path / "text").iterdir())) == 1
    encoder = make_encoder()
    sizes = count_prompts(encoder)
    again = encoder.encode_vocabulary(NAMES)
    assert not sizes
    assert torch.equal(again.embeddings, first.embeddings) and torch.equal(again.rows, first.rows)
    assert not again.embeddings.requires_grad


def test_without_a_folder_nothing_is_written(make_encoder, home):
    before = set(home.rglob("*"))
    make_encoder(cache="").encode_vocabulary(NAMES)
    assert set(home.rglob("*")) == before


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "dict", "list", "rows", "truncated"])
def test_corrupt_cache_files_are_survived(make_encoder, tmp_path, caplog, content):
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
    assert torch.equal(features.rows, expected.rows)
    assert str(path) in caplog.text
    caplog.clear()
    make_encoder().encode_vocabulary(NAMES)
    assert str(path) not in caplog.text  # it was replaced


def test_a_cache_folder_that_cannot_be_written(make_encoder, tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    encoder = make_encoder(cache="file/text")
    with caplog.at_level(logging.WARNING):
        assert len(encoder.encode_vocabulary(NAMES).embeddings) == 4
    assert str(tmp_path / "file" / "text") in caplog.text
