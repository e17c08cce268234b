"""Files in the folder of the text cache that another program or person put there."""

import errno
import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from helpers.text_features import random_features, read_from

from dcp_clip.modeling.clip import text_cache
from dcp_clip.modeling.clip.text_cache import write_features
from dcp_clip.vocabulary import Vocabulary

NAMES = Vocabulary(["sky", "tall tree"])


class Touch:
    """Creates the file `path` when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def compressed(path):
    """A few kilobytes that stand for many megabytes."""
    buffer = io.BytesIO()
    torch.save({"embeddings": torch.zeros(1 << 23), "rows": torch.zeros(1)}, buffer)
    with (
        zipfile.ZipFile(buffer) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for name in source.namelist():
            file.writestr(name, source.read(name))


def sparse_file(path):
    """A file of 2 TB that takes no room on the disk."""
    with open(path, "wb") as file:
        file.truncate(1 << 41)


HOSTILE = {
    "empty": Path.touch,
    "text": lambda path: path.write_text("sky\n" * 99),
    "zeros": lambda path: path.write_bytes(bytes(9999)),
    "truncated": lambda path: path.write_bytes(path.with_name("good").read_bytes()[:-99]),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Touch(path.with_name("marker")))),
    "code": lambda path: torch.save({"embeddings": Touch(path.with_name("marker"))}, path),
    "compressed": compressed,
    "huge": sparse_file,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "link to nothing": lambda path: path.symlink_to("absent"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a file of the user": lambda path: path.symlink_to(path.with_name("mine")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_ignored_and_replaced(tmp_path, caplog, kind):
    """It is not used, runs no code, blocks nothing, and no file outside the cache is changed."""
    path, mine = tmp_path / f"{0:064x}.pt", tmp_path / "mine"
    mine.write_bytes(b"a file of the user")
    write_features(tmp_path / "good", random_features(0))
    if kind in ("empty", "text", "zeros", "truncated"):
        write_features(path, random_features(0))
        path.write_bytes(b"")
    HOSTILE[kind](path)
    before = {name: name.read_bytes() for name in (mine, tmp_path / "good")}
    assert read_from(path) is None
    silent = kind in ("link to nothing", "link to itself")  # there is no file
    assert (str(path) in caplog.text) != silent
    assert caplog.text.count("\n") <= 1 and "weights_only" not in caplog.text
    write_features(path, random_features(0))
    if kind == "folder":
        assert read_from(path) is None and path.is_dir()
        assert "cannot be cached" in caplog.text
    else:
        assert torch.equal(read_from(path).embeddings, random_features(0).embeddings)
        assert not path.is_symlink()
    assert all(name.read_bytes() == data for name, data in before.items())
    assert not (tmp_path / "marker").exists()


def test_folders_and_links_do_not_break_the_bound(tmp_path, monkeypatch, caplog):
    """They are no files of the cache: a link is removed itself, and a folder stays."""
    outside = tmp_path / "outside"
    outside.write_bytes(b"x" * 99_999)
    folder = tmp_path / "text"
    (folder / f"{1:064x}.pt").mkdir(parents=True)
    (folder / f"{2:064x}.pt").symlink_to(outside)
    write_features(folder / f"{3:064x}.pt", random_features(3))
    size = (folder / f"{3:064x}.pt").stat().st_size
    monkeypatch.setattr(text_cache, "MAX_FOLDER_BYTES", 2 * size)
    for i in range(4, 9):
        write_features(folder / f"{i:064x}.pt", random_features(i))
    kept = sorted(path.name for path in folder.iterdir() if path.is_file())
    assert kept == [f"{7:064x}.pt", f"{8:064x}.pt"] and outside.exists() and not caplog.text


def test_a_file_without_permission_is_encoded_again(make_encoder, tmp_path, caplog, monkeypatch):
    expected = make_encoder().encode_vocabulary(NAMES)
    (path,) = (tmp_path / "text").iterdir()
    true_open = Path.open

    def refuse(self, *args, **kwargs):  # the mode of a file does not matter to root
        if self == path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
        return true_open(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", refuse)
    features = make_encoder().encode_vocabulary(NAMES)
    assert torch.equal(features.embeddings, expected.embeddings)
    assert "Permission denied" in caplog.text and str(path) in caplog.text
