"""tools/pretrain_clip.py: it trains, resumes, evaluates, and writes the weights of CLIP."""

import json
from pathlib import Path

import pytest
import torch

from dcp_clip import model_zoo
from dcp_clip.config import setup_cfg
from dcp_clip.data.pairing import DatasetError
from dcp_clip.emoji_scenes.pretraining import CLIPTrainer
from dcp_clip.emoji_scenes.register import FOLDER
from dcp_clip.engine.checkpoints.safe_checkpointer import WeightsError
from dcp_clip.engine.checkpoints.training_folder import ResumeError
from dcp_clip.modeling.clip.loading import load_clip

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "emoji_scenes" / "clip_tiny.yaml"
SMALL = {
    "PRETRAIN.SINGLE_SIZES": (32,),
    "PRETRAIN.SCENE_SIZES": (48,),
    "PRETRAIN.SINGLE_PIXELS": 8 * 32**2,
    "PRETRAIN.SCENE_PIXELS": 4 * 48**2,
    "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": "single",
    "SOLVER.MAX_ITER": 4,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.WARMUP_ITERS": 1,
    "TEST.EVAL_PERIOD": 0,
}


@pytest.fixture(scope="module")
def program(load_program):
    return load_program("tools/pretrain_clip.py")


@pytest.fixture
def data(tmp_path, monkeypatch, write_sprites):
    """Sprites of a dozen things in every style."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    write_sprites(tmp_path / "data")


@pytest.fixture
def run(program, tmp_path, data):
    """``run(*flags, KEY=value)``: pre-train a small CLIP, or evaluate it."""

    def run(*flags, **options):
        settings = SMALL | {"OUTPUT_DIR": str(tmp_path / "out")} | options
        opts = [str(part) for pair in settings.items() for part in pair]
        arguments = ["--config-file", str(CONFIG), *flags, *opts]
        return program.pretrain(program.get_parser().parse_args(arguments))

    return run


def iterations(folder):
    lines = (folder / "metrics.json").read_text().splitlines()
    return [json.loads(line)["iteration"] for line in lines]


def test_writes_weights_and_measures_accuracy(run, tmp_path, capsys):
    run()
    path = tmp_path / "out" / "clip.pth"
    assert str(path) in capsys.readouterr().out
    opts = ["MODEL.CLIP.NAME", "dcp-tiny-cnn-s16", "MODEL.CLIP.PRETRAINED", str(path)]
    clip = load_clip(setup_cfg(opts=opts)).state_dict()
    trained = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["model"]
    for name, value in trained.items():
        name = name.replace("backbone.visual.", "visual.").replace("text_encoder.", "text.")
        torch.testing.assert_close(clip[name], value, rtol=1e-3, atol=1e-4)
    results = run("--eval-only", **{"MODEL.WEIGHTS": tmp_path / "out" / "model_final.pth"})
    kinds = {f"{kind}_top{k}" for kind in ("seen", "unseen_style") for k in (1, 5)}
    assert set(results["zero_shot"]) == kinds
    assert all(0 <= value <= 100 for value in results["zero_shot"].values())


def test_resumed_training_equals_uninterrupted_training(run, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(OUTPUT_DIR=whole)
    run(OUTPUT_DIR=parts)
    for name in ("model_final.pth", "metrics.json"):
        (parts / name).unlink()
    (parts / "last_checkpoint").write_text("model_0000001.pth")
    run("--resume", OUTPUT_DIR=parts)
    assert iterations(parts) == [i for i in iterations(whole) if i >= 2]
    first, second = (
        torch.load(folder / "model_final.pth", weights_only=True)["model"]
        for folder in (whole, parts)
    )
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


def test_evaluation_uses_the_last_complete_checkpoint(run, tmp_path, monkeypatch):
    run()
    expected = torch.load(tmp_path / "out" / "model_0000001.pth", weights_only=True)["model"]
    for name in ("model_final.pth", "model_0000003.pth"):
        (tmp_path / "out" / name).write_bytes(b"")
    monkeypatch.setattr(CLIPTrainer, "test", lambda cfg, model: model.state_dict())
    evaluated = run("--eval-only", "--resume")
    assert all(torch.equal(value, expected[name]) for name, value in evaluated.items())


def test_evaluation_without_weights_is_an_error(run):
    with pytest.raises(ValueError, match="names no weights to evaluate"):
        run("--eval-only")
    with pytest.raises(WeightsError, match="out' has none"):
        run("--eval-only", "--resume")
    with pytest.raises(WeightsError, match=r"leave out --resume or MODEL\.WEIGHTS"):
        run("--eval-only", "--resume", **{"MODEL.WEIGHTS": "absent.pth"})


def test_the_default_config_is_found_from_every_folder(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_zoo.get_config_file(program.get_parser().parse_args([]).config_file) == str(CONFIG)


def test_checkpoints_are_not_overwritten(run, tmp_path):
    run()
    before = (tmp_path / "out" / "model_final.pth").read_bytes()
    with pytest.raises(ResumeError, match="out' has the checkpoints of another training"):
        run()
    assert (tmp_path / "out" / "model_final.pth").read_bytes() == before


def test_missing_sprites_end_in_one_sentence(program, run, tmp_path, capsys):
    for path in (tmp_path / "data" / FOLDER / "sprites").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="prepare_emoji_scenes.py"):
        run()
    opts = [str(part) for pair in SMALL.items() for part in pair]
    opts += ["OUTPUT_DIR", str(tmp_path / "out")]
    assert program.main(["--config-file", str(CONFIG), *opts]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: The sprites ")
