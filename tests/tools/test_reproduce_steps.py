"""The rows of the EmojiScenes tables and the commands that lead to them."""

import json
import os
import sys
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import reproduce_plan  # noqa: E402
import reproduce_steps  # noqa: E402

from dcp_clip.config import setup_cfg  # noqa: E402
from dcp_clip.emoji_scenes.register import scene_list  # noqa: E402
from dcp_clip.emoji_scenes.subsets import SCENE_COUNTS  # noqa: E402
from dcp_clip.modeling import build as registries  # noqa: E402

PLAN = ROOT / "configs" / "emoji_scenes" / "ablation.yaml"
SMALL = """
base: base.yaml
seeds: [1, 2]
clip: {config: clip.yaml, weights: small.pth}
variants:
  - {name: default, note: all}
  - {name: plain, overrides: {MODEL.DCP_CLIP.DIM: 8, INPUT.COLOR_AUG_SSD: False}}
evaluations:
  - {name: coarse, weights_of: default, overrides: {MODEL.DCP_CLIP.OUTPUT: coarse}}
  - {name: wide, weights_of: plain, overrides: {INPUT.COLOR_AUG_SSD: True}}
training_free:
  - {name: free, config: free.yaml}
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A small plan whose config files are there."""
    monkeypatch.setattr(reproduce_steps, "ROOT", tmp_path)
    for name in ("base.yaml", "clip.yaml", "free.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "plan.yaml").write_text(SMALL)
    return reproduce_plan.load_plan(tmp_path / "plan.yaml")


def make_steps(plan, folder, names=None, seeds=(1, 2), **options):
    planner = reproduce_steps.Planner(plan, folder / "out", folder / "data", **options)
    steps = planner.steps(plan.choose(names), seeds)
    return {step.name: step for step in steps}


def config_of(step):
    """What a program makes of a step's arguments, without its config file."""
    args = default_argument_parser().parse_args(step.command[1:])
    return args, setup_cfg("", args.opts)


def test_the_projects_plan():
    plan = reproduce_plan.load_plan(PLAN)
    assert plan.rows[0].name == "default" and not plan.rows[0].overrides
    assert all(row.note and (ROOT / row.config).is_file() for row in plan.rows)
    kinds = {
        "PROPOSAL": registries.CATEGORY_PROPOSAL_REGISTRY,
        "TEXT_GUIDANCE": registries.TEXT_GUIDANCE_REGISTRY,
        "COARSE_DECODER": registries.COARSE_DECODER_REGISTRY,
        "FINE_DECODER": registries.FINE_DECODER_REGISTRY,
        "CLASS_REFINEMENT": registries.CLASS_REFINEMENT_REGISTRY,
    }
    default = setup_cfg(ROOT / plan.rows[0].config)
    for row in plan.rows:
        cfg = setup_cfg(ROOT / row.config, row.overrides)  # KeyError for a key that there is not
        assert all(cfg.MODEL.DCP_CLIP[node].NAME in kind for node, kind in kinds.items())
        if row.config == plan.rows[0].config and row.name != "default":
            assert cfg != default, f"{row.name} overrides nothing"


def test_each_step_comes_after_what_it_needs(plan, tmp_path):
    seen = set()
    for step in make_steps(plan, tmp_path).values():
        assert set(step.needs) <= seen
        seen.add(step.name)
    # Data, CLIP, and CLIP alone; two trainings and four evaluations a seed.
    assert len(seen) == 3 + 2 * 6
    assert list(seen & {"train coarse, seed 1", "train free, seed 1"}) == []


def test_commands(plan, tmp_path):
    steps = make_steps(plan, tmp_path, iterations=7)
    args, cfg = config_of(steps["train plain, seed 2"])
    assert (args.config_file, args.resume, args.eval_only) == ("base.yaml", True, False)
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST) == (2, 7, ())
    assert (cfg.MODEL.DCP_CLIP.DIM, cfg.INPUT.COLOR_AUG_SSD) == (8, False)
    assert (cfg.OUTPUT_DIR, cfg.MODEL.CLIP.PRETRAINED) == ("out/plain/seed2", "out/clip/small.pth")
    args, cfg = config_of(steps["evaluate coarse, seed 2"])
    assert args.eval_only and not args.resume
    assert cfg.MODEL.WEIGHTS == "out/default/seed2/model_final.pth"
    assert (cfg.OUTPUT_DIR, cfg.MODEL.DCP_CLIP.OUTPUT) == ("out/test/coarse/seed2", "coarse")
    names = ("base", "unseen", "unseen_style", "all")
    assert cfg.DATASETS.TEST == tuple(f"emoji_scenes_{name}_test" for name in names)
    # The model of the row that was trained, with overrides of its own on top.
    _, cfg = config_of(steps["evaluate wide, seed 2"])
    assert cfg.MODEL.WEIGHTS == "out/plain/seed2/model_final.pth"
    assert (cfg.MODEL.DCP_CLIP.DIM, cfg.INPUT.COLOR_AUG_SSD) == (8, True)
    args, cfg = config_of(steps["evaluate free"])
    assert (args.config_file, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR) == (
        "free.yaml",
        "",
        "out/test/free",
    )
    args, cfg = config_of(steps["clip"])
    assert args.resume and cfg.OUTPUT_DIR == "out/clip"


def test_overrides_of_all_rows_come_before_a_rows_own(plan, tmp_path):
    both = ("MODEL.DCP_CLIP.DIM", "4", "INPUT.COLOR_AUG_SSD", "False")
    steps = make_steps(plan, tmp_path, overrides=both)
    for name, dim in (("default, seed 1", 4), ("plain, seed 1", 8)):
        for step in ("train", "evaluate"):
            assert config_of(steps[f"{step} {name}"])[1].MODEL.DCP_CLIP.DIM == dim
    _, cfg = config_of(steps["evaluate wide, seed 1"])
    assert cfg.INPUT.COLOR_AUG_SSD
    assert config_of(steps["evaluate free"])[1].MODEL.DCP_CLIP.DIM == 4
    assert not set(both[:1]) & set(steps["clip"].command)


def test_output_elsewhere_is_named_in_full(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce_steps, "ROOT", tmp_path / "project")
    (tmp_path / "project").mkdir()
    for name in ("base.yaml", "clip.yaml", "free.yaml"):
        (tmp_path / "project" / name).touch()
    step = make_steps(plan, tmp_path)["clip"]
    assert step.command[-1] == str(tmp_path / "out" / "clip")


def test_validation_and_test_share_the_trainings(plan, tmp_path):
    val, test = (make_steps(plan, tmp_path, split=split) for split in ("val", "test"))
    same = {name for name in val if val[name].command == test[name].command}
    assert same == {name for name in val if not name.startswith("evaluate")}
    folders = [steps["evaluate default, seed 1"].folder for steps in (val, test)]
    assert folders[0] != folders[1]


def test_an_evaluation_brings_the_training_that_it_reads(plan, tmp_path):
    steps = make_steps(plan, tmp_path, ["coarse"], [2])
    assert list(steps) == ["data", "clip", "train default, seed 2", "evaluate coarse, seed 2"]


def test_what_takes_hours_is_made_on_request(plan, tmp_path):
    text = SMALL.replace("weights_of: default,", "weights_of: default, on_request: true,")
    (tmp_path / "plan.yaml").write_text(text)
    slow = reproduce_plan.load_plan(tmp_path / "plan.yaml")
    assert set(make_steps(plan, tmp_path)) - set(make_steps(slow, tmp_path)) == {
        "evaluate coarse, seed 1",
        "evaluate coarse, seed 2",
    }
    assert "evaluate coarse, seed 2" in make_steps(slow, tmp_path, ["coarse"])


def test_given_weights_of_clip_stand_for_its_pre_training(plan, tmp_path):
    clip = tmp_path / "given.pth"
    with pytest.raises(reproduce_plan.PlanError, match=r"given\.pth, do not exist"):
        make_steps(plan, tmp_path, clip=clip)
    clip.touch()
    steps = make_steps(plan, tmp_path, clip=clip)
    assert "clip" not in steps
    for name, step in steps.items():
        assert set(step.needs) <= set(steps)
        if name != "data":
            assert config_of(step)[1].MODEL.CLIP.PRETRAINED == "given.pth"


def test_the_second_base_split(plan, tmp_path):
    steps = make_steps(plan, tmp_path, base_split=1)
    assert steps["data"].command[-2:] == ("--split", "1")
    _, cfg = config_of(steps["train default, seed 1"])
    assert cfg.DATASETS.TRAIN == ("emoji_scenes_split1_base_train",)
    _, cfg = config_of(steps["evaluate free"])
    assert cfg.DATASETS.TRAIN == ("emoji_scenes_split1_base_train",)  # tells which names were seen
    names = ("base", "unseen", "unseen_style", "all")
    assert cfg.DATASETS.TEST == tuple(f"emoji_scenes_split1_{name}_test" for name in names)


def test_what_cannot_be_chosen(plan, tmp_path):
    with pytest.raises(reproduce_plan.PlanError, match="no row 'plane'; there are: default, plain"):
        plan.choose(["default", "plane"])
    (tmp_path / "free.yaml").unlink()
    with pytest.raises(reproduce_plan.PlanError, match=r"free\.yaml does not exist"):
        make_steps(plan, tmp_path)
    assert make_steps(plan, tmp_path, ["default"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("base: base.yaml", ""), "has no 'base'"),
        (("weights_of: default, ", ""), "has no 'weights_of'"),
        (("weights_of: default", "weights_of: free"), "'coarse' needs the weights of 'free'"),
        (("name: plain", "name: default"), "'default' cannot be the name"),
        (("name: plain", "name: test"), "'test' cannot be the name"),
        (("name: plain", "name: a/b"), "'a/b' cannot be the name"),
        (("note: all", "nota: all"), "a row of variants has the key 'nota'"),
        (("note: all", "weights_of: plain"), "a row of variants has the key 'weights_of'"),
        (("[1, 2]", "[one]"), "is no list of rows: .*one"),
        (("[1, 2]", "[1, 2"), "is no list of rows"),
    ],
)
def test_plans_at_fault(tmp_path, change, message):
    path = tmp_path / "plan.yaml"
    assert change[0] in SMALL
    path.write_text(SMALL.replace(*change))
    with pytest.raises(reproduce_plan.PlanError, match=message):
        reproduce_plan.load_plan(path)


def test_missing_plan(tmp_path):
    with pytest.raises(reproduce_plan.PlanError, match=r"absent\.yaml cannot be read: No such"):
        reproduce_plan.load_plan(tmp_path / "absent.yaml")


def test_a_training_is_done_once_its_last_checkpoint_is_complete(plan, tmp_path):
    steps = make_steps(plan, tmp_path)
    training, clip = steps["train default, seed 1"], steps["clip"]
    for step in (training, clip):
        step.folder.mkdir(parents=True)
        assert not step.is_done()
        (step.folder / "model_final.pth").touch()  # being written
        (step.folder / "last_checkpoint").write_text("model_0000009.pth")
        assert not step.is_done()
        (step.folder / "last_checkpoint").write_text("model_final.pth")
    assert training.is_done() and not clip.is_done()
    (clip.folder / "small.pth").touch()
    assert clip.is_done()


def test_an_evaluation_is_done_once_it_has_all_data_sets_of_these_weights(plan, tmp_path):
    steps = make_steps(plan, tmp_path)
    step, free = steps["evaluate default, seed 1"], steps["evaluate free"]
    weights = steps["train default, seed 1"].folder / "model_final.pth"
    clip = steps["clip"].folder / "small.pth"
    results = {f"emoji_scenes_{name}_test": {} for name in ("base", "unseen", "unseen_style")}
    for folder in (step.folder, free.folder, weights.parent, clip.parent):
        folder.mkdir(parents=True)

    def write():
        for folder in (step.folder, free.folder):
            (folder / "results.json").write_text(json.dumps({"results": results}))

    write()
    weights.touch()
    clip.touch()
    assert not step.is_done() and not free.is_done()
    results["emoji_scenes_all_test"] = {}
    write()
    assert step.is_done() and free.is_done()
    later = (step.folder / "results.json").stat().st_mtime + 60
    os.utime(weights, (later, later))  # trained anew
    assert not step.is_done() and free.is_done()
    os.utime(clip, (later, later))  # and CLIP, which needs no training to be read
    assert not free.is_done()
    os.utime(clip, (0, 0))
    weights.unlink()
    assert not step.is_done()
    (free.folder / "results.json").write_text("{")
    with pytest.raises(reproduce_plan.PlanError, match=r"free/results\.json is damaged"):
        free.is_done()


def test_data_are_done_once_all_scenes_of_the_benchmark_are(plan, tmp_path):
    step = make_steps(plan, tmp_path)["data"]
    for name, count in SCENE_COUNTS.items():
        assert not step.is_done()
        path = scene_list(tmp_path / "data" / "emoji_scenes", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"count": count}))
    assert step.is_done()
    path.write_text(json.dumps({"count": 8}))  # a demo's
    assert not step.is_done()
