"""The trainer: resuming, averaging, schedules and errors."""

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventStorage

from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine import Trainer
from dcp_clip.engine.checkpoints.loading import WeightsError, load_weights


def test_interrupted_and_resumed_training_equals_uninterrupted(config, run):
    whole = run(config("whole"))
    run(config("broken"), stop_at=4)  # the last checkpoint has three iterations
    resumed = run(config("broken"), resume=True)
    assert resumed.start_iter == 3
    expected = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)
    a, b = (t.optimizer.param_groups[-1]["lr"] for t in (whole, resumed))
    assert a == pytest.approx(b)


@pytest.mark.parametrize("grouping", [True, False])
def test_resumed_training_continues_the_order_of_images(config, grouping):
    options = {"DATALOADER.ASPECT_RATIO_GROUPING": grouping, "SEED": 3}

    def files_from(start):
        """File names in the next four batches of a new trainer."""
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


def test_missing_final_checkpoint_is_written(config, tmp_path, run):
    """For example, if the disk was full or the process was killed before model_final.pth."""
    whole = run(config())
    folder = tmp_path / "out"
    last = f"model_{whole.max_iter - 1:07d}.pth"
    assert (folder / last).is_file()
    (folder / "model_final.pth").write_bytes(b"incomplete")
    (folder / "last_checkpoint").write_text(last)
    resumed = run(config(), resume=True)
    assert resumed.start_iter == whole.max_iter
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(saved["model"][name], value), name
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"


def test_final_checkpoint_is_the_average(config, tmp_path, run):
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


def test_evaluation_uses_the_average(config, monkeypatch, repeating, run):
    """Evaluations during training use the average and do not change the training."""
    seen = []

    def test(cls, cfg, model, evaluators=None):
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        return {}

    monkeypatch.setattr(repeating, "test", classmethod(test))
    trainer = run(config(**{"TEST.EVAL_PERIOD": 2, "SOLVER.MAX_ITER": 9}), stop_at=5)
    assert len(seen) == 2
    average = trainer._ema.state_dict()["average"]
    assert any(not torch.equal(p, average[n]) for n, p in trainer.model.named_parameters())
    without = run(config("without", **{"SOLVER.MAX_ITER": 9}), stop_at=5)
    for (n, a), b in zip(trainer.model.named_parameters(), without.model.parameters(), strict=True):
        assert torch.equal(a, b), n


def test_an_average_that_was_just_switched_on_is_that_of_the_checkpoint(config, repeating, run):
    """For example, in the evaluation of a finished training."""
    trained = run(config(**{"SOLVER.EMA_DECAY": 0.0})).model.state_dict()
    resumed = run(config(), resume=True)
    for name, value in resumed._ema.average.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_resumed_training_has_the_rates_of_the_config(config, run):
    run(config(), stop_at=4)
    changed = {"SOLVER.BASE_LR": 0.001, "SOLVER.WEIGHT_DECAY": 0.3}
    resumed = run(config(**changed), resume=True, stop_at=4)
    new = run(config("new", **changed), stop_at=4)
    assert resumed.start_iter == 3
    for a, b in zip(resumed.optimizer.param_groups, new.optimizer.param_groups, strict=True):
        assert {k: a[k] for k in ("lr", "initial_lr", "weight_decay")} == {
            k: b[k] for k in ("lr", "initial_lr", "weight_decay")
        }


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_report_during_training_names_the_iteration(config, monkeypatch, decay, repeating, run):
    named = []

    def test(cls, cfg, model, evaluators=None):
        named.append(cfg.MODEL.WEIGHTS)
        return {}

    monkeypatch.setattr(repeating, "test", classmethod(test))
    run(config(**{"TEST.EVAL_PERIOD": 2, "SOLVER.MAX_ITER": 4, "SOLVER.EMA_DECAY": decay}))
    assert [int(text.split()[-2]) for text in named] == [2, 4]


def test_finished_training_continues_with_a_larger_max_iter(config, run):
    run(config(**{"SOLVER.MAX_ITER": 3}))
    resumed = run(config(**{"SOLVER.MAX_ITER": 8}), resume=True)
    assert resumed.start_iter == 3
    whole = run(config("whole", **{"SOLVER.MAX_ITER": 8}))
    a, b = (t.optimizer.param_groups[-1]["lr"] for t in (resumed, whole))
    assert a == pytest.approx(b)


def test_max_iter_below_the_checkpoint_is_an_error(config, run):
    run(config(**{"SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR", "SOLVER.STEPS": (3,)}))
    for name in ("WarmupMultiStepLR", "WarmupCosineLR"):
        options = {"SOLVER.LR_SCHEDULER_NAME": name, "SOLVER.STEPS": (3,), "SOLVER.MAX_ITER": 4}
        with pytest.raises(ValueError, match="MAX_ITER is 4, but .* has 6 iterations: increase it"):
            run(config(**options), resume=True)


def test_max_iter_of_the_last_checkpoint_ends_the_training(config, tmp_path, run):
    """The weights of model_final.pth are the average, as after a last iteration."""
    run(config(), stop_at=4)
    resumed = run(config(**{"SOLVER.MAX_ITER": 3}), resume=True)
    assert resumed.start_iter == 3
    saved = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    average = saved["trainer"]["hooks"]["EMAHook"]["average"]
    for name, _ in resumed.model.named_parameters():
        assert torch.equal(saved["model"][name], average[name]), name


def test_average_is_loaded_from_every_checkpoint(config, tmp_path, run):
    """--eval-only gives the figures that the log shows for that iteration."""
    trainer = run(config())
    path = tmp_path / "out" / "model_0000002.pth"
    average = torch.load(path, weights_only=True)["trainer"]["hooks"]["EMAHook"]["average"]
    load_weights(trainer.model, str(path))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, average[name]), name


def test_a_trainer_with_other_writers(config, dataset, repeating, run, monkeypatch):
    """Without metrics.json, an evaluation that may be missing there is not repeated."""

    class OtherWriters(repeating):
        def build_writers(self):
            return [CommonMetricPrinter(self.max_iter)]

    options = {"DATASETS.TEST": (dataset,), "TEST.EVAL_PERIOD": 3}
    run(config(**options), stop_at=4, cls=OtherWriters)
    evaluated = []
    monkeypatch.setattr(OtherWriters, "test", lambda self, *_: evaluated.append(self.iter) or {})
    run(config(**options), resume=True, cls=OtherWriters)
    assert evaluated == [6]


def test_losses_are_logged_by_name(config, repeating):
    with EventStorage() as storage:
        trainer = repeating(config())
        trainer.iter = 0
        trainer._trainer.iter = 0
        trainer.run_step()
        names = set(storage.histories())
    parts = {"coarse", "fine", "final"}
    expected = {f"loss_{p}_{k}" for p in parts for k in ("ce", "dice")}
    assert names >= expected | {"loss_presence", "loss_mask_class", "total_loss"}


def test_training_lowers_the_loss(config, repeating):
    cfg = config(**{"SOLVER.MAX_ITER": 15, "SOLVER.EMA_DECAY": 0.0, "SOLVER.WARMUP_ITERS": 0})
    torch.manual_seed(0)
    trainer = repeating(cfg)
    batch = next(iter(trainer.data_loader))

    def loss():
        trainer.model.train()
        with torch.no_grad():
            return float(sum(trainer.model(batch).values()))

    losses = [loss()]
    trainer.train()
    losses.append(loss())
    assert losses[1] < 0.8 * losses[0]


def test_records_come_from_the_data_set(config, dataset):
    records = next(iter(Trainer.build_train_loader(config())))
    assert all(r["image"].shape[-2:] == r["sem_seg"].shape for r in records)
    # Two of the three images, in random order; only one of the three has no ignored pixels.
    assert max(r["sem_seg"].max() for r in records) == 255
    (record,) = next(iter(Trainer.build_test_loader(config(), dataset)))
    assert record["vocabulary"] == dataset_vocabulary(dataset)
    assert (record["height"], record["width"]) == (40, 48)


def test_amp_needs_cuda(config):
    with pytest.raises(ValueError, match="SOLVER.AMP.ENABLED.*BF16"):
        Trainer(config(**{"SOLVER.AMP.ENABLED": True}))


def test_expected_results_of_several_data_sets_are_an_error(config, repeating):
    """Otherwise the error would come after the last iteration."""
    expected = {"TEST.EXPECTED_RESULTS": [["sem_seg", "mIoU", 50, 1]]}
    trainer = repeating(config(**expected, **{"DATASETS.TEST": ("a", "b")}))
    with pytest.raises(ValueError, match="EXPECTED_RESULTS .* DATASETS.TEST has 2: evaluate one"):
        trainer.train()


def test_data_set_of_another_task_is_an_error(config, dataset):
    MetadataCatalog.pop(dataset)
    MetadataCatalog.get(dataset).set(evaluator_type="coco", stuff_classes=["a"], ignore_label=255)
    with pytest.raises(ValueError, match=f"'{dataset}' has evaluator_type 'coco'"):
        Trainer.build_evaluator(config(), dataset)


def test_weights_that_do_not_fit_stop_the_training(config, tmp_path, repeating):
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "other.pth")
    trainer = repeating(config(**{"MODEL.WEIGHTS": str(tmp_path / "other.pth")}))
    with pytest.raises(WeightsError, match="other.pth"):
        trainer.resume_or_load(resume=False)


def test_processes_with_different_checkpoints_are_an_error(config, run, monkeypatch):
    run(config())
    monkeypatch.setattr(comm, "all_gather", lambda name: [name, ""])
    with pytest.raises(ValueError, match=r"model_final\.pth, none\. Set OUTPUT_DIR .* shared?"):
        Trainer(config()).resume_or_load(resume=True)


@pytest.mark.parametrize(
    "sampler", ["RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler", "x"]
)
def test_samplers_that_cannot_be_used_are_an_error(config, sampler):
    with pytest.raises(ValueError, match=f"SAMPLER_TRAIN is '{sampler}'.*WeightedTrainingSampler"):
        Trainer.build_train_loader(config(**{"DATALOADER.SAMPLER_TRAIN": sampler}))
