"""train_net.py as users call it: train, resume, evaluate, in one process and in two."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml"
# Prepended to the script, as a user with data of his own would: each process of a launch runs it.
REGISTRATION = """
from dcp_clip.data.catalog import register_sem_seg
for split in ("train", "val"):
    register_sem_seg(f"mini_sem_seg_{split}", f"data/{split}/images", f"data/{split}/labels",
                     ["sky", "tree", "car"])
register_sem_seg("mini_16_sem_seg_val", "data/val/images", "data/val/labels16",
                 [f"thing {i}" for i in range(300)], label_ext=".tif", ignore_label=65535)
"""
OPTIONS = {
    "DATASETS.TRAIN": ("mini_sem_seg_train",),
    "DATASETS.TEST": ("mini_sem_seg_val",),
    "MODEL.DEVICE": "cpu",
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "INPUT.MIN_SIZE_TEST": 64,
    "INPUT.CROP.SIZE": (48, 64),
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "TEST.EVAL_PERIOD": 0,
}


def write_data(folder: Path, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for kind in ("images", "labels", "labels16"):
        (folder / kind).mkdir(parents=True)
    for i in range(count):
        label = np.repeat(np.repeat(rng.integers(0, 3, (4, 4)), 16, 0), 16, 1)
        image = 80 * label[..., None] + rng.integers(0, 60, (64, 64, 3))
        label[:3] = 255
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{i}.png")
        many = np.array([*range(100, 355), 65535], np.uint16)[label % 256]  # 255 is ignored there
        many[many == 102] = 290
        Image.fromarray(many).save(folder / "labels16" / f"{i}.tif")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train_net")
    write_data(folder / "data" / "train", 8, seed=0)
    # An odd number: two processes get two and three images, and must not wait for each other.
    write_data(folder / "data" / "val", 5, seed=1)
    (folder / "program.py").write_text(REGISTRATION + (ROOT / "train_net.py").read_text())
    return folder


def train_net(workspace: Path, output: str, *arguments: str, **options):
    options = {**OPTIONS, "OUTPUT_DIR": output, **options}
    command = [sys.executable, "program.py", "--config-file", str(CONFIG), *arguments]
    command += [str(x) for pair in options.items() for x in pair]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = subprocess.Popen(
        command,
        cwd=workspace,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its children can be ended with it
    )
    try:
        log, _ = program.communicate(timeout=300)
    except BaseException:
        os.killpg(program.pid, signal.SIGKILL)
        raise
    assert program.returncode == 0, log[-5000:]
    return log


def metrics(workspace: Path, output: str) -> list[dict]:
    lines = (workspace / output / "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def mean_iou(log: str) -> float:
    """From Detectron2's "copypaste" lines."""
    keys, values = re.findall(r"copypaste: (mIoU.*|[\d.,]+)$", log, flags=re.MULTILINE)[:2]
    return dict(zip(keys.split(","), map(float, values.split(",")), strict=True))["mIoU"]


@pytest.fixture(scope="module")
def trained(workspace):
    """Three iterations, then two more; the output of both runs."""
    first = train_net(workspace, "out", **{"SOLVER.MAX_ITER": 3})
    second = train_net(workspace, "out", "--resume", **{"SOLVER.MAX_ITER": 5})
    return first, second


def test_train_and_resume(workspace, trained):
    first, second = trained
    assert "What trains" in first and re.search(r"backbone +\| +[\d,]+ +\| +[1-9]", first)
    assert "Starting training from iteration 3" in second
    steps = [x["iteration"] for x in metrics(workspace, "out") if "total_loss" in x]
    assert steps == [2, 4]  # the last of each run
    assert (workspace / "out" / "last_checkpoint").read_text() == "model_final.pth"
    assert 0 <= mean_iou(second) <= 100
    report = (workspace / "out" / "results.md").read_text()  # training leaves one as well
    assert f"{mean_iou(second):.2f}" in report and report in second


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two_processes() -> list[str]:
    return ["--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]


def test_several_data_sets_alone_and_in_two_processes(workspace, trained):
    """One command, one table; the figures of two processes are those of one to the last bit."""
    names = ("mini_sem_seg_val", "mini_16_sem_seg_val")
    options = {"MODEL.WEIGHTS": "out/model_final.pth", "DATASETS.TEST": names}
    log = train_net(workspace, "eval1", "--eval-only", **options)
    assert mean_iou(log) == pytest.approx(mean_iou(trained[1]), abs=1e-3)
    table = (workspace / "eval1" / "results.md").read_text()
    assert table in log and all(f"| {name}" in table for name in names)
    assert "**mini_16_sem_seg_val: 3/300 classes present.**" in table
    train_net(workspace, "eval2", "--eval-only", *two_processes(), **options)
    alone, shared = (
        json.loads((workspace / x / "results.json").read_text()) for x in ("eval1", "eval2")
    )
    assert list(alone["results"]) == list(names)
    for results in (*alone["results"].values(), *shared["results"].values()):
        assert results.pop("speed")["images"] == 5
    assert shared["results"] == alone["results"]
    assert shared["environment"]["device"] == "cpu, processes: 2"
    key = "weights fingerprint"
    assert shared["environment"][key] == alone["environment"][key]


@pytest.fixture(scope="module")
def program():
    """train_net.py as a module."""
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_evaluated(program, make_cfg, tmp_path):
    """MODEL.WEIGHTS, or with --resume the last checkpoint, as in Detectron2; never nothing."""
    cfg = make_cfg(opts={"MODEL.WEIGHTS": "given.pth", "OUTPUT_DIR": str(tmp_path)})
    assert program.weights_to_evaluate(cfg, resume=False) == "given.pth"
    with pytest.raises(ValueError, match=f"'{tmp_path}' has none"):
        program.weights_to_evaluate(cfg, resume=True)
    (tmp_path / "last_checkpoint").write_text("model_0000099.pth")
    assert program.weights_to_evaluate(cfg, resume=True) == str(tmp_path / "model_0000099.pth")
    with pytest.raises(ValueError, match="names no weights .* MODEL.WEIGHTS"):
        program.weights_to_evaluate(make_cfg(opts={"MODEL.WEIGHTS": ""}), resume=False)


def test_a_config_alone_is_evaluated_with_the_weights_that_come_with_it(workspace):
    log = train_net(workspace, "shipped", "--eval-only")
    results = json.loads((workspace / "shipped" / "results.json").read_text())
    weights = results["environment"]["MODEL.WEIGHTS"]
    assert Path(weights) == ROOT / "dcp_clip" / "weights" / "camvid_tiny.pth"
    assert f"the weights that come with this config, {weights}" in log


@pytest.mark.parametrize("resume", [False, True])
def test_the_report_names_the_weights_that_are_evaluated(
    program, make_cfg, tmp_path, monkeypatch, resume
):
    opts = {"MODEL.WEIGHTS": "given.pth", "OUTPUT_DIR": str(tmp_path), "DATASETS.TEST": ("x",)}
    monkeypatch.setattr(program, "setup", lambda args: make_cfg(opts=opts))
    (tmp_path / "last_checkpoint").write_text("model_0000099.pth")
    loaded, reported = [], []
    monkeypatch.setattr(program, "load_weights", lambda model, path: loaded.append(path))
    monkeypatch.setattr(
        program.Trainer, "test", lambda cfg, model: reported.append(cfg.MODEL.WEIGHTS) or {}
    )
    program.main(Namespace(eval_only=True, resume=resume, config_file="", opts=[]))
    assert loaded == reported == [str(tmp_path / "model_0000099.pth") if resume else "given.pth"]


def test_nothing_to_evaluate_is_an_error(program, make_cfg, monkeypatch):
    monkeypatch.setattr(program, "setup", lambda args: make_cfg(opts={"DATASETS.TEST": ()}))
    with pytest.raises(ValueError, match="DATASETS.TEST is empty"):
        program.main(Namespace(eval_only=True, resume=False, config_file="", opts=[]))


def test_two_processes_train_and_evaluate(workspace):
    options = {"SOLVER.MAX_ITER": 2, "TEST.EVAL_PERIOD": 1, "SOLVER.EMA_DECAY": 0.9}
    log = train_net(workspace, "two", *two_processes(), **options)
    assert (workspace / "two" / "model_final.pth").is_file()
    weights = {"MODEL.WEIGHTS": "two/model_final.pth"}
    alone = mean_iou(train_net(workspace, "two_eval", "--eval-only", **weights))
    last = log[log.rindex("Evaluation results") :] if "Evaluation results" in log else log
    assert mean_iou(last) == pytest.approx(alone, abs=1e-3)
