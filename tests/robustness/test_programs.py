"""Every program with hostile configs and weights: none of them runs code."""

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from dcp_clip.config import setup_cfg
from dcp_clip.engine.checkpoints.loading import SafeCheckpointer, WeightsError, load_weights
from dcp_clip.modeling.clip.loading import CLIPWeightsError, load_clip

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((Path(__file__).parent / "configs").glob("*.yaml"))
TINY = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml"
CLIP = ROOT / "configs" / "emoji_scenes" / "clip_tiny.yaml"
DOCUMENTED = (OSError, KeyError, ValueError, WeightsError, CLIPWeightsError)
# How each program that reads configs is called: its arguments before KEY VALUE.
ARGUMENTS = {
    "train_net.py": ["--config-file", "{config}", "--eval-only"],
    "demo/app.py": ["--config-file", "{config}", "--opts"],
    "demo/demo.py": [
        *("--config-file", "{config}", "--input", "{image}", "--output", "{out}", "--opts")
    ],
    "tools/benchmark.py": ["--config-file", "{config}", "--device", "cpu", "--opts"],
    "tools/calibrate.py": ["--config-file", "{config}", "--test", "camvid_sem_seg_val", "--opts"],
    "tools/dry_run.py": ["--config-file", "{config}", "--output", "{out}", "--opts"],
    "tools/export.py": [*("--config-file", "{config}", "--output", "{out}/model", "--opts")],
    "tools/export_weights.py": [
        "{weights}",
        "{out}/x.pth",
        "--wise-ft-alpha",
        "0.5",
        "--config-file",
        "{config}",
    ],
    "tools/pretrain_clip.py": ["--config-file", "{config}", "--eval-only"],
    "tools/segment_many.py": [
        *("--config-file", "{config}", "--input", "{image}", "--output", "{out}", "--opts")
    ],
    "tools/vocabulary_study.py": ["--config-file", "{config}"],
}
# Their arguments are no configs and no weights.
OTHERS = {
    "tools/check_env.py",
    "tools/install_detectron2.py",
    "tools/list_encoders.py",
    "tools/montage.py",
    "tools/reproduce_emoji_scenes.py",  # it reads its own list and starts train_net.py
    "tools/summarize_runs.py",
}


class Touch:
    """Unpickling creates the file that the environment variable HOSTILE_MARKER names."""

    def __reduce__(self) -> tuple:
        return os.system, ('touch "$HOSTILE_MARKER"',)


def content() -> dict[str, Any]:
    """A checkpoint that looks like one of train_net.py."""
    return {"model": {"a.weight": torch.zeros(2)}, "iteration": 9, "trainer": Touch()}


def as_torch(path: Path) -> None:
    torch.save(content(), path)


def as_early_torch(path: Path) -> None:
    torch.save(content(), path, _use_new_zipfile_serialization=False)


def as_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": Touch(), "__author__": "x"}))


def as_lightning(path: Path) -> None:
    lightning = {"pytorch-lightning_version": "2.4", "state_dict": {}, "callbacks": Touch()}
    torch.save(lightning, path)


def as_torchscript(path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content(), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
        target.writestr("archive/constants.pkl", pickle.dumps(Touch()))


# Files by name. The writer of each gets its path.
CHECKPOINTS: dict[str, Callable[[Path], None]] = {
    "model.pth": as_torch,
    "early.pth": as_early_torch,
    "pickle.pth": as_pickle,
    "pickle.pkl": as_pickle,
    "pickle.pyth": as_pickle,
    "torch.pyth": as_torch,
    "lightning.ckpt": as_lightning,
    "script.pt": as_torchscript,
    "pickle.safetensors": as_pickle,
    "pickle.bin": as_pickle,
}


@pytest.fixture
def files(tmp_path):
    """What the placeholders of ARGUMENTS stand for."""
    (tmp_path / "out").mkdir()
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "image.png")
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "weights.pth")
    return {
        "config": TINY,
        "image": tmp_path / "image.png",
        "out": tmp_path / "out",
        "weights": tmp_path / "weights.pth",
    }


@pytest.fixture
def refuses(load_program, files, capsys):
    """``refuses(program, *opts, **files)``: run a program, which must end with an error.

    Returns the message.
    """

    def run(path, *opts, arguments=None, **changed):
        program = load_program(path)
        values = files | changed
        argv = [a.format(**values) for a in arguments or ARGUMENTS[path]] + list(map(str, opts))
        try:
            if path == "tools/export_weights.py":
                status = program.export(program.parse_args(argv)) or 0
            else:
                status = program.main(argv)
        except DOCUMENTED as error:
            return str(error)
        except SystemExit as error:
            status = error.code  # the message, or 1
        assert status not in (0, None), f"{path} accepted the file"
        return f"{status} {capsys.readouterr().err}".rstrip().splitlines()[-1]

    return run


def test_every_program_is_in_the_tables():
    programs = {"train_net.py", *(str(p.relative_to(ROOT)) for p in ROOT.glob("demo/*.py"))}
    programs |= {str(p.relative_to(ROOT)) for p in ROOT.glob("tools/*.py")}
    assert programs == set(ARGUMENTS) | OTHERS
    for path in [*sorted(OTHERS), *ROOT.glob("datasets/*.py")]:
        text = (ROOT / path).read_text()
        assert "setup_cfg" not in text and "torch.load" not in text and "load_weights" not in text


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("program", ARGUMENTS)
def test_configs_run_no_code(marker, refuses, program, config):
    message = refuses(program, config=config)
    assert "Traceback" not in message
    assert config.name in message or "base" in config.stem  # or the file that it inherits from


def test_a_module_runs_only_if_the_caller_names_it(marker, monkeypatch):
    path = CONFIGS[0].parent / "imports.yaml"
    with pytest.raises(ValueError, match="MODEL.IMPORTS names hostile_module"):
        setup_cfg(path, imports=["json"])
    assert not marker.exists()
    monkeypatch.delitem(sys.modules, "hostile_module", raising=False)
    setup_cfg(path, imports=["hostile_module"])
    marker.unlink()  # so the other tests would see an import
    del sys.modules["hostile_module"]


@pytest.mark.parametrize("program", ARGUMENTS)
def test_every_program_imports_modules_of_a_user(refuses, program):
    arguments = ["--import", "json", "--import", "a_missing_module", *ARGUMENTS[program]]
    message = refuses(program, arguments=arguments)
    assert "there is no module 'a_missing_module'" in message and "Traceback" not in message


def test_configs_run_no_code_in_a_chain(marker, tmp_path):
    for path in CONFIGS:
        (tmp_path / "a.yaml").write_text(f"_BASE_: ['{path}']\n")
        with pytest.raises(ValueError):
            setup_cfg(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("query", ["", "?a=1", "#a"])
def test_weights_run_no_code(marker, tmp_path, name, query):
    path = tmp_path / name
    CHECKPOINTS[name](path)
    CHECKPOINTS[name](tmp_path / f"{name}{query}")
    with pytest.raises(WeightsError) as raised:
        load_weights(torch.nn.Linear(2, 2), f"{path}{query}")
    message = str(raised.value)
    assert "\n" not in message and "weights_only" not in message and str(path) in message


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_weights_of_clip_run_no_code(marker, tmp_path, name):
    CHECKPOINTS[name](tmp_path / name)
    options = ["MODEL.CLIP.NAME", "dcp-tiny-cnn-s16", "MODEL.CLIP.PRETRAINED", tmp_path / name]
    with pytest.raises(CLIPWeightsError) as raised:
        load_clip(setup_cfg(opts=options))
    message = str(raised.value)
    assert "\n" not in message and "weights_only" not in message and name in message


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_last_checkpoint_runs_no_code(marker, tmp_path, name):
    CHECKPOINTS[name](tmp_path / name)
    (tmp_path / "last_checkpoint").write_text(name)
    checkpointer = SafeCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    with pytest.raises(WeightsError):
        checkpointer.resume_or_load("", resume=True)
    with pytest.raises(WeightsError):
        load_weights(torch.nn.Linear(2, 2), checkpointer.get_checkpoint_file() or "none.pth")


@pytest.mark.parametrize("name", ["model.pth", "pickle.pkl", "early.pth"])
@pytest.mark.parametrize(
    "program",
    ["train_net.py", "demo/demo.py", "tools/pretrain_clip.py", "tools/vocabulary_study.py"],
)
def test_weights_of_programs_run_no_code(marker, refuses, tmp_path, program, name, monkeypatch):
    path = tmp_path / name
    CHECKPOINTS[name](path)
    opts = ["MODEL.WEIGHTS", path]
    if program in ("train_net.py", "tools/pretrain_clip.py"):
        opts += ["OUTPUT_DIR", tmp_path / "out"]
    if program == "tools/vocabulary_study.py":
        study = "dcp_clip.experiments.vocabulary_study"
        monkeypatch.setattr(f"{study}.StudyImages", None)  # the weights come first
    config = CLIP if "pretrain" in program else TINY
    message = refuses(program, *opts, config=config)
    assert name in message and "weights_only" not in message


@pytest.mark.parametrize("name", ["model.pth", "pickle.pkl", "early.pth"])
@pytest.mark.parametrize("flags", [["--resume"], ["--resume", "--eval-only"]])
@pytest.mark.parametrize("program", ["train_net.py", "tools/pretrain_clip.py"])
def test_resume_runs_no_code(marker, refuses, tmp_path, program, flags, name):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    CHECKPOINTS[name](out / name)
    (out / "last_checkpoint").write_text(name)
    config = CLIP if "pretrain" in program else TINY
    arguments = ["--config-file", "{config}", *flags]
    message = refuses(program, "OUTPUT_DIR", out, arguments=arguments, config=config)
    assert name in message or "last_checkpoint" in message


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_exported_checkpoints_run_no_code(marker, refuses, tmp_path, name):
    CHECKPOINTS[name](tmp_path / name)
    arguments = ["{weights}", "{out}/x.pth"]
    refuses("tools/export_weights.py", arguments=arguments, weights=tmp_path / name)
    assert not (tmp_path / "out" / "x.pth").exists()


def test_a_model_is_built_and_loaded_without_hostile_files(marker, tmp_path):
    """The tests above would also pass if nothing could be loaded."""
    cfg = setup_cfg(TINY, ["MODEL.DEVICE", "cpu"])
    load_weights(build_model(cfg), str(ROOT / "dcp_clip" / "weights" / "camvid_tiny.pth"))
