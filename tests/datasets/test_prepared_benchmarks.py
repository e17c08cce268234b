"""From a benchmark's official files to a training step and an evaluation, on the miniatures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import SemSegEvaluator

import dcp_clip.data.benchmarks
from dcp_clip.data.benchmarks import BENCHMARKS, register_benchmarks
from dcp_clip.data.mapper import SemSegMapper, VocabularyMapper
from dcp_clip.vocabulary import Vocabulary


@pytest.fixture
def prepared(case, tmp_path, monkeypatch):
    """Each benchmark, prepared and registered with the miniature's counts for the official ones."""
    case.run(tmp_path / "out")
    mini = {
        key: replace(b, counts={split: len(stems) for split, stems in case.stems.items()})
        for key, b in BENCHMARKS.items()
        if key in case.expected
    }
    with monkeypatch.context() as patch:
        patch.setattr(dcp_clip.data.benchmarks, "BENCHMARKS", mini)
        register_benchmarks(tmp_path / "out")
    yield case, mini
    register_benchmarks()


def test_train_step_and_evaluation(prepared, make_model, make_cfg):
    case, benchmarks = prepared
    model = make_model()
    cfg = make_cfg()
    for key, benchmark in benchmarks.items():
        for split, stems in case.stems.items():
            name = benchmark.dataset_name(split)
            dicts = DatasetCatalog.get(name)
            assert [d["image_id"] for d in dicts] == sorted(stems)
            mapper = SemSegMapper.from_datasets(cfg, [name], [])
            mapper = VocabularyMapper(mapper, Vocabulary.from_dataset(name))
            records = [mapper(d) for d in dicts]
            num_labels = benchmark.num_foreground or len(Vocabulary.from_dataset(name))
            for record in records:
                expected = case.expected[key][record["image_id"]]
                labels = record["sem_seg"].numpy()
                known = expected < num_labels
                np.testing.assert_array_equal(labels[known], expected[known])
                assert (labels[~known] >= num_labels).all()

        # "val" by now. Labels are what the evaluator reads of the files: it must find them right.
        if benchmark.num_foreground is None:
            evaluator = SemSegEvaluator(name, distributed=False)
            evaluator.reset()
            for record in records:
                logits = torch.nn.functional.one_hot(
                    record["sem_seg"].clamp(max=num_labels - 1), num_labels
                )
                evaluator.process([record], [{"sem_seg": logits.permute(2, 0, 1)}])
            scores = evaluator.evaluate()["sem_seg"]
            assert scores["mIoU"] == pytest.approx(100) and scores["pACC"] == pytest.approx(100)

        model.set_vocabulary(Vocabulary.from_dataset(name))
        model.train()
        losses = model(records[:1])
        sum(losses.values()).backward()
        assert all(torch.isfinite(loss) for loss in losses.values())
        model.zero_grad()
        model.eval()
        with torch.no_grad():
            output = model(records[:1])[0]["sem_seg"]
        assert output.argmax(dim=0).shape == records[0]["sem_seg"].shape


def test_scripts_and_table_agree(case):
    assert set(case.expected) <= set(BENCHMARKS)
    assert {BENCHMARKS[key].script for key in case.expected} == {f"prepare_{case.name}.py"}
    assert {BENCHMARKS[key].label_ext for key in case.expected} == {case.suffix}
