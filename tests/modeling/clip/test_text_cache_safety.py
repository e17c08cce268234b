"""Text features on disk: wrong files are never used, and the disk never ends a run."""

import errno
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.text_features import random_features, read_from

from dcp_clip.modeling.clip import text_cache
from dcp_clip.modeling.clip.text_cache import write_features
from dcp_clip.utils import atomic_files
from dcp_clip.vocabulary import Vocabulary

NAMES = Vocabulary(["sky", "tall tree", ["car", "automobile", "motor car"], "Straße"])


def _flipped_bit(data):
    embeddings = data["embeddings"].clone()
    embeddings[0, 0] += 1e-5  # still of length 1, within rounding
    return {**data, "embeddings": embeddings}


CHANGES = {
    "nan": lambda data: {**data, "embeddings": data["embeddings"] * torch.nan},
    "infinite": lambda data: {**data, "embeddings": data["embeddings"] / 0},
    "one nan": lambda data: {
        **data,
        "embeddings": data["embeddings"].index_fill(0, torch.tensor([2]), torch.nan),
    },
    "zeros": lambda data: {**data, "embeddings": data["embeddings"] * 0},
    "not normalised": lambda data: {**data, "embeddings": data["embeddings"] * 3},
    "narrow": lambda data: {
        **data,
        "embeddings": torch.nn.functional.normalize(data["embeddings"][:, :8], dim=-1),
    },
    "double": lambda data: {**data, "embeddings": data["embeddings"].double()},
    "half": lambda data: {**data, "embeddings": data["embeddings"].half()},
    "integers": lambda data: {**data, "embeddings": data["embeddings"].long()},
    "one dimension": lambda data: {**data, "embeddings": data["embeddings"][0]},
    "no dimension": lambda data: {**data, "embeddings": torch.tensor(1.0)},
    "more rows": lambda data: {**data, "embeddings": data["embeddings"].repeat(2, 1)},
    "rows in another order": lambda data: {**data, "rows": data["rows"].flip(0)},
    "negative rows": lambda data: {**data, "rows": data["rows"] - 1},
    "rows as floats": lambda data: {**data, "rows": data["rows"].float()},
    "lists": lambda data: {key: [1.0] for key in data},
    "a number": lambda data: 1,
    "a parameter": lambda data: {**data, "embeddings": torch.nn.Parameter(data["embeddings"])},
    "sparse": lambda data: {**data, "embeddings": data["embeddings"].to_sparse()},
    "complex": lambda data: {**data, "embeddings": data["embeddings"].to(torch.complex64)},
    "without memory": lambda data: {**data, "embeddings": data["embeddings"].to("meta")},
    "other checksum": lambda data: {**data, "sha256": torch.zeros(64)},
    "flipped bit": _flipped_bit,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("checksum", [True, False])
def test_a_well_formed_file_with_wrong_content_is_ignored(tmp_path, caplog, change, checksum):
    if change in ("flipped bit", "other checksum") and not checksum:
        pytest.skip("files of earlier versions have no checksum")
    path = tmp_path / "file.pt"
    write_features(path, random_features(0))
    data = torch.load(path, weights_only=True)
    if not checksum:
        del data["sha256"]
    torch.save(data, path)
    assert torch.equal(read_from(path).embeddings, random_features(0).embeddings)
    torch.save(CHANGES[change](data), path)
    assert read_from(path) is None
    assert str(path) in caplog.text and caplog.text.count("\n") == 1


def test_a_file_with_nan_is_replaced(make_encoder, tmp_path, caplog):
    expected = make_encoder().encode_vocabulary(NAMES)
    (path,) = (tmp_path / "text").iterdir()
    torch.save(CHANGES["one nan"](torch.load(path, weights_only=True)), path)
    with caplog.at_level(logging.WARNING):
        features = make_encoder().encode_vocabulary(NAMES)
    assert torch.equal(features.embeddings, expected.embeddings)
    assert str(path) in caplog.text
    caplog.clear()
    make_encoder().encode_vocabulary(NAMES)
    assert not caplog.text


def test_the_width_of_the_tower_is_known(make_encoder):
    encoder = make_encoder(cache="")
    assert encoder.text.output_dim == encoder.encode_vocabulary(NAMES).embeddings.shape[1]


def test_the_rows_of_synonyms_are_checked(make_encoder, tmp_path, caplog):
    opts = {"MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING": "max"}
    expected = make_encoder(opts=opts).encode_vocabulary(NAMES)
    make_encoder(opts=opts).encode_vocabulary(NAMES)
    assert not caplog.text
    (path,) = (tmp_path / "text").iterdir()
    data = torch.load(path, weights_only=True)
    data["rows"][2] = data["rows"][3]
    torch.save(data, path)
    features = make_encoder(opts=opts).encode_vocabulary(NAMES)
    assert torch.equal(features.category_rows, expected.category_rows)
    assert "other names" in caplog.text


def _full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_full_disk_is_one_warning(make_encoder, tmp_path, caplog, monkeypatch, function):
    monkeypatch.setattr(atomic_files.os, function, _full_disk)
    encoder = make_encoder()
    for i in range(3):
        assert len(encoder.encode_vocabulary(Vocabulary([f"name {i}"])).embeddings) == 1
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "No space left on device" in caplog.text and str(tmp_path / "text") in caplog.text
    assert not list((tmp_path / "text").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_disk_that_fills_while_the_file_is_written(make_encoder, caplog, monkeypatch):
    """torch.save into such a file is a RuntimeError."""
    monkeypatch.setattr(
        atomic_files, "open", lambda *args, **kwargs: open("/dev/full", "wb"), raising=False
    )
    assert len(make_encoder().encode_vocabulary(NAMES).embeddings) == 4
    assert "No space left on device" in caplog.text and len(caplog.records) == 1


def test_without_a_home_directory_nothing_is_cached(make_encoder, caplog, monkeypatch):
    def fail(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(text_cache.Path, "expanduser", fail)
    assert len(make_encoder().encode_vocabulary(NAMES).embeddings) == 4
    assert "home directory" in caplog.text


def test_the_files_used_least_recently_are_removed(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i:064x}.pt" for i in range(6)]
    write_features(paths[0], random_features(0))
    monkeypatch.setattr(text_cache, "MAX_FOLDER_BYTES", 4 * paths[0].stat().st_size)
    other = tmp_path / "model.pt"
    other.write_bytes(b"a file of the user" * 10_000)
    for i in range(6):
        write_features(paths[i], random_features(i))
        for age, path in enumerate(reversed(paths[: i + 1])):
            if path.exists():
                os.utime(path, (time.time() - 60 * (age + 1),) * 2)
        again = read_from(paths[0])
        assert torch.equal(again.embeddings, random_features(0).embeddings)  # used again
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in (other, paths[0], *paths[3:])
    )


def test_features_larger_than_the_folder_are_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(text_cache, "MAX_FOLDER_BYTES", 100)
    write_features(tmp_path / f"{0:064x}.pt", random_features(0))
    assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    old, new = tmp_path / f".{1:032x}.part", tmp_path / f".{2:032x}.part"
    for path in (old, new):
        path.write_bytes(b"half a file")
    os.utime(old, (time.time() - 7200,) * 2)
    write_features(tmp_path / f"{0:064x}.pt", random_features(0))
    assert not old.exists() and new.exists()  # another process may be writing the new one


def test_features_with_nan_are_not_written(make_encoder, tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        next(encoder.text.parameters()).fill_(torch.nan)
    encoder.encode_vocabulary(NAMES)
    assert not (tmp_path / "text").exists()


def test_a_tower_that_is_trained_leaves_no_files(make_encoder, tmp_path):
    encoder = make_encoder().requires_grad_(True)
    for _ in range(3):
        encoder.train()
        with torch.no_grad():
            next(encoder.text.parameters()).mul_(1.01)
        encoder.eval()  # an evaluation during the training
        assert not encoder.encode_vocabulary(NAMES).embeddings.requires_grad
    assert not (tmp_path / "text").exists()


def test_a_trained_tower_is_cached_by_other_programs(make_encoder, tmp_path):
    make_encoder().requires_grad_(True).eval().encode_vocabulary(NAMES)
    assert len(list((tmp_path / "text").iterdir())) == 1


_PROCESS = """
import random
import sys
from pathlib import Path
import torch
from dcp_clip.modeling.clip import text_cache
from dcp_clip.structures import TextFeatures

def features(seed):
    embeddings = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    embeddings = torch.nn.functional.normalize(embeddings, dim=-1)
    return TextFeatures(embeddings, torch.arange(4)[:, None])

folder, generator = Path(sys.argv[1]), random.Random(sys.argv[2])
text_cache.MAX_FOLDER_BYTES = 10_000  # a few files, so that the processes remove each other's
read = 0
for step in range(300):
    seed = generator.randrange(7)
    path, expected = folder / f"{seed:064x}.pt", features(seed)
    found = text_cache.read_features(path, expected.category_rows, 64, torch.device("cpu"))
    if found is None:
        text_cache.write_features(path, expected)
    else:
        read += 1
        assert torch.equal(found.embeddings, expected.embeddings)
print(read)
"""


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_file_that_is_removed_while_it_is_read(tmp_path, caplog, monkeypatch, comes_back):
    """Another process removes it between the first look and the reading, and may write it again."""
    path, features = tmp_path / "a.pt", random_features(4, 64)
    write_features(path, features)
    read = text_cache.read_tensors

    def remove_and_read(path):
        path.unlink()
        try:
            return read(path)
        finally:
            if comes_back:
                write_features(path, features)
                os.utime(path, (1, 1))  # another time, also if it gets the same place on the disk

    monkeypatch.setattr(text_cache, "read_tensors", remove_and_read)
    found = text_cache.read_features(path, features.category_rows, 64, torch.device("cpu"))
    assert found is None and not caplog.records


def test_two_processes_share_a_folder(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, tmp_path, seed],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in ("a", "b")
    ]
    for process in processes:
        out, err = process.communicate()
        assert process.returncode == 0 and "cannot be" not in err, err
        assert int(out.split()[-1]) > 0
    assert not list(tmp_path.glob(".*"))
