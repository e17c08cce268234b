"""Evaluation of several data sets by the trainer: early checks, and the report."""

import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.data.pairing import DatasetError
from dcp_clip.engine import Trainer
from dcp_clip.evaluation import MeanIoUEvaluator
from dcp_clip.vocabulary import VocabularyError

SMALL, LARGE, BACKGROUND = (f"test_evaluation_{x}_sem_seg" for x in ("8", "16", "b"))
NAMES = ["sky", "tree", "car", "road", "wall"]


@pytest.fixture
def datasets(tmp_path):
    """Three data sets of three images.

    SMALL has 3 categories and 8-bit PNGs. LARGE has 300 categories and 16-bit TIFFs with 65535
    ignored. BACKGROUND has 2 foreground categories in a vocabulary of 5.
    """
    rng = np.random.default_rng(0)
    kinds = {
        SMALL: (NAMES[:3], ".png", 255, [0, 1, 255]),
        LARGE: ([f"thing {i}" for i in range(300)], ".tif", 65535, [7, 260, 299, 65535]),
        BACKGROUND: (NAMES, ".png", 255, [0, 1, 2, 255]),
    }
    for name, (names, suffix, ignore, values) in kinds.items():
        images, labels = tmp_path / name / "images", tmp_path / name / "labels"
        images.mkdir(parents=True)
        labels.mkdir()
        for i in range(3):
            image = rng.integers(0, 256, (32, 40, 3), np.uint8)
            label = np.kron(rng.choice(values, (4, 5)), np.ones((8, 8), int))
            Image.fromarray(image).save(images / f"{i}.jpg")
            kind = np.uint8 if suffix == ".png" else np.uint16
            Image.fromarray(label.astype(kind)).save(labels / f"{i}{suffix}")
        register_sem_seg(name, images, labels, names, label_ext=suffix, ignore_label=ignore)
    MetadataCatalog.pop(BACKGROUND)
    MetadataCatalog.get(BACKGROUND).set(
        stuff_classes=NAMES,
        ignore_label=255,
        evaluator_type="sem_seg_background",
        num_foreground=2,
    )
    yield tuple(kinds)
    for name in kinds:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)


@pytest.fixture
def config(make_cfg, tmp_path):
    def make(*names, **options):
        base = {
            "DATASETS.TRAIN": (),
            "DATASETS.TEST": names,
            "DATALOADER.NUM_WORKERS": 0,
            "INPUT.MIN_SIZE_TEST": 32,
            "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "",
        }
        cfg = make_cfg("test-vit-16", {**base, **options})
        cfg.OUTPUT_DIR = str(tmp_path / "out")
        return cfg

    return make


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("test-vit-16")


def report(tmp_path):
    out = tmp_path / "out"
    return json.loads((out / "results.json").read_text()), (out / "results.md").read_text()


def test_several_data_sets_with_one_model(config, datasets, model, tmp_path):
    """Each data set has its own vocabulary. One report contains all results."""
    results = Trainer.test(config(*datasets), model)
    content, markdown = report(tmp_path)
    assert list(results) == list(content["results"]) == list(datasets)
    for name, (present, total) in zip(datasets, [(2, 3), (3, 300), (3, 3)]):
        found = content["results"][name]
        assert (found["classes"]["present"], found["classes"]["all"]) == (present, total)
        assert found["sem_seg"]["mIoU"] == pytest.approx(results[name]["sem_seg"]["mIoU"])
        assert found["speed"]["images"] == 3 and found["speed"]["images_per_second"] > 0
        assert found["proposals"]["per_image"] == min(4, 5 if name == BACKGROUND else total)
        assert f"| {name}" in markdown
    assert {"IoU-sky", "IoU-tree", "IoU-background"} < set(results[BACKGROUND]["sem_seg"])
    assert "Not evaluated" not in markdown and f"**{LARGE}: 3/300 classes present.**" in markdown
    assert not (tmp_path / "out" / "inference").exists()  # predictions are not saved by default


def test_results_of_one_data_set_as_in_detectron2(config, datasets, model, tmp_path):
    result = Trainer.test(config(SMALL, **{"TEST.SAVE_PREDICTIONS": True}), model)
    assert {"sem_seg", "classes", "proposals", "speed"} == set(result)
    folder = tmp_path / "out" / "inference" / SMALL
    assert json.loads((folder / "sem_seg_predictions.json").read_text())


def test_report_mentions_oracle_masks(config, datasets, model, tmp_path):
    plain = Trainer.test(config(SMALL, LARGE), model)
    oracle = Trainer.test(config(SMALL, LARGE, **{"TEST.ORACLE_MASKS": True}), model)
    assert oracle[SMALL]["sem_seg"]["pACC"] != plain[SMALL]["sem_seg"]["pACC"]
    assert oracle[SMALL]["proposals"] == plain[SMALL]["proposals"]
    assert "by majority vote in the true masks" in report(tmp_path)[1]


def test_part_of_a_data_set(config, datasets, model, tmp_path):
    """The images are evenly spaced, with both ends, and the report says how many there are."""
    every = Trainer.build_test_loader(config(SMALL), SMALL).dataset
    for limit, chosen in ((2, [0, 2]), (1, [0]), (9, [0, 1, 2]), (0, [0, 1, 2])):
        cfg = config(SMALL, **{"TEST.MAX_IMAGES": limit})
        part = Trainer.build_test_loader(cfg, SMALL).dataset
        assert [x["file_name"] for x in part] == [every[i]["file_name"] for i in chosen]
    part = Trainer.test(config(SMALL, **{"TEST.MAX_IMAGES": 2}), model)
    assert part["speed"]["images"] == 2
    assert "at most 2 of each data set, evenly spaced (TEST.MAX_IMAGES)" in report(tmp_path)[1]
    Trainer.test(config(SMALL), model)
    assert "MAX_IMAGES" not in report(tmp_path)[1]


def test_finished_data_sets_survive_an_interruption(config, datasets, model, tmp_path, monkeypatch):
    build = Trainer.build_test_loader

    def interrupt(cfg, name):
        if name == LARGE:
            raise KeyboardInterrupt
        return build(cfg, name)

    monkeypatch.setattr(Trainer, "build_test_loader", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Trainer.test(config(*datasets), model)
    content, markdown = report(tmp_path)
    assert list(content["results"]) == [SMALL] and content["datasets"] == list(datasets)
    assert f"Not evaluated (yet): {LARGE}, {BACKGROUND}." in markdown
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_an_interrupted_evaluation_replaces_older_results(
    config, datasets, model, tmp_path, monkeypatch
):
    Trainer.test(config(SMALL), model)
    monkeypatch.setattr(Trainer, "build_test_loader", lambda *_: [][0])
    with pytest.raises(IndexError):
        Trainer.test(config(SMALL, **{"MODEL.WEIGHTS": "second.pth"}), model)
    content, markdown = report(tmp_path)
    assert not content["results"] and f"Not evaluated (yet): {SMALL}." in markdown
    assert "second.pth" in markdown


@pytest.fixture
def untouched(monkeypatch):
    """Fails if an image is loaded for evaluation."""

    def load(*_):
        raise AssertionError("the evaluation started")

    monkeypatch.setattr(Trainer, "build_test_loader", load)


def test_missing_files_are_found_before_the_first_image(
    config, datasets, model, tmp_path, untouched
):
    (tmp_path / BACKGROUND / "labels").rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match=f"{BACKGROUND}/labels does not exist"):
        Trainer.test(config(*datasets), model)


def test_unknown_name_is_found_before_the_first_image(config, datasets, model, untouched):
    with pytest.raises(VocabularyError, match=f"No data set '{SMALL}s'.*Did you mean {SMALL}"):
        Trainer.test(config(LARGE, SMALL + "s"), model)


@pytest.mark.parametrize("kind", ["panoptic", None])
def test_data_set_of_another_task_is_found_before_the_first_image(
    config, datasets, model, untouched, kind
):
    MetadataCatalog.pop(SMALL)
    MetadataCatalog.get(SMALL).set(stuff_classes=NAMES[:3], ignore_label=255)
    if kind:
        MetadataCatalog.get(SMALL).set(evaluator_type=kind)
    with pytest.raises(ValueError, match=f"'{SMALL}' has evaluator_type '{kind}'.*'sem_seg'"):
        Trainer.test(config(LARGE, SMALL), model)


def test_repeated_data_set_is_found_before_the_first_image(config, datasets, model, untouched):
    with pytest.raises(ValueError, match=f"DATASETS.TEST contains {SMALL} more than once"):
        Trainer.test(config(SMALL, LARGE, SMALL), model)


def test_no_report_without_data_sets(config, model, tmp_path):
    assert Trainer.test(config(), model) == {}
    assert not (tmp_path / "out").exists()


def test_missing_test_files_are_found_before_training(config, datasets, tmp_path, monkeypatch):
    def step(self):
        raise AssertionError("the training started")

    monkeypatch.setattr(Trainer, "run_step", step)
    (tmp_path / SMALL / "images").rename(tmp_path / "elsewhere")
    cfg = config(SMALL, **{"DATASETS.TRAIN": (BACKGROUND,), "SOLVER.IMS_PER_BATCH": 1})
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    with pytest.raises(DatasetError, match=f"{SMALL}/images does not exist"):
        trainer.train()


def test_single_evaluator_as_in_detectron2(config, datasets, model):
    result = Trainer.test(config(SMALL), model, MeanIoUEvaluator(SMALL))
    assert {"sem_seg", "classes", "speed"} == set(result)


def test_wrong_number_of_evaluators_is_found_before_the_first_image(
    config, datasets, model, untouched
):
    with pytest.raises(ValueError, match="2 data sets, but there are 1 evaluators"):
        Trainer.test(config(SMALL, LARGE), model, [MeanIoUEvaluator(SMALL)])
