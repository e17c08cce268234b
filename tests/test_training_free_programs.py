"""The demo and the evaluation with configs/training_free; training raises an error."""

import json
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

CONFIGS = Path(__file__).parents[1] / "configs" / "training_free"
# For each config: a small CLIP, and ENCODER_WINDOW and ENCODER_WINDOW_STRIDE for it.
MINIATURES = {
    "vit_b16": ("test-vit-16", 32, 16),
    "vit_l14_336": ("test-vit-14-quickgelu", 28, 14),
    "convnext_b": ("test-convnext", 0, 112),
    "convnext_l": ("test-convnext-mlp", 0, 112),
}
DATASET = "test_training_free_sem_seg"
NAMES = ["sky", "tree", "car, automobile"]
each_config = pytest.mark.parametrize("stem", MINIATURES)


@pytest.fixture(scope="module")
def options(tiny_clips, make_cfg, tmp_path_factory):
    """``options(stem)``: keys and values that replace CLIP by a small one with a weights file."""
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
    """Register two images with labels as DATASET, and return the folder of the images."""
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


@pytest.fixture
def run_demo(load_program, options, dataset):
    """``run_demo(stem, output, *arguments)``: the exit status of the demo."""
    demo = load_program("demo/demo.py")

    def run(stem, output, *arguments):
        config = CONFIGS / f"{stem}.yaml"
        paths = ["--config-file", config, "--input", dataset, "--output", output]
        return demo.main([*map(str, paths), *arguments, "--opts", *options(stem)])

    return run


@each_config
def test_demo(run_demo, tmp_path, stem):
    out = tmp_path / "out"
    assert run_demo(stem, out, "--vocabulary", "; ".join(NAMES)) == 0
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["0.png", "1.png"]
    for line in lines:
        assert sum(category["share"] for category in line["categories"]) == pytest.approx(1)
        with Image.open(out / line["labels"]) as labels:
            assert labels.size == (72, 50)
            assert set(np.unique(labels)) == {category["id"] for category in line["categories"]}
        assert (out / line["overlay"]).is_file()


@each_config
def test_evaluation(options, dataset, tmp_path, stem):
    """The mIoU of the evaluation equals the mIoU of the label maps of Predictor."""
    cfg = setup_cfg(CONFIGS / f"{stem}.yaml", options(stem))
    cfg.DATASETS.TEST, cfg.DATALOADER.NUM_WORKERS = (DATASET,), 0
    cfg.OUTPUT_DIR = str(tmp_path)
    predictor = Predictor(cfg, DATASET)
    predicted, true = [], []
    for record in DatasetCatalog.get(DATASET):
        labels = np.asarray(Image.open(record["sem_seg_file_name"]))
        predicted.append(predictor(record["file_name"]).label_map[labels < 255])
        true.append(labels[labels < 255])
    predicted, true = np.concatenate(predicted), np.concatenate(true)
    iou = [
        ((predicted == i) & (true == i)).sum() / ((predicted == i) | (true == i)).sum()
        for i in range(3)
    ]
    result = Trainer.test(cfg, Trainer.build_model(cfg))
    assert result["sem_seg"]["mIoU"] == pytest.approx(100 * np.mean(iou), abs=1e-3)
    assert DATASET in (tmp_path / "results.md").read_text()


def test_demo_without_vocabulary(run_demo, tmp_path, monkeypatch):
    """The error comes before the weights are loaded, which may be a long download."""
    builder = "dcp_clip.engine.checkpoints.loading.build_model"
    monkeypatch.setattr(builder, lambda cfg: pytest.fail("built"))
    with pytest.raises(SystemExit, match="error: DATASETS.TRAIN is empty.*--vocabulary"):
        run_demo("vit_b16", tmp_path / "out")
    assert not (tmp_path / "out" / "results.jsonl").exists()


@each_config
@pytest.mark.parametrize("train", [(), (DATASET,)])
def test_training_is_an_error(options, dataset, tmp_path, stem, train):
    cfg = setup_cfg(CONFIGS / f"{stem}.yaml", options(stem))
    cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR = train, str(tmp_path)
    with pytest.raises(ValueError, match="no trainable parameters.*--eval-only"):
        Trainer(cfg)
