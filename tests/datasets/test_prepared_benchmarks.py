"""From a benchmark's official files to a training step and an evaluation, on the miniatures."""

import contextlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

import dcp_clip.data.builtin
from dcp_clip.data.builtin import BENCHMARKS, register_benchmarks
from dcp_clip.data.dataset_mapper import SemSegDatasetMapper
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.evaluation import BackgroundMeanIoUEvaluator, MeanIoUEvaluator
from dcp_clip.vocabulary.categories import load_names
from dcp_clip_cli import training
from dcp_clip_cli.train import parse_args

ROOT = Path(__file__).parents[2]
# Categories present and scored of each miniature, in the order of docs/benchmarks.md. PC-459 has as
# many as the official validation images.
SIX = {
    "ade20k_847_sem_seg_val": (7, 847),
    "pascal_context_459_sem_seg_val": (345, 459),
    "ade20k_150_sem_seg_val": (150, 150),
    "pascal_context_59_sem_seg_val": (59, 59),
    "pascal_voc_20_sem_seg_val": (20, 20),
    "pascal_voc_20b_sem_seg_val": (21, 21),
}


@contextlib.contextmanager
def prepare_and_register(cases, root):
    """Prepare cases in one folder and register their benchmarks there, with the miniatures' counts;
    yields the benchmarks."""
    mini = {}
    for case in cases:
        case.run(root)
        for key in case.expected:
            counts = {split: len(stems) for split, stems in case.stems_of(key).items()}
            mini[key] = replace(BENCHMARKS[key], counts=counts)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dcp_clip.data.builtin, "BENCHMARKS", mini)
            register_benchmarks(root)
        yield mini
    finally:
        register_benchmarks()


@pytest.fixture
def prepared(case, tmp_path):
    """Each benchmark, prepared and registered."""
    with prepare_and_register([case], tmp_path / "out") as benchmarks:
        yield case, benchmarks


def test_train_step_and_evaluation(prepared, make_model, make_cfg):
    case, benchmarks = prepared
    model = make_model()
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 0})  # keeps the size
    for key, benchmark in benchmarks.items():
        for split, stems in case.stems_of(key).items():
            name = benchmark.dataset_name(split)
            dicts = DatasetCatalog.get(name)
            assert [d["image_id"] for d in dicts] == sorted(stems)
            mapper = SemSegDatasetMapper(cfg, is_train=False, dataset_names=[name])
            assert mapper.vocabulary == dataset_vocabulary(name)
            records = [mapper(d) for d in dicts]
            num_labels = benchmark.num_foreground or len(dataset_vocabulary(name))
            for record in records:
                expected = case.expected[key][record["image_id"]]
                labels = record["sem_seg"].numpy()
                known = expected < num_labels
                np.testing.assert_array_equal(labels[known], expected[known])
                assert (labels[~known] >= num_labels).all()

        # The last split, "val". Predictions that equal the files' labels must score 100.
        few = benchmark.num_foreground is not None
        evaluator = (BackgroundMeanIoUEvaluator if few else MeanIoUEvaluator)(name)
        evaluator.reset()
        num_names = len(dataset_vocabulary(name))
        for record in records:
            ids = record["sem_seg"].clamp(max=num_names - 1)
            one_hot = torch.nn.functional.one_hot(ids, num_names)
            evaluator.process([record], [{"sem_seg": one_hot.permute(2, 0, 1)}])
        scores = evaluator.evaluate()["sem_seg"]
        assert scores["mIoU"] == pytest.approx(100) and scores["pACC"] == pytest.approx(100)

        model.set_vocabulary(dataset_vocabulary(name))
        model.train()
        losses = model(records[:1])
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        model.zero_grad()
        model.eval()
        with torch.no_grad():
            output = model(records[:1])[0]["sem_seg"]
        assert output.argmax(dim=0).shape == records[0]["sem_seg"].shape


@pytest.fixture
def six(make_case, tmp_path):
    """The six benchmarks of docs/benchmarks.md, prepared in one folder and registered."""
    names = ("ade20k_847", "ade20k_150", "pascal_context_59", "pascal_voc")
    cases = [make_case(name, folder=name) for name in names]
    cases.append(make_case("pascal_context_459", folder="pascal_context_459", present=345))
    with prepare_and_register(cases, tmp_path / "root"):
        yield


@pytest.fixture
def train_net():
    """``train_net(cfg)``: the evaluation of train_net.py."""
    args = parse_args(["--eval-only"])
    return lambda cfg: training.evaluate(cfg, args)


def test_one_command_evaluates_all_six(six, train_net, make_cfg, make_model, tmp_path, caplog):
    """With the names in docs/benchmarks.md and random weights."""
    caplog.set_level("INFO")
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    names = re.search(r'DATASETS\.TEST "(\(.*\))"', page)[1]
    model = make_model("test-vit-16")
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    options = {
        "DATASETS.TRAIN": (),
        "DATASETS.TEST": names,
        "DATALOADER.NUM_WORKERS": 0,
        "INPUT.MIN_SIZE_TEST": 32,
        "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "",
        "MODEL.WEIGHTS": str(tmp_path / "model.pth"),
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    results = train_net(make_cfg("test-vit-16", options))
    table = (tmp_path / "out" / "results.md").read_text()
    assert table in caplog.text and "Not evaluated" not in table
    assert list(results) == list(SIX)
    assert re.findall(r"^\| (\w+_sem_seg_val)", table, flags=re.MULTILINE) == list(SIX)
    written = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    for name, (present, scored) in SIX.items():
        found = results[name]
        assert (found["classes"]["present"], found["classes"]["all"]) == (present, scored)
        assert sum(key.startswith("IoU-") for key in found["sem_seg"]) == scored
        assert 0 <= found["sem_seg"]["mIoU"] <= 100 and 0 <= found["proposals"]["recall"] <= 100
        assert found["speed"]["images"] == 2 and found["proposals"]["per_image"] == 4
        assert written[name]["sem_seg"]["mIoU"] == found["sem_seg"]["mIoU"]
        # The report compares conventions only where categories are absent.
        explained = f"**{name}: {present}/{scored} classes present.**" in table
        assert explained == (present < scored)
    classes = [key for key in results["pascal_voc_20b_sem_seg_val"]["sem_seg"] if "IoU-" in key]
    voc = [category.name for category in load_names("pascal_voc_20")]
    assert classes == [f"IoU-{name}" for name in (*voc, "background")]
    for number in (345, 459, 7, 847):
        assert f"IoU sum over the {number} classes" in table


def test_scripts_and_table_agree(case):
    assert set(case.expected) <= set(BENCHMARKS)
    assert {BENCHMARKS[key].script for key in case.expected} == {f"prepare_{case.name}.py"}
    assert {BENCHMARKS[key].label_ext for key in case.expected} == {case.suffix}
