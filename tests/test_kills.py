"""Trainings that are killed at random moments equal undisturbed ones, to the last bit.

python -m pytest tests/test_kills.py --kills 20
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
TIMED = ("time", "data_time", "rank_data_time", "eta_seconds", "speed/")
TRAIN = {
    "DATASETS.TRAIN": ("mini",),
    "DATASETS.TEST": ("mini",),
    "MODEL.DEVICE": "cpu",
    "INPUT.MIN_SIZE_TRAIN": (32, 40),
    "INPUT.MIN_SIZE_TEST": 32,
    "INPUT.CROP.SIZE": (32, 32),
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 5,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "TEST.EVAL_PERIOD": 2,
}
PRETRAIN = {
    "PRETRAIN.SINGLE_SIZES": (32,),
    "PRETRAIN.SCENE_SIZES": (48,),
    "PRETRAIN.SINGLE_PIXELS": 8 * 32**2,
    "PRETRAIN.SCENE_PIXELS": 4 * 48**2,
    "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": "single",
    "MODEL.DEVICE": "cpu",
    "SOLVER.MAX_ITER": 5,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.EMA_DECAY": 0.9,
    "TEST.EVAL_PERIOD": 3,
}
# A module that draws the textures of the pre-training once, before the forks. It takes seconds.
DRAW_TEXTURES = """
from dcp_clip.emoji_scenes.names import load_name_list
from dcp_clip.emoji_scenes.pretraining import drawing, pairs

stuff = tuple(kind.name for kind in load_name_list().stuff)
drawing._texture_levels(stuff, pairs.PairOptions().textures)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """DATASETS.SEM_SEG_FOLDERS with five images of three categories."""
    folder, rng = tmp_path_factory.mktemp("mini"), np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(5):
        label = np.kron(rng.integers(0, 3, (4, 4)), np.ones((8, 8), int))
        image = 80 * label[..., None] + rng.integers(0, 60, (32, 32, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(label.astype(np.uint8)).save(folder / "labels" / f"{i}.png")
    paths = {kind: str(folder / kind) for kind in ("images", "labels")}
    return json.dumps([{"name": "mini", **paths, "names": ["sky", "tree", "car"]}])


@pytest.fixture(scope="module", params=["train_net.py", "tools/pretrain_clip.py"])
def start(request, fork_program, folders, write_sprites, tmp_path_factory):
    """``start(output, *flags, action, at)``: run a program, see the fixture `fork_program`."""
    if request.param == "train_net.py":
        config, options = (
            "camvid/dcp_clip_tiny.yaml",
            {**TRAIN, "DATASETS.SEM_SEG_FOLDERS": folders},
        )
        modules = ["dcp_clip.engine"]
    else:
        config, options = "emoji_scenes/clip_tiny.yaml", PRETRAIN
        modules = ["draw_textures"]
    data = tmp_path_factory.mktemp("data")
    write_sprites(data)
    (data / "draw_textures.py").write_text(DRAW_TEXTURES)
    modules.append("torch.utils.tensorboard")
    environment = {"DETECTRON2_DATASETS": str(data), "PYTHONPATH": f"{ROOT}{os.pathsep}{data}"}
    program = fork_program(request.param, *modules, **environment)

    def run(output, *flags, action="none", at=0):
        values = {**options, "OUTPUT_DIR": output}
        opts = [x for pair in values.items() for x in pair]
        arguments = ["--config-file", ROOT / "configs" / config, *flags, *opts]
        return program(arguments, output, action, at)

    return run


def without_times(metrics: dict) -> dict:
    return {key: value for key, value in metrics.items() if not key.startswith(TIMED)}


def contents(output: Path) -> dict[str, object]:
    """Return what a training leaves, by the names of the files; without logs, times and speeds."""
    assert not list(output.glob(".*.part"))
    found: dict[str, object] = {"last_checkpoint": (output / "last_checkpoint").read_text()}
    lines = (output / "metrics.json").read_text().splitlines()
    found["metrics.json"] = [without_times(json.loads(line)) for line in lines]
    for path in output.glob("*.pth"):
        found[path.name] = torch.load(path, weights_only=True)
        if "trainer" in found[path.name]:
            state = found[path.name]["trainer"]["hooks"]["MetricsHook"]
            state["recent"] = without_times(state["recent"])
    return found


def assert_equal(a: object, b: object, where: str = "") -> None:
    """Compare nested values, to the last bit; an error names the first that differs."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b)):
            assert_equal(x, y, f"{where}/{i}")
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


@pytest.fixture(scope="module")
def undisturbed(start, tmp_path_factory):
    """The contents of the folder of an undisturbed training, and the number of its moments."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    answer = start(output)
    assert answer["status"] == 0, answer["err"]
    found = contents(output)
    assert {"model_0000001.pth", "model_0000003.pth", "model_final.pth"} <= found.keys()
    assert answer["moments"] >= 30
    return found, answer["moments"]


def test_kill_9_and_resume(start, undisturbed, random_moments, tmp_path):
    """Weights, average, optimizer, random numbers and metrics are those of the undisturbed one."""
    expected, count = undisturbed
    for at in random_moments(count, seed=0, number=2):
        output = tmp_path / str(at)
        assert start(output, action="kill", at=at)["status"] == -9
        if at % 2:
            start(output, "--resume", action="kill", at=at // 3 + 1)  # the second start, too
        answer = start(output, "--resume")
        assert answer["status"] == 0, answer["err"]
        assert_equal(contents(output), expected, f"killed at {at}")
