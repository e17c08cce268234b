"""train_net.py as a program: training, resuming and evaluation, with one and two processes."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image
from torch import nn

from dcp_clip.engine.checkpoints.safe_checkpointer import SafeCheckpointer, WeightsError
from dcp_clip_cli import training
from dcp_clip_cli.train import parse_args

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml"
# Prepended to the program. Each of its processes registers the data sets.
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
        to_16_bits = np.array([*range(100, 355), 65535], np.uint16)  # 65535 is ignored
        many = to_16_bits[label]
        many[many == 102] = 290
        Image.fromarray(many).save(folder / "labels16" / f"{i}.tif")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train_net")
    write_data(folder / "data" / "train", 8, seed=0)
    # An odd number, so that two processes have different numbers of images.
    write_data(folder / "data" / "val", 5, seed=1)
    (folder / "program.py").write_text(REGISTRATION + (ROOT / "train_net.py").read_text())
    return folder


def launch(
    workspace: Path,
    output: str,
    *arguments: str,
    program: str = "program.py",
    environment: dict[str, str] | None = None,
    **options,
) -> tuple[int, str]:
    """Run the program; return its exit status and its output."""
    options = {**OPTIONS, "OUTPUT_DIR": output, **options}
    command = [sys.executable, program, "--config-file", str(CONFIG), *arguments]
    command += [str(x) for pair in options.items() for x in pair]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command,
        cwd=workspace,
        env={**variables, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that its children can be ended with it
    )
    try:
        log, _ = process.communicate(timeout=300)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, log


def train_net(workspace: Path, output: str, *arguments: str, **options) -> str:
    status, log = launch(workspace, output, *arguments, **options)
    assert status == 0, log[-5000:]
    return log


def metrics(workspace: Path, output: str) -> list[dict]:
    lines = (workspace / output / "metrics.json").read_text().splitlines()
    return [json.loads(line) for line in lines]


def mean_iou(log: str) -> float:
    """Read the "copypaste" lines of Detectron2."""
    keys, values = re.findall(r"copypaste: (mIoU.*|[\d.,]+)$", log, flags=re.MULTILINE)[:2]
    return dict(zip(keys.split(","), map(float, values.split(",")), strict=True))["mIoU"]


@pytest.fixture(scope="module")
def trained(workspace):
    """The output of three iterations, and of two more after --resume."""
    first = train_net(workspace, "out", **{"SOLVER.MAX_ITER": 3})
    second = train_net(workspace, "out", "--resume", **{"SOLVER.MAX_ITER": 5})
    return first, second


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


def test_folder_of_another_training(workspace, trained):
    """A second training changes nothing, whatever its number of processes; an evaluation works."""
    before = files(workspace / "out")
    with filelock.FileLock(workspace / "out" / ".training.lock"):
        arguments = ["--resume", *two_processes()]
        status, log = launch(workspace, "out", *arguments, **{"SOLVER.MAX_ITER": 7})
        assert status == 1 and "Traceback" not in log
        assert log.count("Another training is writing to OUTPUT_DIR 'out'") == 1
        assert files(workspace / "out") == before
        train_net(workspace, "out", "--eval-only", "--resume")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two_processes() -> list[str]:
    return ["--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]


def test_several_data_sets_with_one_and_two_processes(workspace, trained):
    """Two processes give exactly the same scores as one."""
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


def test_two_processes_train_and_evaluate(workspace):
    options = {"SOLVER.MAX_ITER": 2, "TEST.EVAL_PERIOD": 1, "SOLVER.EMA_DECAY": 0.9}
    log = train_net(workspace, "two", *two_processes(), **options)
    assert (workspace / "two" / "model_final.pth").is_file()
    weights = {"MODEL.WEIGHTS": "two/model_final.pth"}
    alone = mean_iou(train_net(workspace, "two_eval", "--eval-only", **weights))
    last = log[log.rindex("copypaste: Task: sem_seg") :]
    assert mean_iou(last) == pytest.approx(alone, abs=1e-3)


PARAMETERS = """
def _check_parameters(trainer):
    import torch
    mine = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    others = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(others, mine)
    assert len(others) == 2 and torch.equal(*others)

from dcp_clip_cli import training

def _train(args, Trainer=training.Trainer, train=training.main):
    Trainer.after_train = lambda self: _check_parameters(self) or super(Trainer, self).after_train()
    return train(args)

training.main = _train

if __name__ == "__main__":
"""


def test_two_processes_have_equal_parameters(workspace):
    """The gradients are averaged over the processes in each iteration."""
    text = (workspace / "program.py").read_text()
    head, _, tail = text.rpartition('if __name__ == "__main__":\n')
    program = workspace / "equal.py"
    program.write_text(head + PARAMETERS + tail)
    options = {"SOLVER.MAX_ITER": 4, "DATASETS.TEST": ()}
    train_net(workspace, "equal", *two_processes(), program=program.name, **options)


@pytest.mark.parametrize("processes", [1, 2])
def test_error_of_a_user_is_one_sentence(workspace, processes):
    """Without a traceback, once, even if every process finds it."""
    options = {"MODEL.WEIGHTS": "absent.pth", "SOLVER.MAX_ITER": 2}
    arguments = two_processes() if processes == 2 else []
    status, log = launch(workspace, "error", *arguments, **options)
    assert status == 1
    sentence = "MODEL.WEIGHTS: 'absent.pth' does not exist"
    assert "Traceback" not in log and log.count(sentence) == 1
    assert log.rstrip().splitlines()[-1].startswith(sentence)


def test_debug_shows_the_traceback(workspace):
    status, log = launch(workspace, "debug", "--debug", **{"MODEL.WEIGHTS": "absent.pth"})
    assert status == 1 and "Traceback" in log and "WeightsError: MODEL.WEIGHTS: " in log


CHINESE = f"""
_BASE_: "{CONFIG}"
DATASETS:
  TEST: ("mini",)
  SEM_SEG_FOLDERS:  # 训练
    - name: "mini"
      images: "data/train/images"
      labels: "data/train/labels"
      names: ["天空", "树", "汽车"]
"""


def test_names_that_the_locale_has_not(workspace):
    """The log is in UTF-8; the screen shows the numbers of the characters."""
    (workspace / "chinese.yaml").write_text(CHINESE, encoding="utf-8")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
    options = {"DATASETS.TRAIN": ("mini",), "DATASETS.TEST": ("mini",), "SOLVER.MAX_ITER": 2}
    arguments = ["--config-file", "chinese.yaml"]
    screen = train_net(workspace, "chinese", *arguments, environment=locale, **options)
    log = (workspace / "chinese" / "log.txt").read_text(encoding="utf-8")
    assert "Traceback" not in screen + log and "Error" not in screen
    assert "天空" in log and r"\u5929\u7a7a" in screen


def test_damaged_image_is_one_sentence(workspace):
    """It is found by a worker process of the data loader."""
    shutil.copytree(workspace / "data", workspace / "damaged" / "data")
    for path in (workspace / "damaged" / "data" / "train" / "images").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    (workspace / "damaged" / "program.py").write_text((workspace / "program.py").read_text())
    status, log = launch(workspace / "damaged", "out", **{"DATALOADER.NUM_WORKERS": 1})
    assert status == 1 and "Traceback" not in log
    assert "cannot be read" in log.rstrip().splitlines()[-1]


def test_screen_shows_no_config(workspace, trained):
    """It is in OUTPUT_DIR/config.yaml and log.txt."""
    first, _ = trained
    assert "CLASS_REFINEMENT" not in first and "Warning" not in first
    before_training = first[: first.index("Starting training")]
    assert len(before_training.splitlines()) < 40
    for name in ("config.yaml", "log.txt"):
        assert "CLASS_REFINEMENT" in (workspace / "out" / name).read_text()
