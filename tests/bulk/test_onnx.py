"""Bulk runs with an exported model."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from helpers.bulk_run import NAMES, label_map, rows, run

pytest.importorskip("pyarrow")
pytest.importorskip("ray")
for package in ("onnx", "onnxscript", "onnxruntime", "tokenizers"):
    pytest.importorskip(package)

from dcp_clip.bulk.onnx_model import RunOnnxModel  # noqa: E402
from dcp_clip.export.folder import export_model  # noqa: E402
from dcp_clip.runtime import OnnxPredictor  # noqa: E402


@pytest.fixture(scope="module")
def exported(make_cfg, randomize, tmp_path_factory):
    opts = {"DATASETS.TRAIN": (), "INPUT.MIN_SIZE_TEST": 48, "INPUT.MAX_SIZE_TEST": 64}
    cfg = make_cfg(opts=opts)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("onnx") / "exported"
    export_model(cfg, randomize(build_model(cfg)).eval(), folder)
    return folder


def test_equal_to_one_predictor(cluster, photographs, exported, tmp_path, capsys):
    model = ["--vocabulary", NAMES, "--backend", "onnx", "--weights", str(exported)]
    output, inputs = tmp_path / "out", [photographs / "photos"]
    options = ["--partition-size", 4, "--actors", 2]
    assert run(inputs, output, *options, model=model) == 1  # one image is damaged
    assert "10 images in 3 partitions, 1 errors" in capsys.readouterr().out
    predictor, found = OnnxPredictor(exported, NAMES), rows(output)
    assert [row["file"] for row in found if row["error"]] == [
        str(photographs / "photos" / "damaged.jpg")
    ]
    for row in (row for row in found if row["error"] is None):
        expected = predictor(row["file"])
        np.testing.assert_array_equal(label_map(row), expected.label_map)
        assert row["categories"] == [vars(category) for category in expected.found]
    assert run(inputs, output, *options, model=model) == 1
    assert "3 partitions skipped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other settings or images .*vocabulary"):
        run(inputs, output, *options, model=["--vocabulary", "cat; dog", *model[2:]])
    for wrong in (["--batch-size", "2"], ["--gpus-per-actor", "1"], ["--opts", "SEED", "1"]):
        with pytest.raises(SystemExit):
            run(inputs, output, *wrong, model=model)
        assert "--backend onnx" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="give the folder that tools/export.py wrote"):
        run(inputs, output, model=[*model[:-1], str(tmp_path)])


def test_an_error_of_the_backend_is_a_row(exported, monkeypatch):
    stage = RunOnnxModel(str(exported), NAMES, "onnxruntime", 1)
    monkeypatch.setattr(stage.predictor, "predict_resized", lambda *_, **__: 1 / 0)
    image = np.zeros((48, 64, 3), np.uint8)
    assert stage._segment([{"resized": image, "size": (480, 640)}]) == [
        {"error": "ZeroDivisionError: division by zero"}
    ]
