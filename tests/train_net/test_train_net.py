"""train_net.py as a program: training, resuming, evaluation, and folders that are in use."""

import json
import re
from pathlib import Path

import filelock
import pytest
from helpers.training_program import (
    ROOT,
    launch,
    mean_iou,
    metrics,
    train_net,
    two_processes,
)
from torch import nn

from dcp_clip.engine.checkpoints.safe_checkpointer import SafeCheckpointer, WeightsError
from dcp_clip_cli import training
from dcp_clip_cli.train import parse_args


def test_train_and_resume(workspace, trained):
    first, second = trained
    assert "Trainable parameters" in first and re.search(r"backbone +\| +[\d,]+ +\| +[1-9]", first)
    assert "Starting training from iteration 3" in second
    steps = [x["iteration"] for x in metrics(workspace, "out") if "total_loss" in x]
    assert steps == [2, 4]  # the last iteration of each run
    assert (workspace / "out" / "last_checkpoint").read_text() == "model_final.pth"
    assert 0 <= mean_iou(second) <= 100
    report = (workspace / "out" / "results.md").read_text()
    assert f"{mean_iou(second):.2f}" in report and report in second


def files(folder: Path) -> list[tuple]:
    found = (p for p in folder.iterdir() if p.name != ".training.lock")
    return sorted((p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in found)


@pytest.mark.parametrize("arguments", [(), ("--resume",)])
def test_checkpoints_are_protected(workspace, trained, arguments):
    """A training with other names changes nothing in the folder, not even the log."""
    before, other = files(workspace / "out"), {"DATASETS.TRAIN": ("mini_16_sem_seg_val",)}
    status, log = launch(workspace, "out", *arguments, **other)
    assert status == 1 and "Traceback" not in log
    message = "had 3 categories and has 300" if arguments else "another training .*add --resume"
    assert re.search(message, log.rstrip().splitlines()[-1])
    assert files(workspace / "out") == before


# Prepended to the program, which waits for the workers of a training that was killed.
NO_WAITING = """
from dcp_clip.engine.checkpoints import training_folder
training_folder._WAIT = 0.1
"""


def test_folder_of_another_training(workspace, trained):
    """A second training changes nothing, whatever its number of processes; an evaluation works."""
    before = files(workspace / "out")
    program = workspace / "no_waiting.py"
    program.write_text(NO_WAITING + (workspace / "program.py").read_text())
    with filelock.FileLock(workspace / "out" / ".training.lock"):
        arguments, options = ["--resume", *two_processes()], {"SOLVER.MAX_ITER": 7}
        status, log = launch(workspace, "out", *arguments, program=program.name, **options)
        assert status == 1 and "Traceback" not in log
        assert log.count("Another training is writing to OUTPUT_DIR 'out'") == 1
        assert files(workspace / "out") == before
        train_net(workspace, "out", "--eval-only", "--resume")


def save_checkpoint(folder: Path) -> None:
    SafeCheckpointer(nn.Linear(1, 1), str(folder)).save("model_0000099", iteration=99)


def test_weights_to_evaluate(make_cfg, tmp_path):
    """MODEL.WEIGHTS, or the last checkpoint with --resume."""
    args, resume = parse_args(["--eval-only"]), parse_args(["--resume"])
    cfg = make_cfg(opts={"MODEL.WEIGHTS": "given.pth", "OUTPUT_DIR": str(tmp_path)})
    assert training.weights_to_evaluate(cfg, args) == "given.pth"
    with pytest.raises(WeightsError, match=f"'{tmp_path}' has none"):
        training.weights_to_evaluate(cfg, resume)
    save_checkpoint(tmp_path)
    assert training.weights_to_evaluate(cfg, resume) == str(tmp_path / "model_0000099.pth")
    both = parse_args(["--eval-only", "--resume", "MODEL.WEIGHTS", "given.pth"])
    with pytest.raises(WeightsError, match=r"leave out --resume or MODEL\.WEIGHTS"):
        training.weights_to_evaluate(cfg, both)
    (tmp_path / "last_checkpoint").write_text("model_0000199.pth")  # it was not written
    assert training.weights_to_evaluate(cfg, resume) == str(tmp_path / "model_0000099.pth")
    with pytest.raises(ValueError, match="names no weights .* MODEL.WEIGHTS"):
        training.weights_to_evaluate(make_cfg(opts={"MODEL.WEIGHTS": ""}), args)


def test_shipped_weights_are_the_default(workspace):
    log = train_net(workspace, "shipped", "--eval-only")
    results = json.loads((workspace / "shipped" / "results.json").read_text())
    weights = results["environment"]["MODEL.WEIGHTS"]
    assert Path(weights) == ROOT / "dcp_clip" / "weights" / "camvid_tiny.pth"
    assert f"evaluating the shipped weights {weights}" in log


@pytest.mark.parametrize("resume", [False, True])
def test_report_names_the_evaluated_weights(make_cfg, tmp_path, monkeypatch, resume):
    opts = {"MODEL.WEIGHTS": "given.pth", "OUTPUT_DIR": str(tmp_path), "DATASETS.TEST": ("x",)}
    save_checkpoint(tmp_path)
    loaded, reported = [], []
    monkeypatch.setattr(training, "load_weights", lambda model, path: loaded.append(path))
    monkeypatch.setattr(
        training.Trainer, "test", lambda cfg, model: reported.append(cfg.MODEL.WEIGHTS) or {}
    )
    args = parse_args(["--eval-only", *(["--resume"] if resume else [])])
    training.evaluate(make_cfg(opts=opts), args)
    assert loaded == reported == [str(tmp_path / "model_0000099.pth") if resume else "given.pth"]


def test_no_data_set_to_evaluate_is_an_error(make_cfg):
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        args = parse_args(["--eval-only"])
        training.evaluate(make_cfg(opts={"DATASETS.TEST": ()}), args)


def test_expected_results_of_several_data_sets_are_an_error(make_cfg):
    opts = {"DATASETS.TEST": ("a", "b"), "TEST.EXPECTED_RESULTS": [["sem_seg", "mIoU", 50, 1]]}
    with pytest.raises(ValueError, match="EXPECTED_RESULTS .* DATASETS.TEST has 2: evaluate one"):
        training.evaluate(make_cfg(opts=opts), parse_args(["--eval-only"]))
