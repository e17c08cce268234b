"""Resumed training equals undisturbed training to the last bit."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import hooks
from PIL import Image

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.data.train_loader import build_train_loader
from dcp_clip.engine.checkpoints.training_folder import training_folder
from dcp_clip.engine.resume import ResumeHook

NAME = "test_resume_sem_seg"
OPTIONS = {
    "DATASETS.TRAIN": (NAME,),
    "DATASETS.TEST": (NAME,),
    "TEST.EVAL_PERIOD": 3,
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (32, 40),
    "INPUT.MIN_SIZE_TEST": 32,
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SIZE": (32, 32),
    "INPUT.COLOR_AUG_SSD": True,
    "SOLVER.IMS_PER_BATCH": 3,
    "SOLVER.MAX_ITER": 7,
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "SOLVER.EMA_DECAY": 0.9,
    "SOLVER.OPTIMIZER": "MUON",
    "MODEL.CLIP.TRAIN_IMAGE": "all",
    # More categories than proposals, so that stage 1 draws random ranks.
    "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS": 2,
}


@pytest.fixture
def dataset(tmp_path):
    """Seven images, portrait and landscape, so that batches wait for similar aspect ratios."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for i in range(7):
        size = (40, 56) if i % 3 else (56, 40)
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        labels = rng.integers(0, 4, size, np.uint8)
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(labels).save(tmp_path / "labels" / f"{i}.png")
    names = ["sky", "tree", "car", "road"]
    register_sem_seg(NAME, tmp_path / "images", tmp_path / "labels", names)
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


@pytest.fixture
def make_config(make_cfg, dataset, tmp_path):
    def make(folder, **opts):
        # This ConvNeXt has stochastic depth, which uses the global random numbers.
        cfg = make_cfg("test-convnext", {**OPTIONS, **opts})
        cfg.SEED = opts.get("SEED", 3)
        cfg.OUTPUT_DIR = str(tmp_path / folder)
        (tmp_path / folder).mkdir(exist_ok=True)
        return cfg

    return make


@pytest.fixture
def train(run, interruptible):
    """``train(cfg, ...)``: as the fixture `run`, with the batches of the data set.

    Every iteration has a line in metrics.json.
    """

    class Trainer(interruptible):
        def build_hooks(self):
            result = super().build_hooks()
            for hook in result:
                if isinstance(hook, hooks.PeriodicWriter):
                    hook._period = 1
            return result

    return functools.partial(run, cls=Trainer)


def assert_same_state(a, b):
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name


def metrics(cfg):
    """The lines of metrics.json without times and speeds."""
    lines = Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()
    timed = ("time", "data_time", "rank_data_time", "eta_seconds")
    return [
        {k: v for k, v in json.loads(line).items() if k not in timed and "speed/" not in k}
        for line in lines
    ]


def test_interrupted_training_equals_undisturbed_training(make_config, train):
    before = make_config("undisturbed")
    expected = train(before)
    cfg = make_config("interrupted")
    train(cfg, stop_at=3)  # the last checkpoint is after 2 iterations
    train(cfg, stop_at=5, resume=True, seed=1001)
    resumed = train(cfg, resume=True, seed=1002)
    assert_same_state(expected, resumed)
    assert metrics(cfg) == metrics(before)
    # An evaluation after 3 and 6 iterations and at the end.
    evaluated = [x["iteration"] for x in metrics(cfg) if "sem_seg/mIoU" in x]
    assert evaluated == [2, 5, 7]


def test_longer_training_keeps_the_metrics(make_config, train):
    """Also the final evaluation of the shorter one."""
    cfg = make_config("a", **{"SOLVER.MAX_ITER": 2})
    train(cfg)
    before = metrics(cfg)
    assert [x["iteration"] for x in before] == [0, 1, 2]
    with Path(cfg.OUTPUT_DIR, "metrics.json").open("a") as file:
        file.write('{"iteration": 3, "total_l')  # a full disk, for example
    cfg.SOLVER.MAX_ITER = 4
    train(cfg, resume=True)
    assert metrics(cfg)[:3] == before
    assert [x["iteration"] for x in metrics(cfg)[3:]] == [2, 3, 4]


def test_evaluations_and_the_last_iteration_have_a_line(make_config, run, interruptible):
    """Other iterations have one every 20 iterations."""
    cfg = make_config("a")
    run(cfg, cls=interruptible, stop_at=5)
    run(cfg, cls=interruptible, resume=True)
    lines = {x["iteration"]: "sem_seg/mIoU" in x for x in metrics(cfg)}
    assert lines == {2: True, 5: True, 6: False, 7: True}


@pytest.mark.parametrize("period", [0, -1])
def test_a_period_that_is_not_positive_leaves_the_evaluation_at_the_end(
    make_config, run, interruptible, period
):
    """As in Detectron2."""
    cfg = make_config("a", **{"TEST.EVAL_PERIOD": period})
    run(cfg, cls=interruptible)
    lines = {x["iteration"]: "sem_seg/mIoU" in x for x in metrics(cfg)}
    assert lines == {6: False, 7: True}


def test_a_made_up_final_checkpoint_keeps_the_state_of_the_loader(make_config, train):
    """It is written before the first step of the resumed training."""
    cfg = make_config("a", **{"SOLVER.MAX_ITER": 4, "SOLVER.CHECKPOINT_PERIOD": 2})
    train(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text("model_0000003.pth")
    train(cfg, resume=True)
    last, final = (
        torch.load(folder / f"{name}.pth", weights_only=False)["trainer"]["hooks"]["ResumeHook"]
        for name in ("model_0000003", "model_final")
    )
    assert final["processes"][0]["loader"] == last["processes"][0]["loader"]


def test_same_seed_same_bits(make_config, train):
    """Without a seed of the program, the global random numbers count, too."""
    a, b = make_config("a"), make_config("b")
    assert_same_state(train(a), train(b))
    assert metrics(a) == metrics(b)


def test_one_warning_about_a_fallback(make_config, train, caplog):
    """With --resume, the programs look for the last checkpoint twice."""
    cfg = make_config("a")
    train(cfg, stop_at=5)
    (Path(cfg.OUTPUT_DIR) / "model_0000003.pth").write_bytes(b"")
    with training_folder(cfg, resume=True):
        resumed = train(cfg, resume=True)
    assert resumed.start_iter == 2
    assert caplog.text.count("the newest complete checkpoint") == 1


def test_another_seed_gives_another_training(make_config, train):
    a = train(make_config("a"))
    b = train(make_config("b", SEED=4))
    assert any(
        not torch.equal(value, b.model.state_dict()[name])
        for name, value in a.model.state_dict().items()
    )


def batches(loader, count):
    iterator = iter(loader)
    return [next(iterator) for _ in range(count)]


def assert_same_batches(a, b):
    for left, right in zip(a, b, strict=True):
        assert [x["file_name"] for x in left] == [x["file_name"] for x in right]
        for x, y in zip(left, right, strict=True):
            assert torch.equal(x["image"], y["image"])
            assert torch.equal(x["sem_seg"], y["sem_seg"])
            assert x.keys() == y.keys()
            assert not any(key.startswith("_") for key in x)


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_new_loader_continues_with_the_same_batches(make_config, grouping, workers):
    opts = {"DATALOADER.ASPECT_RATIO_GROUPING": grouping}
    np.random.seed(3)  # as default_setup does; the sampler draws its seed
    expected = batches(build_train_loader(make_config("a", **opts)), 6)
    opts["DATALOADER.NUM_WORKERS"] = workers
    cfg = make_config("b", **opts)
    np.random.seed(3)
    first = build_train_loader(cfg)
    iterator = iter(first)
    start = [next(iterator) for _ in range(3)]
    state = first.state_dict()
    second = build_train_loader(cfg)
    second.load_state_dict(state)
    assert_same_batches(start + batches(second, 3), expected)


@pytest.mark.parametrize("grouping", [True, False])
def test_loading_does_not_use_the_global_random_numbers(make_config, grouping):
    loader = build_train_loader(make_config("a", **{"DATALOADER.ASPECT_RATIO_GROUPING": grouping}))
    torch.manual_seed(5)
    np.random.seed(5)
    batches(loader, 3)
    drawn = torch.rand(3), np.random.rand(3)
    torch.manual_seed(5)
    np.random.seed(5)
    assert torch.equal(drawn[0], torch.rand(3))
    assert np.array_equal(drawn[1], np.random.rand(3))


def test_random_seed_is_kept(make_config):
    """With SEED -1 the seed is drawn, and a resumed training has the one of the first start."""
    cfg = make_config("a", SEED=-1)
    first = build_train_loader(cfg)
    expected = batches(first, 2)
    second = build_train_loader(cfg)
    second.load_state_dict({**first.state_dict(), "used": 0, "waiting": []})
    assert_same_batches(batches(second, 2), expected)


def test_random_seed_is_kept_by_another_number_of_processes(make_config):
    cfg = make_config("a", SEED=-1)
    state, resumed = build_train_loader(cfg).state_dict(), build_train_loader(cfg)
    # Two processes have used three images each.
    processes = [{"loader": {**state, "used": 3}, "random": {}}] * 2
    hook = ResumeHook(resumed, 2)
    hook.load_state_dict({"processes": processes})
    assert resumed.state_dict() == {**state, "used": 6}
    assert hook.state_dict() == {"processes": processes}  # for a checkpoint before the first step
