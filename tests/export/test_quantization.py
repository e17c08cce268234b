"""Exports in int8: the convolutions of the programs, and the settings."""

import json
import shutil
import sys

import numpy as np
import onnx as onnx_package
import pytest
from PIL import Image

from dcp_clip.export.folder import export_model
from dcp_clip.export.quantization import quantize_convolutions
from dcp_clip.export.support import ExportError
from dcp_clip.runtime import OnnxPredictor

INT8 = onnx_package.TensorProto.INT8


def test_an_export_in_int8_has_other_settings(can_export, cfg, model, monkeypatch, tmp_path):
    """So a run does not continue with the results of the other."""
    for name in ("save_program", "write_onnx", "quantize_convolutions"):
        monkeypatch.setattr(f"dcp_clip.export.folder.{name}", lambda *_: None)
    for name in ("labels", "text", "image"):
        monkeypatch.setattr(f"dcp_clip.export.folder.export_{name}", lambda *_: None)
    settings = []
    for name, photographs in (("fp32", None), ("int8", [])):
        export_model(cfg, model, tmp_path / name, photographs)
        settings.append(json.loads((tmp_path / name / "config.json").read_text()))
    assert settings[1] == settings[0] | {"int8": True}


def test_onnx_runtime_is_missed_before_the_export(can_export, cfg, model, monkeypatch, tmp_path):
    monkeypatch.setattr("dcp_clip.export.folder._write", None)
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(ExportError, match="int8 needs ONNX Runtime: pip install"):
        export_model(cfg, model, tmp_path / "int8", [])


def test_convolutions_in_int8(folder, onnx, make_image, tmp_path, names):
    copy = tmp_path / "int8"
    shutil.copytree(folder, copy)
    images = [make_image(90, 130, seed=i).permute(1, 2, 0).numpy() for i in range(3)]
    photographs = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(photographs, images, strict=True):
        Image.fromarray(image).save(path)
    with pytest.raises(ExportError, match="has none"):
        quantize_convolutions(copy, [], names)
    quantize_convolutions(copy, photographs)  # with the names of COCO-Stuff
    # With 8 bits, sums overflow on CPUs with AVX2 and no VNNI.
    for program in ("encoder", "head"):
        tensors = onnx_package.load(copy / f"{program}.onnx").graph.initializer
        weights = [onnx_package.numpy_helper.to_array(x) for x in tensors if x.data_type == INT8]
        kernels = [x for x in weights if x.ndim == 4]
        assert kernels and max(abs(x.astype(int)).max() for x in kernels) <= 64
    quantized = OnnxPredictor(copy, names, threads=1)
    first = [quantized(image) for image in images]
    expected = [onnx(image) for image in images]
    same = [(a.label_map == b.label_map).mean() for a, b in zip(first, expected, strict=True)]
    assert np.mean(same) > 0.8
    assert any(not np.array_equal(a.scores, b.scores) for a, b in zip(first, expected, strict=True))
