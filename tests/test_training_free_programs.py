"""The files of configs/training_free in the demo, the evaluation and, in vain, the training."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.config import setup_cfg
from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.engine import Trainer
from dcp_clip.modeling.clip.loading import load_clip
from dcp_clip.predictor import Predictor

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "demo"), str(ROOT / "tests" / "modeling")]

from test_training_free import CONFIGS, MINIATURES  # noqa: E402

import demo  # noqa: E402

DATASET = "test_training_free_sem_seg"
NAMES = ["sky", "tree", "car, automobile"]
each_file = pytest.mark.parametrize("stem", MINIATURES)


@pytest.fixture(scope="module")
def options(tiny_clips, make_cfg, tmp_path_factory):
    """``options(file stem)``: keys and values that give the file a miniature tower, and weights for
    it in a file of their own, as a user without internet has them."""
    folder = tmp_path_factory.mktemp("clips")

    def get(stem: str) -> list[str]:
        name, window, stride = MINIATURES[stem]
        weights = folder / f"{name}.pt"
        if not weights.exists():
            torch.manual_seed(0)
            torch.save(load_clip(make_cfg(name)).state_dict(), weights)
        keys = {
            "MODEL.CLIP.NAME": name,
            "MODEL.CLIP.PRETRAINED": weights,
            "MODEL.CLIP.ENCODER_WINDOW": window,
            "MODEL.CLIP.ENCODER_WINDOW_STRIDE": stride,
            "MODEL.DEVICE": "cpu",
            "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "",
            "INPUT.MIN_SIZE_TEST": 64,
        }
        return [str(x) for pair in keys.items() for x in pair]

    return get


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Two photographs with their labels, registered as DATASET; the folder of the photographs."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for i in range(2):
        label = np.arange(3, dtype=np.uint8).repeat(24)[None].repeat(50, 0)
        label[: 10 * i] = 255
        image = 80 * label[..., None] + rng.integers(0, 60, (50, 72, 3), np.uint8)
        Image.fromarray(image).save(folder / "images" / f"{i}.png")
        Image.fromarray(label).save(folder / "labels" / f"{i}.png")
    names = [name.split(",")[0] for name in NAMES]
    register_sem_seg(DATASET, folder / "images", folder / "labels", names)
    yield folder / "images"
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.pop(DATASET)


def run_demo(stem, options, dataset, output, *arguments):
    config = CONFIGS / f"{stem}.yaml"
    places = ["--config-file", config, "--input", dataset, "--output", output]
    return demo.main([*map(str, places), *arguments, "--opts", *options(stem)])


@each_file
def test_the_demo(options, dataset, tmp_path, stem):
    out = tmp_path / "out"
    assert run_demo(stem, options, dataset, out, "--vocabulary", "; ".join(NAMES)) == 0
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["0.png", "1.png"]
    for line in lines:
        assert sum(category["share"] for category in line["categories"]) == pytest.approx(1)
        with Image.open(out / line["labels"]) as labels:
            assert labels.size == (72, 50)
            assert set(np.unique(labels)) == {category["id"] for category in line["categories"]}
        assert (out / line["overlay"]).is_file()


@each_file
def test_the_evaluation(options, dataset, tmp_path, stem):
    """It counts what the demo's predictor labels: the same mIoU, by hand."""
    cfg = setup_cfg(CONFIGS / f"{stem}.yaml", options(stem))
    cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = (DATASET,), 0
    cfg.OUTPUT_DIR = str(tmp_path)
    predictor = Predictor(cfg, DATASET)
    found, true = [], []
    for record in DatasetCatalog.get(DATASET):
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        found.append(predictor(record["file_name"]).label_map[labels < 255])
        true.append(labels[labels < 255])
    found, true = np.concatenate(found), np.concatenate(true)
    both = [
        ((found == i) & (true == i)).sum() / ((found == i) | (true == i)).sum() for i in (0, 1, 2)
    ]
    result = Trainer.test(cfg, Trainer.build_model(cfg))
    assert result["sem_seg"]["mIoU"] == pytest.approx(100 * np.mean(both), abs=1e-3)
    assert DATASET in (tmp_path / "results.md").read_text()


def test_the_demo_without_names_is_one_sentence(options, dataset, tmp_path, capsys, monkeypatch):
    """Before the weights, which may be a long download, are asked for."""
    monkeypatch.setattr("dcp_clip.predictor.build_model", lambda cfg: pytest.fail("built"))
    with pytest.raises(SystemExit) as stop:
        run_demo("vit_b16", options, dataset, tmp_path / "out")
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in last and "DATASETS.TRAIN is empty" in last and "--vocabulary" in last
    assert not (tmp_path / "out" / "results.jsonl").exists()


@each_file
@pytest.mark.parametrize("train", [(), (DATASET,)])
def test_training_is_refused(options, dataset, tmp_path, stem, train):
    cfg = setup_cfg(CONFIGS / f"{stem}.yaml", options(stem))
    cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR = train, str(tmp_path)
    with pytest.raises(ValueError, match="nothing in this model trains .*--eval-only"):
        Trainer(cfg)
