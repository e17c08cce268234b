"""Files of tensors: what is wrong with a file is said in one sentence, and no file runs code."""

import errno
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dcp_clip.utils import tensor_files
from dcp_clip.utils.tensor_files import (
    TensorFileError,
    damage,
    read_tensors,
    refuse_pickle,
    write_tensors,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3)}


class Options:
    """A Python object, as Lightning keeps in its checkpoints."""


def lightning(path, **content):
    torch.save({"pytorch-lightning_version": "2.0", "state_dict": TENSORS, **content}, path)


def truncated(path):
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-100])


def with_flipped_byte(path):
    torch.save(TENSORS, path)
    data = bytearray(path.read_bytes())
    position = data.find(TENSORS["a"].numpy().tobytes())
    data[position + 4] ^= 1
    path.write_bytes(data)


def torchscript(path):
    with zipfile.ZipFile(path, "w") as file:
        for name in ("m/data.pkl", "m/constants.pkl", "m/version", "m/code/x.py"):
            file.writestr(name, b"2")


def compressed(path):
    torch.save(TENSORS, path)
    with zipfile.ZipFile(path) as source:
        content = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in content.items():
            file.writestr(name, data)


WRONG = {
    "a folder": lambda path: path.mkdir(),
    "does not exist": lambda path: None,
    "is empty": lambda path: path.touch(),
    "Git LFS pointer.*git lfs pull": lambda path: path.write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    ),
    "a web page": lambda path: path.write_text("<!DOCTYPE html><html>404</html>"),
    "a text file": lambda path: path.write_text("sky\nträd\n" * 300),
    "checkpoint of Lightning": lambda path: lightning(path, hyper_parameters=Options()),
    "Python object .*Options": lambda path: torch.save({"a": Options()}, path),
    "truncated": truncated,
    "no regular file": os.mkfifo,
    "no readable file of PyTorch": lambda path: path.write_bytes(b"\x00\x01\xff" * 99),
    "a TorchScript program": torchscript,
    "compressed data": compressed,
}


@pytest.mark.parametrize("reason", WRONG)
def test_wrong_files_are_explained_in_one_sentence(tmp_path, reason):
    path = tmp_path / "model.pth"
    WRONG[reason](path)
    with pytest.raises(TensorFileError, match=reason) as raised:
        read_tensors(path)
    message = str(raised.value)
    assert str(path) in message and "\n" not in message and message.endswith(".")
    assert "weights_only" not in message


def test_truncated_safetensors(tmp_path):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(TENSORS, path)
    assert torch.equal(read_tensors(path)["a"], TENSORS["a"])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(TensorFileError, match="truncated"):
        read_tensors(path)


@pytest.mark.parametrize("name", ["a.pkl", "a.PKL", "a.pickle", "a.pkl?x=1", "https://h/a.pkl#x"])
def test_pickles_are_refused_by_their_name(name):
    with pytest.raises(TensorFileError, match="is a pickle"):
        refuse_pickle(name)


def test_other_names_are_no_pickles():
    for name in ("a.pth", "pkl", "a.pkl.pth", "folder.pkl/a.pth"):
        refuse_pickle(name)


def test_a_pickle_of_any_name_is_not_unpickled(tmp_path):
    class Touch:
        def __reduce__(self):
            return Path.touch, (tmp_path / "marker",)

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / "model.pth"
        path.write_bytes(pickle.dumps(Touch(), protocol))
        with pytest.raises(TensorFileError):
            read_tensors(path)
    assert not (tmp_path / "marker").exists()


def test_damage(tmp_path):
    path = tmp_path / "model.pth"
    assert damage(path) == "does not exist"
    path.touch()
    assert damage(path) == "is empty"
    write_tensors(path, TENSORS)
    assert damage(path) == ""
    truncated(path)
    assert "truncated" in damage(path)
    with_flipped_byte(path)
    assert "damaged" in damage(path)


def test_written_tensors_are_read_again(tmp_path):
    path = tmp_path / "model.pth"
    write_tensors(path, {**TENSORS, "iteration": 3})
    for mmap in (False, True):
        content = read_tensors(path, mmap)
        assert torch.equal(content["a"], TENSORS["a"]) and content["iteration"] == 3
    assert os.listdir(tmp_path) == ["model.pth"]


class FullDisk:
    """Wraps a file; writing fails after some bytes, as on a full disk."""

    def __init__(self, file, room=200):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)


@pytest.mark.parametrize("room", [0, 100, 1000])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, room):
    path = tmp_path / "model.pth"
    write_tensors(path, TENSORS)
    before, recorder = path.read_bytes(), tensor_files._Recorder
    monkeypatch.setattr(
        tensor_files, "_Recorder", lambda file, errors: recorder(FullDisk(file, room), errors)
    )
    with pytest.raises(OSError, match=r"model\.pth' cannot be written: No space left") as raised:
        write_tensors(path, {"a": torch.zeros(10_000)})
    assert raised.value.errno == errno.ENOSPC
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.pth"]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(OSError, match="absent/model.pth' cannot be written: No such file"):
        write_tensors(tmp_path / "absent" / "model.pth", TENSORS)


def test_errors_can_be_sent_to_other_processes():
    error = pickle.loads(pickle.dumps(TensorFileError("a.pth", "is empty")))
    assert str(error) == "'a.pth' is empty." and error.reason == "is empty"
