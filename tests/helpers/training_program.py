"""Run train_net.py as a program on a small data set."""

import functools
import json
import re
import socket
from pathlib import Path

import numpy as np
from helpers.fork_server import ForkServer
from PIL import Image

ROOT = Path(__file__).parents[2]
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


@functools.cache
def fork_server() -> ForkServer:
    """Return the server of the trainings of this process."""
    return ForkServer(["dcp_clip_cli.training", "torch.utils.tensorboard"])


def command_line(output: str, *arguments: str, **options) -> list[str]:
    """Return the arguments of the program."""
    pairs = {**OPTIONS, "OUTPUT_DIR": output, **options}.items()
    return ["--config-file", str(CONFIG), *arguments, *(str(x) for pair in pairs for x in pair)]


def launch(
    workspace: Path, output: str, *arguments: str, program: str = "program.py", **options
) -> tuple[int, str]:
    """Run the program; return its exit status and its output, at the end its errors."""
    command = command_line(output, *arguments, **options)
    answer = fork_server().run(workspace / program, command, cwd=str(workspace))
    return answer["status"], answer["out"] + answer["err"]


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


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def two_processes() -> list[str]:
    return ["--num-gpus", "2", "--dist-url", f"tcp://127.0.0.1:{free_port()}"]
