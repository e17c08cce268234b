"""The output folder of a training: what may be overwritten, resumed and removed."""

import re
import subprocess
import sys

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.engine.checkpoints import training_folder as module
from dcp_clip.engine.checkpoints.safe_checkpointer import SafeCheckpointer
from dcp_clip.engine.checkpoints.training_folder import (
    ResumeError,
    prepare_training_folder,
    training_folder,
    training_record,
)

NAMES = [["sky"], ["tree", "bush"], ["car"]]


@pytest.fixture
def register(tmp_path):
    """``register(names)``: the name of a data set with these names."""
    made = []

    def register(names):
        made.append(f"test_training_folder_{len(made)}")
        register_sem_seg(made[-1], tmp_path, tmp_path, names)
        return made[-1]

    yield register
    for name in made:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


@pytest.fixture
def config(make_cfg, register, tmp_path):
    """``config(**opts)``: a config whose OUTPUT_DIR is the folder "out"."""
    data = register(NAMES)

    def config(**opts):
        (tmp_path / "out").mkdir(exist_ok=True)
        opts = {"DATASETS.TRAIN": (data,), "OUTPUT_DIR": str(tmp_path / "out"), **opts}
        return make_cfg("test-convnext", opts)

    return config


@pytest.fixture
def trained(config):
    """The folder of a training with one checkpoint."""
    cfg = config()
    checkpointer = SafeCheckpointer(
        torch.nn.Linear(1, 1), cfg.OUTPUT_DIR, record=training_record(cfg)
    )
    checkpointer.save("model_0000003", iteration=3)
    return cfg.OUTPUT_DIR


def test_checkpoints_are_not_overwritten(config, trained):
    with pytest.raises(ResumeError, match=re.escape(trained)) as raised:
        prepare_training_folder(config(), resume=False)
    message = str(raised.value)
    for hint in ("model_0000003.pth", "--resume", "--eval-only --resume", "another OUTPUT_DIR"):
        assert hint in message
    assert "\n" not in message


def test_new_and_resumed_folders_are_accepted(config, trained, tmp_path):
    prepare_training_folder(config(), resume=True)
    for folder in ("absent", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        for resume in (False, True):
            prepare_training_folder(config(OUTPUT_DIR=str(tmp_path / folder)), resume=resume)


def test_a_file_is_no_folder(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResumeError, match="file', which is a file"):
        prepare_training_folder(config(OUTPUT_DIR=str(tmp_path / "file")), resume=False)


def test_another_optimizer_is_not_resumed(config, trained):
    with pytest.raises(ResumeError, match="SOLVER.OPTIMIZER was 'ADAMW' and is 'SGD'"):
        prepare_training_folder(config(**{"SOLVER.OPTIMIZER": "SGD"}), resume=True)


@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.CLIP.NAME", "test-vit-16"),
        ("MODEL.META_ARCHITECTURE", "PixelTextSegmentor"),
        ("MODEL.DCP_CLIP.FINE_DECODER.NAME", "BilinearDecoder"),
        ("MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS", 5),  # the weights would fit
        ("MODEL.CLIP.DENSE", "naclip"),
        ("MODEL.CLIP.NACLIP_STD", 3.0),
        ("MODEL.CLIP.POSITION_OFFSET", 0.1),
        ("MODEL.CLIP.ENCODER_WINDOW", 64),
        ("MODEL.DCP_CLIP.SIMILARITY_SCALE", 40.0),
        ("MODEL.DCP_CLIP.VOCABULARY.TEMPLATES", "vild14"),
        ("MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING", "max"),
    ],
)
def test_another_architecture_is_not_resumed(config, trained, key, value):
    before = config()
    for part in key.split("."):
        before = before[part]
    with pytest.raises(ResumeError) as raised:
        prepare_training_folder(config(**{key: value}), resume=True)
    message = str(raised.value)
    assert f"{key} was {before!r} and is {value!r}" in message
    assert "model_0000003.pth' cannot be resumed" in message and "\n" not in message


@pytest.mark.parametrize(
    "names, difference",
    [
        ([["sky"], ["tree", "bush"]], "had 3 categories and has 2"),
        (
            [["sky"], ["tree"], ["car"]],
            "category 1 of DATASETS.TRAIN was 'tree, bush' and is 'tree'",
        ),
        ([["car"], ["tree", "bush"], ["sky"]], "category 0 .* was 'sky' and is 'car'"),
    ],
)
def test_other_names_are_not_resumed(config, trained, register, names, difference):
    with pytest.raises(ResumeError, match=difference):
        prepare_training_folder(config(**{"DATASETS.TRAIN": (register(names),)}), resume=True)


def test_the_schedule_and_the_device_may_change(config, trained, register):
    data = register(NAMES)  # the same names
    options = {"SOLVER.MAX_ITER": 9, "SOLVER.BASE_LR": 1.0, "MODEL.WEIGHTS": "x"}
    options |= {"DATASETS.TRAIN": (data,), "MODEL.DCP_CLIP.BF16": True}
    options |= {"MODEL.DCP_CLIP.LOSS.CE_WEIGHT": 2.0, "MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE": 512}
    prepare_training_folder(config(**options), resume=True)


def test_another_number_of_gpus_may_not_scale_the_schedule(config, trained, monkeypatch):
    """SOLVER.REFERENCE_WORLD_SIZE would change MAX_ITER, but not the checkpoint's iteration."""
    options = {"SOLVER.REFERENCE_WORLD_SIZE": 8}  # the checkpoint has the batch of 8 GPUs
    monkeypatch.setattr("detectron2.utils.comm.get_world_size", lambda: 4)
    with pytest.raises(ResumeError, match="its batch has 16 .* 8 images for 4 GPUs.* to 4,"):
        prepare_training_folder(config(**options), resume=True)
    for same in (4, 0):
        cfg = config(**{"SOLVER.REFERENCE_WORLD_SIZE": same})
        prepare_training_folder(cfg, resume=True)


def test_checkpoints_without_a_record_are_accepted(config):
    """Those of earlier versions. The parameters must fit all the same."""
    cfg = config()
    SafeCheckpointer(torch.nn.Linear(1, 1), cfg.OUTPUT_DIR).save("model_0000003", iteration=3)
    prepare_training_folder(config(**{"MODEL.CLIP.NAME": "test-vit-16"}), resume=True)


def test_temporary_files_of_killed_runs_are_removed(config, trained, tmp_path):
    out = tmp_path / "out"
    (out / f".{'0a' * 16}.part").write_bytes(b"half a checkpoint")
    (out / "mine.part").touch()
    prepare_training_folder(config(), resume=True)
    names = {path.name for path in out.iterdir()}
    assert names == {"last_checkpoint", "mine.part", "model_0000003.pth"}


HOLDER = """
import sys, time, multiprocessing
from dcp_clip.config import get_cfg
from dcp_clip.engine.checkpoints.training_folder import training_folder
cfg = get_cfg()
cfg.OUTPUT_DIR = sys.argv[1]
with training_folder(cfg, False):
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(3,)).start()
    print("locked", flush=True)
    time.sleep(600)
"""


def test_second_training_is_refused_until_the_first_is_killed(config, tmp_path, monkeypatch):
    """Also if a loader worker, which has the open lock file, lives a little longer."""
    cfg = config(OUTPUT_DIR=str(tmp_path / "new" / "folder"))
    command = [sys.executable, "-c", HOLDER, cfg.OUTPUT_DIR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout.readline() == "locked\n"
            with monkeypatch.context() as patch:
                patch.setattr(module, "_WAIT", 0.1)
                with pytest.raises(ResumeError, match="Another training .*new/folder'.*wait"):
                    with training_folder(cfg, resume=False):
                        raise AssertionError("two trainings")
        finally:
            first.kill()
    for _ in range(2):  # it is released at the end of a training, too
        with training_folder(cfg, resume=False):
            pass


def test_error_of_the_folder_releases_the_lock(config, trained):
    with pytest.raises(ResumeError, match="another training"):
        with training_folder(config(), resume=False):
            raise AssertionError("it overwrites checkpoints")
    with training_folder(config(), resume=True):
        pass


def test_file_system_without_locks_is_a_warning(config, monkeypatch, caplog):
    def acquire(self, timeout):
        raise NotImplementedError

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with training_folder(config(), resume=False):
        assert "cannot lock files: start no second training" in caplog.text


def test_folder_that_the_locale_cannot_express(config, tmp_path):
    """In an ASCII locale, Python reads the argument "/\u00e9" so."""
    cfg = config(OUTPUT_DIR=f"{tmp_path}/\udcc3\udca9")
    with pytest.raises(ResumeError, match=r"udca9', .* LC_ALL to C.UTF-8"):
        with training_folder(cfg, resume=False):
            raise AssertionError("TensorBoard cannot write there")
    assert not list(tmp_path.glob("?"))
