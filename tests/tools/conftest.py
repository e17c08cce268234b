"""A config and a data set for the dry run."""

import sys
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.data.catalog import register_sem_seg

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import dry_run

from dcp_clip.benchmarking import dry_run_costs as dry_run_costs

NAMES = ["sky", "tree", "car", "road", "wall", "cat"]
RED, BLUE = (220, 30, 30), (30, 30, 220)


@pytest.fixture
def dataset(tmp_path):
    """Two photographs, red above blue, labelled tree above car; registered under a name."""
    name = "test_dry_run_sem_seg"
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    image, label = np.zeros((60, 80, 3), np.uint8), np.ones((60, 80), np.uint8)
    image[:30], image[30:], label[30:] = RED, BLUE, 2
    for i in range(2):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{i}.png")
    register_sem_seg(name, tmp_path / "images", tmp_path / "labels", NAMES, expected_count=2)
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


COST = dry_run_costs.StepCost(2 * 10**12, 3 * 10**12, 2**20, 2**21, 10**9, 100)


@pytest.fixture
def run(make_cfg, dataset, tmp_path, capsys, monkeypatch):
    """``run(*arguments, KEY=value)`` on a small config; the report and the output folder."""

    def run(*arguments, trace=False, **opts):
        if not trace:  # which takes most of the time
            monkeypatch.setattr(dry_run, "trace_step", lambda *args, **kwargs: COST)
        options = {
            "DATASETS.TRAIN": (dataset,),
            "INPUT.MIN_SIZE_TRAIN": (64,),
            "INPUT.COLOR_AUG_SSD": False,
            "SOLVER.REFERENCE_WORLD_SIZE": 4,
            "SOLVER.IMS_PER_BATCH": 8,
            "SOLVER.MAX_ITER": 100,
            "SOLVER.WARMUP_ITERS": 10,
            "SOLVER.BASE_LR": 0.01,
            **opts,
        }
        path, output = tmp_path / "config.yaml", tmp_path / "out"
        path.write_text(make_cfg("test-vit-16", options).dump())
        dry_run.main(["--config-file", str(path), "--output", str(output), *arguments])
        text = capsys.readouterr().out
        assert (output / "report.md").read_text() == text
        return text, output

    return run
