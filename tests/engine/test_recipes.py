"""The COCO-Stuff configs: rescaling to other numbers of GPUs, and values that must agree."""

import re
from pathlib import Path

import pytest
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from dcp_clip.config import setup_cfg
from dcp_clip.engine import Trainer

FOLDER = Path(__file__).parents[2] / "configs" / "coco_stuff"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.startswith("Base"))


def schedule(cfg):
    solver = cfg.SOLVER
    return {
        "batch": solver.IMS_PER_BATCH,
        "lr": solver.BASE_LR,
        "iterations": solver.MAX_ITER,
        "warm-up": solver.WARMUP_ITERS,
        "evaluation": cfg.TEST.EVAL_PERIOD,
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_rescaling_to_four_gpus(path):
    """The table of docs/recipes.md."""
    cfg = setup_cfg(path)
    assert schedule(Trainer.auto_scale_workers(cfg, 8)) == schedule(cfg)
    assert schedule(Trainer.auto_scale_workers(cfg, 4)) == {
        "batch": 8,
        "lr": pytest.approx(1e-4),
        "iterations": 120_000,
        "warm-up": 2_000,
        "evaluation": 20_000,
    }
    # The same training on four GPUs, with four images on each.
    cfg = setup_cfg(path, ["SOLVER.REFERENCE_WORLD_SIZE", "4"])
    assert schedule(Trainer.auto_scale_workers(cfg, 4)) == schedule(setup_cfg(path))
    for num_gpus in (1, 2, 4, 16):  # the number of training images is the same
        seen = schedule(Trainer.auto_scale_workers(setup_cfg(path), num_gpus))
        assert seen["batch"] * seen["iterations"] == 960_000


class Unfed(Trainer):
    """A trainer without data."""

    @classmethod
    def build_train_loader(cls, cfg):
        cls.batch = cfg.SOLVER.IMS_PER_BATCH
        return [None]


def test_trainer_uses_the_rescaled_schedule(make_cfg, tmp_path, monkeypatch):
    options = {
        "SOLVER.REFERENCE_WORLD_SIZE": 8,
        "SOLVER.IMS_PER_BATCH": 16,
        "SOLVER.MAX_ITER": 1000,
        "SOLVER.WARMUP_ITERS": 100,
        "SOLVER.BASE_LR": 0.02,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "OUTPUT_DIR": str(tmp_path),
    }
    # Four processes; the trainer reads only their number.
    monkeypatch.setattr(comm, "get_world_size", lambda: 4)
    monkeypatch.setattr("dcp_clip.engine.trainer.create_ddp_model", lambda model, **_: model)
    trainer = Unfed(make_cfg(opts=options))
    assert Unfed.batch == 8
    assert trainer.max_iter == 2000
    rates = {}
    for iteration in range(trainer.max_iter):
        rates[iteration] = trainer.optimizer.param_groups[0]["lr"]
        trainer.scheduler.step()
    assert max(rates, key=rates.get) in (199, 200, 201)  # the end of twice the warm-up
    assert 0.009 < max(rates.values()) <= 0.01
    assert rates[1000] == pytest.approx(0.005, rel=0.1)  # the middle
    assert rates[1999] < 1e-7  # the schedule ends with the training


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_crop_size_is_a_multiple_of_the_patch_size(path):
    """Otherwise every batch would be padded."""
    cfg = setup_cfg(path)
    patch = re.search(r"-(14|16)\b", cfg.MODEL.CLIP.NAME)
    divisor = int(patch[1]) if patch else 32
    assert all(side % divisor == 0 for side in cfg.INPUT.CROP.SIZE)
    assert cfg.INPUT.MIN_SIZE_TEST == cfg.INPUT.CROP.SIZE[0]
    assert cfg.INPUT.MIN_SIZE_TRAIN[0] * 2 == cfg.INPUT.CROP.SIZE[0]
    assert cfg.INPUT.MIN_SIZE_TRAIN[-1] * 2 == cfg.INPUT.CROP.SIZE[0] * 3


def test_model_ignores_the_ignore_label_of_coco_stuff():
    cfg = setup_cfg(RECIPES[0])
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        assert MetadataCatalog.get(name).ignore_label == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE


def test_rescaled_periods_are_never_zero():
    opts = ["SOLVER.REFERENCE_WORLD_SIZE", "1", "SOLVER.IMS_PER_BATCH", "1"]
    opts += ["SOLVER.MAX_ITER", "9", "SOLVER.CHECKPOINT_PERIOD", "1", "TEST.EVAL_PERIOD"]
    cfg = Trainer.auto_scale_workers(setup_cfg("", [*opts, "1"]), 64)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD) == (1, 1, 1)
    assert Trainer.auto_scale_workers(setup_cfg("", [*opts, "0"]), 64).TEST.EVAL_PERIOD == 0
