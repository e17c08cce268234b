"""Trainer trains, evaluates and reports every baseline."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.engine import Trainer
from dcp_clip.evaluation import evaluation_environment

NAME = "test_baselines_sem_seg"


@pytest.fixture
def dataset(tmp_path, write_stripes):
    write_stripes(tmp_path, 2)
    register_sem_seg(NAME, tmp_path / "images", tmp_path / "labels", ["sky", "tree", "car"])
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


def test_two_iterations_and_an_evaluation(make_cfg, head_options, dataset, tmp_path, architecture):
    opts = {
        "DATASETS.TRAIN": (NAME,),
        "DATASETS.TEST": (NAME,),
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TRAIN": (32,),
        "INPUT.MIN_SIZE_TEST": 32,
        "SOLVER.IMS_PER_BATCH": 2,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.EMA_DECAY": 0.9,
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    (tmp_path / "out").mkdir()
    cfg = make_cfg("dcp-tiny-cnn", head_options(architecture) | opts)
    trainer = Trainer(cfg)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {n for n, p in trainer.model.named_parameters() if not p.equal(before[n])}
    assert changed and all(name.startswith("head.") for name in changed)
    # Every category is proposed.
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert '"recall": 100.0' in json.dumps(results)


@pytest.mark.parametrize(
    ("kind", "key", "value", "row"),
    [
        ("PixelTextSegmentor", "BASELINES.DIM", 20, "other settings"),
        ("PixelTextSegmentor", "DCP_CLIP.VOCABULARY.SYNONYM_POOLING", "max", "prompts"),
        ("CostAggregationSegmentor", "BASELINES.COST_AGGREGATION.NUM_NAMES", 7, "other settings"),
        ("MaskQuerySegmentor", "BASELINES.MASK_QUERIES.UNSEEN_EXPONENT", 0.7, "other settings"),
    ],
)
def test_the_report_shows_the_settings_of_the_head(
    make_cfg, make_head, head_options, kind, key, value, row
):
    model, options = make_head(kind), head_options(kind)
    before = evaluation_environment(make_cfg("dcp-tiny-cnn", options), model)
    changed = make_cfg("dcp-tiny-cnn", options | {f"MODEL.{key}": value})
    after = evaluation_environment(changed, model)
    assert {name for name in before if before[name] != after[name]} == {row}
    assert str(value) in after[row]
