"""Copies of checkpoints on a file system that only iopath knows."""

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import NativePathHandler, PathHandler

from dcp_clip.config import setup_cfg
from dcp_clip.engine.checkpoints.remote_copy import CopyError
from dcp_clip.engine.checkpoints.training_folder import ResumeError, training_folder


class Store(PathHandler):
    """Files below a folder, with URLs "store://". It counts renamings and can be full."""

    def __init__(self, root):
        super().__init__()
        self.root, self.moved, self.full = str(root), 0, False
        self.files = NativePathHandler()

    def _get_supported_prefixes(self):
        return ["store://"]

    def _path(self, url):
        return url.replace("store://", f"{self.root}/")

    def _copy_from_local(self, local_path, dst_path, overwrite=False, **kwargs):
        if self.full:
            raise OSError("No space left in the store.")
        return self.files._copy_from_local(local_path, self._path(dst_path), overwrite)

    def _mv(self, src_path, dst_path, **kwargs):
        self.moved += 1
        return self.files._mv(self._path(src_path), self._path(dst_path))

    def _open(self, path, mode="r", **kwargs):
        return self.files._open(self._path(path), mode)

    def _exists(self, path, **kwargs):
        return self.files._exists(self._path(path))

    def _mkdirs(self, path, **kwargs):
        self.files._mkdirs(self._path(path))

    def _isdir(self, path, **kwargs):
        return self.files._isdir(self._path(path))

    def _ls(self, path, **kwargs):
        return self.files._ls(self._path(path))

    def _rm(self, path, **kwargs):
        self.files._rm(self._path(path))


class ObjectStore(Store):
    """It cannot rename files."""

    def _mv(self, src_path, dst_path, **kwargs):
        raise NotImplementedError


@pytest.fixture
def store(request, tmp_path):
    handler = getattr(request, "param", Store)(tmp_path / "store")
    PathManager.register_handler(handler)
    yield handler
    for prefix in handler._get_supported_prefixes():
        del PathManager._path_handlers[prefix]


OPTIONS = {"SOLVER.CHECKPOINT_COPY": "store://bucket/run"}


def train(run, cfg, resume=False, stop_at=None):
    with training_folder(cfg, resume):
        return run(cfg, resume, stop_at)


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("store", [Store, ObjectStore], indirect=True)
def test_a_training_continues_on_another_machine(config, run, store, tmp_path):
    """OUTPUT_DIR is lost; later, the copy is older than OUTPUT_DIR."""
    expected = run(config("undisturbed")).model.state_dict()
    train(run, config("a", **OPTIONS), stop_at=5)
    remote = tmp_path / "store" / "bucket" / "run"
    assert names(remote) == ["last_checkpoint", "model_0000002.pth"]
    shutil.rmtree(tmp_path / "a")
    kept = tmp_path / "kept"
    shutil.copytree(remote, kept)
    resumed = train(run, config("b", **OPTIONS), resume=True)
    assert resumed.start_iter == 3
    assert names(remote) == [*names(kept), "model_0000005.pth", "model_final.pth"]
    for name, value in torch.load(remote / "model_final.pth")["model"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not [name for name in names(remote) if name.endswith(".part")]
    assert bool(store.moved) == (type(store) is Store)
    shutil.rmtree(remote)
    shutil.copytree(kept, remote)
    with training_folder(config("b", **OPTIONS), resume=True):
        assert (remote / "last_checkpoint").read_text() == "model_final.pth"


@pytest.fixture
def started(config, run, store, tmp_path):
    """The config of a training that was stopped, and the folder of its copies."""
    train(run, config("a", **OPTIONS), stop_at=4)
    return config("a", **OPTIONS), tmp_path / "store" / "bucket" / "run"


def test_damaged_and_foreign_copies(started, config, tmp_path):
    cfg, remote = started
    with pytest.raises(ResumeError, match="CHECKPOINT_COPY 'store://bucket/run' has the checkpoi"):
        with training_folder(config("new", **OPTIONS), resume=False):
            pass
    path = remote / "model_0000002.pth"
    path.write_bytes(path.read_bytes()[:-100])
    new = config("new", **OPTIONS)
    with pytest.raises(CopyError, match="'store://bucket/run/model_0000002.pth' is truncated"):
        with training_folder(new, resume=True):
            pass
    assert not list(Path(new.OUTPUT_DIR).glob("*.p*"))
    with training_folder(cfg, resume=True):  # OUTPUT_DIR has a complete file of this name
        pass
    (remote / "last_checkpoint").write_text("../x.pth")
    with pytest.raises(CopyError, match="does not contain the name of a checkpoint"):
        with training_folder(cfg, resume=True):
            pass


def test_a_tag_that_is_empty_names_the_newest_checkpoint(started, config):
    """The process was killed when it had opened the file and not written it."""
    cfg, remote = started
    (remote / "last_checkpoint").write_text("")
    shutil.copy(remote / "model_0000002.pth", remote / "model_0000001.pth")
    new = config("new", **OPTIONS)
    with training_folder(new, resume=True):
        assert (Path(new.OUTPUT_DIR) / "last_checkpoint").read_text() == "model_0000002.pth"


def test_a_longer_training_elsewhere_is_newer_than_the_same_name_here(config, run, store, tmp_path):
    """Both have a model_final.pth; once, it is the last checkpoint here, and once an older file."""
    train(run, config("a", **OPTIONS, **{"SOLVER.MAX_ITER": 3}))
    shutil.copytree(tmp_path / "a", tmp_path / "stale")
    longer = {**OPTIONS, "SOLVER.MAX_ITER": 6}
    train(run, config("a", **longer), resume=True)
    remote = tmp_path / "store" / "bucket" / "run"
    shutil.copytree(tmp_path / "stale", tmp_path / "other")
    shutil.copy(remote / "model_0000005.pth", tmp_path / "other")  # as old as the final one
    (tmp_path / "other" / "last_checkpoint").write_text("model_0000002.pth")
    for folder in ("stale", "other"):
        with training_folder(config(folder, **longer), resume=True):
            pass
        assert (tmp_path / folder / "last_checkpoint").read_text() == "model_final.pth"
        own = torch.load(tmp_path / folder / "model_final.pth", weights_only=True)
        assert own["iteration"] == 5
        assert (remote / "last_checkpoint").read_text() == "model_final.pth"
        assert not [path for path in (tmp_path / folder).iterdir() if path.name[0] == "."][1:]


def test_a_longer_training_here_is_newer_than_the_same_name_in_the_copy(
    config, run, store, tmp_path
):
    train(run, config("a", **OPTIONS, **{"SOLVER.MAX_ITER": 3}))
    remote = tmp_path / "store" / "bucket" / "run"
    shutil.copytree(remote, tmp_path / "kept")
    longer = {**OPTIONS, "SOLVER.MAX_ITER": 6}
    train(run, config("a", **longer), resume=True)
    shutil.rmtree(remote)
    shutil.copytree(tmp_path / "kept", remote)
    with training_folder(config("a", **longer), resume=True):
        pass
    assert torch.load(remote / "model_final.pth", weights_only=True)["iteration"] == 5


def test_a_copy_that_fails_stops_only_the_end(config, run, store, tmp_path, caplog):
    cfg = config("a", **OPTIONS)
    with training_folder(cfg, False):
        store.full = True
        with pytest.raises(CopyError, match="model_final.pth.*No space left.*--resume"):
            run(cfg)
    assert "model_0000002.pth' cannot be copied" in caplog.text
    store.full = False
    train(run, cfg, resume=True)
    remote = tmp_path / "store" / "bucket" / "run"
    assert names(remote) == ["last_checkpoint", "model_final.pth"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://bucket", "no handler of iopath is registered for 'nosuch://'.*--import"),
        ("http://127.0.0.1/a", "cannot be written to: its handler of iopath cannot write files"),
        ("{tmp}/file/a", "cannot be written to: .*Not a directory"),
    ],
)
def test_a_place_that_cannot_be_used_is_an_error_at_the_start(config, tmp_path, url, message):
    (tmp_path / "file").write_text("")
    cfg = config(**{"SOLVER.CHECKPOINT_COPY": url.format(tmp=tmp_path)})
    with pytest.raises(CopyError, match=message), training_folder(cfg, False):
        pass
    assert not Path("nosuch:").exists()


def test_output_dir_is_no_url():
    with pytest.raises(ValueError, match="OUTPUT_DIR is 's3://a/b'.*SOLVER.CHECKPOINT_COPY"):
        setup_cfg("", ["OUTPUT_DIR", "s3://a/b"])
