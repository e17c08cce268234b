"""train_net.py in processes that torchrun starts."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.training_program import fork_server

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip_cli.train import parse_args
from dcp_clip_cli.training import evaluate, read_config, start

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml"
# Prepended to the program.
REGISTRATION = """
from dcp_clip.data.catalog import register_sem_seg
register_sem_seg("mini_sem_seg_train", "images", "labels", ["sky", "tree", "car"])
register_sem_seg("other_sem_seg_train", "images", "labels", ["cup", "plate", "table", "fork"])
"""
# The second process ends without a message after two of four iterations, but only once. Before
# that, it waits until the first process has written the checkpoint of these iterations.
KILL = """
import os, signal, time
from pathlib import Path
from dcp_clip.engine import Trainer
step = Trainer.run_step
def run_step(self):
    is_second = (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0")
    if self.iter == 2 and is_second:
        last = Path(self.cfg.OUTPUT_DIR, "last_checkpoint")
        while not last.exists() or last.read_text().strip() != "model_0000001.pth":
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    step(self)
Trainer.run_step = run_step
"""
OPTIONS = {
    "SEED": 7,
    # In an iteration, the two processes can have batches of different vocabularies.
    "DATASETS.TRAIN": ("mini_sem_seg_train", "other_sem_seg_train"),
    "DATASETS.TEST": (),
    "MODEL.DEVICE": "cpu",
    "INPUT.MIN_SIZE_TRAIN": (48,),
    "INPUT.CROP.SIZE": (40, 40),
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.MAX_ITER": 4,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "DATALOADER.NUM_WORKERS": 0,
}
ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "OMP_NUM_THREADS": "1",
    # Restarted processes must not read the addresses of those before them (docs/cluster.md).
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, write_stripes):
    folder = tmp_path_factory.mktemp("torchrun")
    write_stripes(folder, 4)
    text = (ROOT / "train_net.py").read_text()
    (folder / "program.py").write_text(REGISTRATION + text)
    (folder / "killed.py").write_text(REGISTRATION + KILL + text)
    return folder


def pairs(output, **options):
    """Return the KEY VALUE pairs of a run."""
    return [str(x) for pair in {**OPTIONS, "OUTPUT_DIR": output, **options}.items() for x in pair]


def torchrun(workspace, output, *arguments, **options):
    """Run torchrun; return its exit status and its output."""
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *map(str, arguments), *pairs(output, **options)],
        cwd=workspace,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def weights(workspace, output):
    return torch.load(workspace / output / "model_final.pth")["model"]


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def launched(workspace):
    """The weights of two processes that Detectron2's launcher has started."""
    arguments = ["--config-file", CONFIG, "--num-gpus", "2", *pairs("launched")]
    answer = fork_server().run(workspace / "program.py", arguments, cwd=str(workspace))
    assert answer["status"] == 0, answer["err"][-3000:]
    return weights(workspace, "launched")


def test_the_same_weights_as_the_launcher(workspace, launched):
    """Also if a process is killed: torchrun restarts both from the last checkpoint."""
    arguments = ["--max-restarts", "1", "killed.py", "--resume", "--config-file", CONFIG]
    status, log = torchrun(workspace, "torchrun", *arguments)
    assert status == 0, log[-3000:]
    assert re.search(r"Starting training from iteration 2\b", log)
    assert_equal(weights(workspace, "torchrun"), launched)


def test_the_same_evaluation_as_one_process(workspace, launched, monkeypatch, write_stripes):
    """Also with fewer images for the second process than for the first."""
    options = {
        "DATASETS.TEST": ("mini_sem_seg_train",),
        "MODEL.WEIGHTS": "launched/model_final.pth",
        "TEST.MAX_IMAGES": 3,
        "INPUT.MIN_SIZE_TEST": 48,
    }
    arguments = ["--config-file", CONFIG, "--eval-only"]
    status, log = torchrun(workspace, "two", "program.py", *arguments, **options)
    assert status == 0, log[-3000:]
    options |= {"DATASETS.TRAIN": ("mini_sem_seg_train",)}
    monkeypatch.chdir(workspace)
    register_sem_seg("mini_sem_seg_train", "images", "labels", ["sky", "tree", "car"])
    try:
        args = parse_args([*map(str, arguments), *pairs("one", **options)])
        evaluate(read_config(args), args)
    finally:
        DatasetCatalog.remove("mini_sem_seg_train")
        MetadataCatalog.pop("mini_sem_seg_train")
    one, two = (json.loads(Path(folder, "results.json").read_text()) for folder in ("one", "two"))
    assert [x["environment"]["device"][-1] for x in (one, two)] == ["1", "2"]
    first, second = (found["results"]["mini_sem_seg_train"] for found in (one, two))
    assert first.pop("speed")["images"] == second.pop("speed")["images"] == 3
    assert first == second and first["sem_seg"]["mIoU"] > 0


@pytest.mark.parametrize(
    ("restarts", "arguments", "message"),
    [
        ("0", ["--num-gpus", "2"], "torchrun starts the processes: leave out --num-gpus"),
        ("1", [], "--max-restarts of torchrun needs --resume"),
        # Read after the processes have found each other.
        ("0", ["SOLVER.IMS_PER_BATCHES", "2"], "SOLVER.IMS_PER_BATCHES"),
    ],
)
def test_an_error_is_one_sentence(monkeypatch, restarts, arguments, message):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in {**alone, **address, "TORCHELASTIC_MAX_RESTARTS": restarts}.items():
        monkeypatch.setenv(name, str(value))
    try:
        with pytest.raises(SystemExit, match=message):
            start(parse_args(["--config-file", str(CONFIG), *arguments]))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        monkeypatch.setattr("detectron2.utils.comm._LOCAL_PROCESS_GROUP", None)
