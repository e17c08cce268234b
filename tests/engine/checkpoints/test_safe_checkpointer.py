"""SafeCheckpointer: complete files only, the newest of them, and nothing that does not fit."""

import errno
import logging
import os

import pytest
import torch
from torch import nn

from dcp_clip.engine.checkpoints import safe_checkpointer
from dcp_clip.engine.checkpoints.safe_checkpointer import SafeCheckpointer, WeightsError


class State:
    """What a trainer gives to its checkpointer."""

    def __init__(self, value=0):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def make(folder, seed=0, width=3, **options):
    torch.manual_seed(seed)
    return SafeCheckpointer(nn.Linear(2, width), str(folder), trainer=State(seed), **options)


def weights(checkpointer):
    return checkpointer.model.weight.detach().clone()


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints of iterations 1, 3 and 5; ``last_checkpoint`` names the last one."""
    for iteration in (1, 3, 5):
        make(tmp_path, seed=iteration).save(f"model_{iteration:07d}", iteration=iteration)
    return tmp_path


def resumed(folder):
    """The iteration that a new checkpointer resumes."""
    checkpointer = make(folder)
    content = checkpointer.resume_or_load("", resume=True)
    assert checkpointer.checkpointables["trainer"].value == content["iteration"]
    assert torch.equal(weights(checkpointer), weights(make(folder, seed=content["iteration"])))
    return content["iteration"]


def test_the_last_checkpoint_is_resumed(folder):
    assert resumed(folder) == 5
    assert sorted(os.listdir(folder)) == [
        *("last_checkpoint", "model_0000001.pth", "model_0000003.pth", "model_0000005.pth")
    ]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-50])


def zero(path):
    """After a crash of the machine a file can have its size and no content."""
    path.write_bytes(bytes(path.stat().st_size))


def flip(path):
    data = bytearray(path.read_bytes())
    position = data.find(weights(make(path.parent, seed=5)).numpy().tobytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [truncate, zero, flip, os.remove, lambda p: p.write_bytes(b"")])
def test_a_damaged_checkpoint_falls_back_to_the_newest_complete_one(folder, harm, caplog):
    harm(folder / "model_0000005.pth")
    assert resumed(folder) == 3
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    message = warning.getMessage()
    assert "model_0000005.pth', which" in message and "using 'model_0000003.pth'" in message


@pytest.mark.parametrize("text", ["", "\0\0\0\0", "../model_0000001.pth", "a\nb", "absent.pth"])
def test_a_damaged_tag_falls_back_to_the_newest_checkpoint(folder, text, caplog):
    (folder / "last_checkpoint").write_text(text)
    assert resumed(folder) == 5
    assert "last_checkpoint' " in caplog.text and "using 'model_0000005.pth'" in caplog.text


def test_a_missing_tag_is_replaced_by_the_newest_checkpoint(folder, caplog):
    (folder / "last_checkpoint").unlink()
    (folder / "clip.pth").write_bytes(b"other files do not matter")
    os.utime(folder / "model_0000001.pth")  # neither does the time
    assert resumed(folder) == 5
    assert "last_checkpoint' does not exist" in caplog.text


def test_only_damaged_checkpoints_are_an_error(folder):
    for path in folder.glob("*.pth"):
        truncate(path)
    with pytest.raises(WeightsError, match="has no complete checkpoint: start a new") as raised:
        make(folder).has_checkpoint()
    assert "model_0000005.pth', which is truncated" in str(raised.value)
    (folder / "last_checkpoint").unlink()
    with pytest.raises(WeightsError, match="last_checkpoint' does not exist, and the folder"):
        make(folder).has_checkpoint()


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        assert not make(folder).has_checkpoint() and make(folder).get_checkpoint_file() == ""


def test_a_pickle_in_the_tag_is_refused(folder):
    (folder / "last_checkpoint").write_text("model.pkl")
    with pytest.raises(WeightsError, match="model.pkl' is a pickle"):
        make(folder).resume_or_load("", resume=True)


def test_another_model_is_refused_and_stays_as_it_was(folder):
    checkpointer = make(folder, width=4)
    before = weights(checkpointer)
    with pytest.raises(WeightsError, match=r"model_0000005.pth' belong to another model.*\(3, 2\)"):
        checkpointer.resume_or_load("", resume=True)
    assert torch.equal(weights(checkpointer), before)


def test_weights_alone_cannot_be_resumed(tmp_path):
    checkpointer = make(tmp_path)
    checkpointer.checkpointables.clear()
    checkpointer.save("model_0000001", iteration=1)
    with pytest.raises(WeightsError, match="no state of the trainer.*set MODEL.WEIGHTS"):
        make(tmp_path).resume_or_load("", resume=True)


def test_a_state_that_does_not_fit_is_explained(folder, monkeypatch):
    def load(self, state):
        raise ValueError("loaded state dict has a different number of parameter groups\nmore")

    monkeypatch.setattr(State, "load_state_dict", load)
    with pytest.raises(WeightsError, match="trainer in .* does not fit this training") as raised:
        make(folder).resume_or_load("", resume=True)
    assert "\n" not in str(raised.value)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    checkpointer = make(tmp_path)
    nn.init.constant_(checkpointer.model.bias, float("nan"))
    checkpointer.save("model_0000001", iteration=1)
    with pytest.raises(WeightsError, match="NaN or infinite.*bias"):
        make(tmp_path).resume_or_load("", resume=True)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_wrapped_models(tmp_path, prefix):
    source = make(tmp_path, seed=1)
    state = {f"{prefix}{k}": v for k, v in source.model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "model.pth")
    target = make(tmp_path, seed=2)
    target.load(str(tmp_path / "model.pth"), checkpointables=[])
    assert torch.equal(weights(target), weights(source))


def test_interrupted_writing_keeps_the_checkpoints(folder, monkeypatch):
    """The process can end at any moment: before, in and after each of the two files."""

    def fail(path, content):
        (folder / ".0123456789abcdef0123456789abcdef.part").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(safe_checkpointer, "write_tensors", fail)
        make(folder, seed=7).save("model_0000007", iteration=7)
    assert resumed(folder) == 5
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SafeCheckpointer, "tag_last_checkpoint", _interrupt)
        make(folder, seed=7).save("model_0000007", iteration=7)
    assert resumed(folder) == 5  # the tag is older than the file
    (folder / "last_checkpoint").unlink()
    assert resumed(folder) == 7


def _interrupt(*_):
    raise KeyboardInterrupt


def test_only_the_main_process_writes(tmp_path):
    make(tmp_path, save_to_disk=False).save("model_0000001", iteration=1)
    assert not os.listdir(tmp_path)


def test_a_query_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="has a query"):
        make(tmp_path).load("https://host.invalid/model.pth?download=1")
