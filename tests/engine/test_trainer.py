"""The trainer: resuming, averaging, schedules and what it refuses."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from PIL import Image

from dcp_clip.checkpoint import load_weights
from dcp_clip.data.register import register_sem_seg
from dcp_clip.engine import Trainer
from dcp_clip.vocabulary import Vocabulary

NAME = "test_trainer_sem_seg"
BASE = {
    "DATASETS.TRAIN": (NAME,),
    "DATASETS.TEST": (),
    "DATALOADER.NUM_WORKERS": 0,
    "INPUT.MIN_SIZE_TRAIN": (32,),
    "INPUT.MIN_SIZE_TEST": 32,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
    "SOLVER.WARMUP_ITERS": 2,
    "SOLVER.MAX_ITER": 6,
    "SOLVER.CHECKPOINT_PERIOD": 3,
    "SOLVER.EMA_DECAY": 0.9,
    "MODEL.CLIP.TRAIN_TEXT": "all",
    "MODEL.CLIP.TRAIN_IMAGE": "late",
    "MODEL.DCP_CLIP.PROPOSAL.RANDOM_RATIO": 0.0,
}


@pytest.fixture
def dataset(tmp_path):
    """Three images of 40 x 48 in three categories, registered as NAME."""
    rng = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for i in range(3):
        image = rng.integers(0, 256, (40, 48, 3), np.uint8)
        label = np.repeat(np.arange(3, dtype=np.uint8), 16)[None].repeat(40, 0)
        label[: 5 * i] = 255
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{i}.png")
    register_sem_seg(NAME, tmp_path / "images", tmp_path / "labels", ["sky", "tree", "car"])
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


@pytest.fixture
def config(make_cfg, dataset, tmp_path):
    def config(folder="out", **opts):
        # A ViT: no stochastic depth, so that steps can be repeated.
        cfg = make_cfg("test-vit-16", {**BASE, **opts})
        cfg.OUTPUT_DIR = str(tmp_path / folder)
        (tmp_path / folder).mkdir(exist_ok=True)
        return cfg

    return config


class Repeating(Trainer):
    """Every iteration sees the same batch; breaks off when `stop_at` is reached."""

    stop_at = None

    @classmethod
    def build_train_loader(cls, cfg):
        generator = torch.Generator().manual_seed(5)
        vocabulary = Vocabulary.from_dataset(NAME)
        batch = [
            {
                "image": torch.randint(0, 256, (3, 32, 48), generator=generator).byte(),
                "sem_seg": torch.randint(0, 3, (32, 48), generator=generator),
                "vocabulary": vocabulary,
            }
        ]

        class Forever:
            def __iter__(self):
                while True:
                    yield batch

        return Forever()

    def run_step(self):
        if self.iter == self.stop_at:
            raise KeyboardInterrupt
        super().run_step()


def run(cfg, resume=False, stop_at=None, cls=Repeating):
    torch.manual_seed(0)
    trainer = cls(cfg)
    trainer.stop_at = stop_at
    trainer.resume_or_load(resume)
    if stop_at is None:
        trainer.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    return trainer


def test_interrupted_and_resumed_training_equals_uninterrupted(config):
    whole = run(config("whole"))
    run(config("broken"), stop_at=4)  # the last checkpoint is of three iterations
    resumed = run(config("broken"), resume=True)
    assert resumed.start_iter == 3
    expected = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)
    a, b = (t.optimizer.param_groups[-1]["lr"] for t in (whole, resumed))
    assert a == pytest.approx(b)


@pytest.mark.parametrize("grouping", [True, False])
def test_a_resumed_training_goes_on_in_the_order_of_the_images(config, grouping):
    options = {"DATALOADER.ASPECT_RATIO_GROUPING": grouping, "SEED": 3}

    def files_from(start):
        """Names of the images of the next four batches, by a new process."""
        cfg = config(**options)
        seed_all_rng(cfg.SEED)
        trainer = Trainer(cfg)
        if start:
            trainer.iter = start - 1
            trainer.checkpointer.save("model")
        trainer.resume_or_load(resume=True)
        assert trainer.start_iter == start
        batches = iter(trainer._trainer.data_loader)
        return [[x["file_name"] for x in next(batches)] for _ in range(4)]

    first, third = files_from(0), files_from(2)
    assert third[:2] == first[2:]
    assert third != first


@pytest.mark.parametrize("stop_at", [None, 3, 5])
def test_the_image_tower_can_start_frozen(config, stop_at):
    """Whether or not the training is interrupted, before the tower joins in or after."""
    opts = {"SOLVER.FREEZE_IMAGE_ITERS": 4, "SOLVER.CHECKPOINT_PERIOD": 1}
    straight = run(config("straight", **opts))

    class Watching(Repeating):
        towers = {}  # before each iteration

        def run_step(self):
            weights = [p.detach().clone() for p in self.model.backbone.parameters()]
            self.towers[self.iter] = torch.cat([p.flatten() for p in weights])
            super().run_step()

    if stop_at is not None:
        run(config("watched", **opts), stop_at=stop_at, cls=Watching)
    watched = run(config("watched", **opts), resume=stop_at is not None, cls=Watching)
    start = Watching.towers[0]
    moved = [i for i, weights in Watching.towers.items() if not torch.equal(weights, start)]
    assert moved == [5]  # by the step of iteration 4
    expected = straight.model.state_dict()
    for key, value in watched.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    "opts, message",
    [
        ({"SOLVER.FREEZE_IMAGE_ITERS": 6}, "below that"),
        ({"SOLVER.FREEZE_IMAGE_ITERS": -1}, "at least 0"),
        ({"SOLVER.FREEZE_IMAGE_ITERS": 2, "MODEL.CLIP.TRAIN_IMAGE": "none"}, "TRAIN_IMAGE"),
    ],
)
def test_a_frozen_start_that_says_nothing_is_refused(config, opts, message):
    with pytest.raises(ValueError, match=message):
        Trainer(config(**opts))


def test_a_training_stopped_before_its_final_checkpoint_gets_one(config, tmp_path):
    """As when the disk was full, or the process killed, between the last two files."""
    whole = run(config())
    folder = tmp_path / "out"
    last = f"model_{whole.max_iter - 1:07d}.pth"
    assert (folder / last).is_file()
    (folder / "model_final.pth").write_bytes(b"half of it")
    (folder / "last_checkpoint").write_text(last)
    resumed = run(config(), resume=True)
    assert resumed.start_iter == whole.max_iter
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(saved["model"][name], value), name
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_the_final_checkpoint_is_the_average(config, tmp_path):
    trainer = run(config())
    saved = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    average = saved["trainer"]["hooks"]["EMAHook"]["average"]
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(saved["model"][name], average[name]), name
        assert torch.equal(saved["model"][name], parameter), name
    middle = torch.load(tmp_path / "out" / "model_0000002.pth", weights_only=True)
    average = middle["trainer"]["hooks"]["EMAHook"]["average"]
    trained = [n for n, p in trainer.model.named_parameters() if p.requires_grad]
    assert any(not torch.equal(middle["model"][n], average[n]) for n in trained)


def test_evaluation_is_of_the_average(config, monkeypatch):
    """Within training the averaged weights are evaluated, and training goes on with its own."""
    seen = []

    def test(cls, cfg, model, evaluators=None):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return {}

    monkeypatch.setattr(Repeating, "test", classmethod(test))
    trainer = run(config(**{"TEST.EVAL_PERIOD": 2, "SOLVER.MAX_ITER": 9}), stop_at=5)
    assert len(seen) == 2
    average = trainer._ema.state_dict()["average"]
    assert any(not torch.equal(p, average[n]) for n, p in trainer.model.named_parameters())
    without = run(config("without", **{"SOLVER.MAX_ITER": 9}), stop_at=5)
    for (n, a), b in zip(trainer.model.named_parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b), n


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_report_in_training_names_the_iteration(config, monkeypatch, decay):
    """Not the file that the training started from."""
    named = []

    def test(cls, cfg, model, evaluators=None):
        named.append(cfg.MODEL.WEIGHTS)
        return {}

    monkeypatch.setattr(Repeating, "test", classmethod(test))
    run(config(**{"TEST.EVAL_PERIOD": 2, "SOLVER.MAX_ITER": 4, "SOLVER.EMA_DECAY": decay}))
    assert [int(text.split()[-2]) for text in named] == [2, 4]


@pytest.mark.parametrize("name", ["WarmupPolyLR", "WarmupCosineLR"])
def test_a_finished_training_goes_on_to_a_later_end(config, name):
    """Detectron2's WarmupPolyLR restores the old end, and fails behind it."""
    schedule = {"SOLVER.LR_SCHEDULER_NAME": name}
    run(config(**schedule, **{"SOLVER.MAX_ITER": 3}))
    resumed = run(config(**schedule, **{"SOLVER.MAX_ITER": 8}), resume=True)
    assert resumed.start_iter == 3
    whole = run(config("whole", **schedule, **{"SOLVER.MAX_ITER": 8}))
    a, b = (t.optimizer.param_groups[-1]["lr"] for t in (resumed, whole))
    assert a == pytest.approx(b)


def test_any_checkpoint_is_read_as_the_average(config, tmp_path):
    """So that --eval-only gives the figures that the log gave at that iteration."""
    trainer = run(config())
    path = tmp_path / "out" / "model_0000002.pth"
    average = torch.load(path, weights_only=True)["trainer"]["hooks"]["EMAHook"]["average"]
    load_weights(trainer.model, str(path))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, average[name]), name


def test_losses_are_logged_by_name(config):
    with EventStorage() as storage:
        trainer = Repeating(config())
        trainer.iter = 0
        trainer._trainer.iter = 0
        trainer.run_step()
        names = set(storage.histories())
    parts = {"coarse", "fine", "final"}
    expected = {f"loss_{p}_{k}" for p in parts for k in ("ce", "dice")}
    assert names >= expected | {"loss_presence", "loss_mask_class", "total_loss"}


def test_training_lowers_the_loss(config):
    cfg = config(**{"SOLVER.MAX_ITER": 15, "SOLVER.EMA_DECAY": 0.0, "SOLVER.WARMUP_ITERS": 0})
    torch.manual_seed(0)
    trainer = Repeating(cfg)
    batch = next(iter(trainer.data_loader))

    def loss():
        trainer.model.train()
        with torch.no_grad():
            return float(sum(trainer.model(batch).values()))

    losses = [loss()]
    trainer.train()
    losses.append(loss())
    assert losses[1] < 0.8 * losses[0]


def test_records_come_from_the_data_set(config):
    records = next(iter(Trainer.build_train_loader(config())))
    assert all(r["image"].shape[-2:] == r["sem_seg"].shape for r in records)
    # Two of the three images, in random order; one of the three has no void.
    assert max(r["sem_seg"].max() for r in records) == 255
    (record,) = next(iter(Trainer.build_test_loader(config(), NAME)))
    assert record["vocabulary"] == Vocabulary.from_dataset(NAME)
    assert (record["height"], record["width"]) == (40, 48)


def test_data_sets_of_different_categories(config, tmp_path):
    other = NAME + "_other"
    register_sem_seg(other, tmp_path / "images", tmp_path / "labels", ["sky", "tree", "bus"])
    try:
        with pytest.raises(ValueError, match="DATASETS.TRAIN.*same categories"):
            Trainer.build_train_loader(config(**{"DATASETS.TRAIN": (NAME, other)}))
    finally:
        DatasetCatalog.remove(other)
        MetadataCatalog.pop(other)


def test_half_precision_needs_cuda(config):
    with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED.*BF16"):
        Trainer(config(**{"SOLVER.AMP.ENABLED": True}))


def test_other_tasks_are_refused(config):
    MetadataCatalog.pop(NAME)
    MetadataCatalog.get(NAME).set(evaluator_type="coco", stuff_classes=["a"], ignore_label=255)
    with pytest.raises(ValueError, match=f"'{NAME}' has evaluator_type 'coco'"):
        Trainer.build_evaluator(config(), NAME)


def test_weights_that_do_not_fit_stop_the_training(config, tmp_path):
    from dcp_clip.checkpoint import WeightsError

    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    trainer = Repeating(config(**{"MODEL.WEIGHTS": str(tmp_path / "other.pth")}))
    with pytest.raises(WeightsError, match="other.pth"):
        trainer.resume_or_load(resume=False)
