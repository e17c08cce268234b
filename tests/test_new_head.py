"""docs/new_head.md: its head is trained, evaluated and measured by the programs that it names."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode
from PIL import Image

from dcp_clip import Predictor, setup_cfg
from dcp_clip.emoji_scenes.register import BENCHMARK, register_emoji_scenes
from dcp_clip_cli import training
from dcp_clip_cli.train import parse_args

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "new_head.md").read_text(encoding="utf-8")
SUBSETS = ["base_train", *(f"{name}_test" for name in ("base", "unseen", "unseen_style", "all"))]
# What makes the commands of the page short.
SMALL = "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 INPUT.MIN_SIZE_TEST 64 INPUT.MIN_SIZE_TRAIN (64,)"
SMALL = [*SMALL.split(), "MODEL.DEVICE", "cpu", "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", ""]


def block(language: str) -> str:
    """The only block of this language on the page."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    return text


COMMANDS = [shlex.split(line) for line in block("bash").replace("\\\n", " ").splitlines()]


def command(program: str) -> list[str]:
    """The arguments of the first command of the page that runs the program."""
    return next(words[2:] for words in COMMANDS if words[1] == program)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """The files of the page, a miniature of EmojiScenes, and a photograph."""
    folder, rng = tmp_path_factory.mktemp("new_head"), np.random.default_rng(0)
    (folder / "my_heads.py").write_text(block("python"))
    (folder / "my_head.yaml").write_text(block("yaml"))
    (folder / "configs").symlink_to(ROOT / "configs")
    data = folder / "data" / "emoji_scenes"
    for name in SUBSETS:
        for kind in ("images", "labels"):
            (data / kind / name).mkdir(parents=True)
        for i in range(3):
            label = np.kron(rng.integers(0, 9, (4, 4)), np.ones((16, 16), int))
            kind = np.uint16 if name.startswith("all") else np.uint8
            image = 20 * label[..., None] + rng.integers(0, 60, (64, 64, 3))
            Image.fromarray(label.astype(kind)).save(data / "labels" / name / f"{i}.png")
            Image.fromarray(image.astype(np.uint8)).save(data / "images" / name / f"{i}.png")
        (data / "scenes").mkdir(exist_ok=True)
        (data / "scenes" / f"{name}.json").write_text('{"count": 3}')
    (data / "settings.json").write_text(json.dumps(BENCHMARK))
    (folder / "photos").mkdir()
    Image.fromarray(image.astype(np.uint8)).save(folder / "photos" / "a.png")
    register_emoji_scenes(folder / "data")
    yield folder
    register_emoji_scenes()


@pytest.fixture
def inside(workspace, monkeypatch):
    """The working directory is the workspace, and my_heads is not in Python's path otherwise."""
    monkeypatch.chdir(workspace)
    monkeypatch.setattr(sys, "path", sys.path[:])
    return workspace


@pytest.fixture(scope="module")
def trained(workspace):
    """The output folder of the first command of the page."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr(sys, "path", sys.path[:])
        small = [*SMALL, "DATASETS.TEST", "()"]
        training.main(parse_args([*command("train_net.py"), *small]))
    return workspace / "output" / "my_head"


def test_the_example_is_short():
    assert len(block("python").splitlines()) <= 62


def test_training(trained):
    """The head's own loss is added to those of the criterion, and config.yaml names the module."""
    lines = [json.loads(line) for line in (trained / "metrics.json").read_text().splitlines()]
    assert {"loss_boundary", "loss_fine_ce", "loss_fine_dice"} <= set(lines[-1])
    parts = [value for key, value in lines[-1].items() if key.startswith("loss_")]
    assert lines[-1]["loss_boundary"] > 0
    assert lines[-1]["total_loss"] == pytest.approx(sum(parts), rel=1e-3)
    saved = yaml.safe_load((trained / "config.yaml").read_text())["MODEL"]
    assert tuple(saved["IMPORTS"]) == ("my_heads",)
    assert saved["BOUNDARY"] == {"DIM": 64, "WEIGHT": 0.5}


def test_evaluation_of_a_part(inside, trained):
    arguments = [words[2:] for words in COMMANDS if "--eval-only" in words][0]
    assert arguments[-2:] == ["TEST.MAX_IMAGES", "100"]
    arguments = [*arguments[:-1], "2", *SMALL, "MODEL.BOUNDARY.WEIGHT", "0.25"]
    results = training.main(parse_args(arguments))
    assert {name: r["speed"]["images"] for name, r in results.items()} == {
        f"emoji_scenes_{name}": 2 for name in SUBSETS[1:]
    }
    report = json.loads((trained / "results.json").read_text())["environment"]
    assert report["images"] == "at most 2 of each data set, evenly spaced (TEST.MAX_IMAGES)"
    assert report["imported modules"] == "my_heads"
    assert "MODEL.BOUNDARY.DIM 64, MODEL.BOUNDARY.WEIGHT 0.25" in report["other settings"]


def test_cost(inside, load_program, capsys):
    arguments = [*command("tools/benchmark.py"), "--repeats", "1", "--device", "cpu"]
    load_program("tools/benchmark.py").main([*arguments, "--json", "cost.json"])
    rows = json.loads(Path("cost.json").read_text())["results"][0]["rows"]
    assert [(row["categories"], row["proposals"]) for row in rows] == [(174, 174), (611, 611)]


def test_training_step_and_dry_run(inside, load_program, capsys):
    """Programs that the page does not name."""
    file = ["--import", "my_heads", "--config-file", "my_head.yaml"]
    arguments = ["--train", "--size", "64", "64", "--vocabulary-sizes", "9", "--repeats", "1"]
    load_program("tools/benchmark.py").main([*file, *arguments, "--device", "cpu"])
    load_program("tools/dry_run.py").main(
        [*file, "--output", "dry_run", "--opts", *SMALL, "MODEL.CLIP.TRAIN_IMAGE", "none"]
    )
    assert "BoundarySegmentor" in capsys.readouterr().out


def test_demo_and_predictor(inside, trained, load_program):
    arguments = command("demo/demo.py")
    assert load_program("demo/demo.py").main(arguments) == 0
    (line,) = (inside / "output" / "my_photos" / "results.jsonl").read_text().splitlines()
    assert json.loads(line)["width"] == 64
    weights = trained / "model_final.pth"
    predictor = Predictor.from_config_file(trained / "config.yaml", weights, imports=["my_heads"])
    assert predictor("photos/a.png", vocabulary="cat; dog").label_map.shape == (64, 64)


def test_reproduction(inside, load_program):
    """Its first training, as train_net.py runs it."""
    reproduction = load_program("tools/reproduce_emoji_scenes.py")
    args = reproduction.get_parser().parse_args(command("tools/reproduce_emoji_scenes.py"))
    rows, _ = reproduction.load_rows(ROOT / reproduction.PLAN)
    (first,), (evaluation,) = reproduction.make_tasks(args, rows, [1])
    assert evaluation.arguments[3:5] == ["--import", "my_heads"]
    training.main(parse_args([*first.arguments, *SMALL]))
    config = setup_cfg(first.folder / "config.yaml", imports=["my_heads"])
    assert config.MODEL.META_ARCHITECTURE == "BoundarySegmentor" and first.is_done()


@pytest.mark.parametrize("program", ["train_net.py", "tools/benchmark.py", "demo/demo.py"])
def test_a_config_without_import_names_the_option(inside, trained, load_program, program):
    """Even if the module is in Python's path, or was imported before."""
    module = load_program(program)
    file = ["--config-file", str(trained / "config.yaml")]
    more = {"train_net.py": ["--eval-only"], "demo/demo.py": ["--input", "photos"]}
    with pytest.raises((ValueError, SystemExit)) as raised:
        module.main([*file, *more.get(program, [])])
    message = str(raised.value)
    assert "\n" not in message and "config.yaml': MODEL.IMPORTS names my_heads" in message
    assert "add --import my_heads" in message


def test_changed_keys_of_the_head_are_not_resumed(inside, trained):
    arguments = [*command("train_net.py"), "--resume", *SMALL]
    with pytest.raises(ValueError, match=r"MODEL\.BOUNDARY\.DIM was 64 and is 32"):
        training.main(parse_args([*arguments, "MODEL.BOUNDARY.DIM", "32"]))


def test_modules_that_cannot_be_imported(inside):
    """A name that is wrong is one sentence; an error inside a module keeps its traceback."""
    (inside / "needs_more.py").write_text("import a_module_that_is_missing\n")
    (inside / "plain_module.py").write_text("")
    with pytest.raises(ValueError, match="there is no module 'my_hedas' in the working directory"):
        setup_cfg(imports=["my_hedas"])
    with pytest.raises(ValueError, match="there is no module 'my_heads.deeper'"):
        setup_cfg(imports=["my_heads.deeper"])
    with pytest.raises(ValueError, match="'heads/my.py' is not the name of a Python module"):
        setup_cfg(imports=["heads/my.py"])
    with pytest.raises(ValueError, match="'my_heads.py' is not the name .*: write 'my_heads'"):
        setup_cfg(imports=["my_heads.py"])
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        setup_cfg(imports=["needs_more"])
    with pytest.raises(ValueError, match="the options: MODEL.IMPORTS names my_heads, and"):
        setup_cfg(opts=["MODEL.IMPORTS", "('my_heads',)"])
    cfg = setup_cfg("my_head.yaml", imports=["plain_module", "my_heads", "my_heads"])
    assert cfg.MODEL.IMPORTS == ("plain_module", "my_heads")
    assert isinstance(cfg.MODEL.BOUNDARY, CfgNode)
