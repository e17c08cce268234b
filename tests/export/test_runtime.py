"""`OnnxPredictor`, the demo and the benchmark run an exported model as the model itself."""

import json
import shutil
import subprocess
import sys
import threading
import venv
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dcp_clip.benchmarking.backends import measure_backends
from dcp_clip.export.folder import export_model
from dcp_clip.modeling.sliding_window import SlidingWindow
from dcp_clip.predictor import Predictor
from dcp_clip.runtime import OnnxPredictor, RuntimeFolderError
from dcp_clip.utils.atomic_files import WriteError
from dcp_clip_cli import segment

ROOT = Path(__file__).parents[2]
EQUAL_PIXELS = 0.9999


def test_predictors_agree(onnx, predictor, make_image, tmp_path, names, assert_equal):
    image = make_image(90, 130).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(path := tmp_path / "photo.png")
    assert_equal(onnx(path), predictor(path))
    assert_equal(onnx(image, size=(33, 500)), predictor(image, size=(33, 500)))
    many = [*names, "!wall", *(f"name {i}" for i in range(300))]
    assert_equal(onnx(image, vocabulary=many), predictor(image, vocabulary=many))
    assert_equal(onnx(image, unknown_below=0.5), predictor(image, unknown_below=0.5))
    narrow = make_image(2, 900).permute(1, 2, 0).numpy()
    assert_equal(onnx(narrow), predictor(narrow))
    for below in (0.0, 0.5, 1.0):
        found = onnx(image, unknown_below=below)
        found.save(tmp_path / "labels.png")
        np.testing.assert_array_equal(Image.open(tmp_path / "labels.png"), found.label_map)
    for wrong in ([image / 255], [image, (0, 5)], [onnx.set_image(image), (0, 5)]):
        with pytest.raises(ValueError, match="uint8" if len(wrong) == 1 else "size must be"):
            onnx(*wrong)


def test_an_image_is_encoded_once_for_several_vocabularies(
    folder, onnx, make_image, tmp_path, names
):
    image = make_image(90, 130).permute(1, 2, 0).numpy()
    other = make_image(70, 60).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(path := tmp_path / "photo.png")
    predictor = OnnxPredictor(folder, names, threads=1)
    with pytest.raises(ValueError, match="call set_image first"):
        predictor.predict()
    encoded = predictor.set_image(path, size=(45, 65))
    assert encoded.nbytes > 0 and predictor.image is encoded
    encode = predictor.model.encoder
    predictor.model.encoder = SimpleNamespace(outputs=encode.outputs)  # cannot run
    for vocabulary in (None, "sky; !wall", [f"name {i}" for i in range(40)]):
        found = predictor.predict(vocabulary, unknown_below=0.3)
        expected = onnx(image, (45, 65), vocabulary, unknown_below=0.3)
        np.testing.assert_array_equal(found.label_map, expected.label_map)
        np.testing.assert_array_equal(found.scores, expected.scores)
    predictor.model.encoder = encode
    buffer = other.copy()
    kept = predictor.set_image(buffer)
    expected = predictor.predict().label_map.copy()
    buffer[:] = 255 - other  # a camera uses its array again
    np.testing.assert_array_equal(predictor.predict().label_map, expected)
    kept.encoder = {}
    with pytest.raises(ValueError, match="Another model encoded this image"):
        predictor(kept)
    predictor.set_image(other)
    np.testing.assert_array_equal(predictor.predict().label_map, onnx(other).label_map)
    np.testing.assert_array_equal(
        predictor(encoded, size=image.shape[:2]).label_map, onnx(image).label_map
    )


def test_bands_do_not_change_the_labels(onnx, make_image, monkeypatch):
    image = make_image(90, 130).permute(1, 2, 0).numpy()
    whole = onnx(image)
    monkeypatch.setattr("dcp_clip.runtime.segmentation._LOGITS_PER_BAND", 3000)
    np.testing.assert_array_equal(onnx(image).label_map, whole.label_map)


def test_windows_agree(cfg, model, folder, make_image, tmp_path, monkeypatch, names, assert_equal):
    copy = tmp_path / "windows"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "config.json").read_text())
    content["window"], content["input"]["min_size"] = {"size": 96, "stride": 48}, 0
    (copy / "config.json").write_text(json.dumps(content))
    onnx = OnnxPredictor(copy, names, threads=1)
    monkeypatch.setattr(model, "window", SlidingWindow(96, 48))
    # The folder is that of a model without windows. With windows, twice as many categories go on.
    monkeypatch.setattr(model, "num_fine_categories", model.num_fine_categories // 2)
    changed = cfg.clone()
    changed.INPUT.MIN_SIZE_TEST = 0
    predictor = Predictor(changed, names, model=model)
    for size in ((210, 150), (97, 30), (60, 90)):
        image = make_image(*size).permute(1, 2, 0).numpy()
        # Pillow and PyTorch reduce the image for stage 1; some bytes differ by one.
        assert_equal(onnx(image), predictor(image), scores=2e-3)
        onnx.set_image(image)
        for vocabulary in (names, "sky; tree"):
            expected = onnx(image, vocabulary=vocabulary).label_map
            np.testing.assert_array_equal(onnx.predict(vocabulary).label_map, expected)


def test_threads_share_a_predictor(onnx, make_image):
    images = [make_image(60, 60 + i).permute(1, 2, 0).numpy() for i in range(4)]
    expected = [onnx(image, vocabulary=f"sky; name {i}") for i, image in enumerate(images)]
    results = [None] * 4

    def run(i):
        results[i] = onnx(images[i], vocabulary=f"sky; name {i}")

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result, other in zip(results, expected, strict=True):
        np.testing.assert_array_equal(result.label_map, other.label_map)


def test_wrong_folders_are_one_sentence(folder, cfg, model, tmp_path, names):
    with pytest.raises(RuntimeFolderError, match="has no encoder.onnx"):
        OnnxPredictor(tmp_path)
    with pytest.raises(ValueError, match="no default vocabulary"):
        OnnxPredictor(folder)
    with pytest.raises(ValueError, match="backend 'x'"):
        OnnxPredictor(folder, names, backend="x")
    with pytest.raises(ValueError, match="has no X"):
        OnnxPredictor(folder, names, providers=["X"])
    with pytest.raises(ValueError, match="providers belong to the backend 'onnxruntime'"):
        OnnxPredictor(folder, names, backend="openvino", providers=["CPUExecutionProvider"])
    with pytest.raises(WriteError, match="not an empty folder"):
        export_model(cfg, model, folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for content, message in (('{"format": 9}', "format 9"), ("{", "damaged"), ("[]", "damaged")):
        (copy / "config.json").write_text(content)
        with pytest.raises(RuntimeFolderError, match=message):
            OnnxPredictor(copy)


# What dcp_clip.runtime needs, with what these packages import themselves.
RUNTIME_PACKAGES = [
    *("numpy", "onnxruntime", "flatbuffers", "protobuf", "packaging"),
    *("tokenizers", "Pillow", "PyYAML", "ftfy", "wcwidth"),
]
WITHOUT_TORCH = """
import importlib.util, json, sys, time
start = time.perf_counter()
from dcp_clip.runtime import OnnxPredictor
predictor = OnnxPredictor(sys.argv[1], json.loads(sys.argv[3]), threads=1)
predictor(sys.argv[2]).save(sys.argv[4])
print(time.perf_counter() - start)
for name in ("torch", "cv2", "detectron2", "open_clip", "scipy", "matplotlib"):
    assert importlib.util.find_spec(name) is None, name
import dcp_clip
try:
    dcp_clip.Predictor
except ImportError as error:
    assert "needs PyTorch" in str(error)
else:
    raise AssertionError
"""


@pytest.fixture(scope="module")
def python_without_torch(tmp_path_factory):
    """The Python of a virtual environment with these packages only, linked instead of installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for package in RUNTIME_PACKAGES:
        distribution = metadata.distribution(package)
        for top in {file.parts[0] for file in distribution.files if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_an_environment_without_torch(
    python_without_torch, folder, predictor, make_image, tmp_path, names
):
    image = make_image(90, 130).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(tmp_path / "photo.png")
    arguments = [folder, tmp_path / "photo.png", json.dumps(names), tmp_path / "labels.png"]
    command = [python_without_torch, "-c", WITHOUT_TORCH, *map(str, arguments)]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    labels = np.array(Image.open(tmp_path / "labels.png"))
    assert (labels == predictor(image).label_map).mean() >= EQUAL_PIXELS


def test_openvino_gives_the_same_labels(folder, predictor, make_image, names, assert_equal):
    pytest.importorskip("openvino")
    onnx = OnnxPredictor(folder, names, backend="openvino", threads=1)
    image = make_image(90, 130).permute(1, 2, 0).numpy()
    for vocabulary in (names, "sky; tree", [f"name {i}" for i in range(40)]):
        expected = predictor(image, vocabulary=vocabulary)
        assert_equal(onnx(image, vocabulary=vocabulary), expected)


def test_cuda_gives_the_same_labels(folder, predictor, make_image, names, assert_equal):
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime has no CUDA here")
    onnx = OnnxPredictor(folder, names, providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    image = make_image(90, 130).permute(1, 2, 0).numpy()
    assert_equal(onnx(image), predictor(image))


def test_backends_are_compared(cfg, model, folder, make_image, monkeypatch):
    image = make_image(64, 64)
    subject = SimpleNamespace(cfg=cfg, model=model, input={"image": image})
    module = "dcp_clip.benchmarking.backends"
    monkeypatch.setattr(
        f"{module}.export_model", lambda cfg, model, to: shutil.copytree(folder, to)
    )
    rows = measure_backends(subject, ["torch", "onnx"], 6, 1)
    assert [row["backend"] for row in rows] == ["torch", "onnx"]
    assert rows[0]["speed_up"] == 1 and rows[1]["image_seconds"] > 0
    assert min(row["equal_pixels"] for row in rows) >= EQUAL_PIXELS


def test_the_demo_runs_an_exported_model(folder, make_image, tmp_path, capsys):
    image = make_image(60, 70).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(tmp_path / "photo.png")
    arguments = ["--input", str(tmp_path / "photo.png"), "--output", str(tmp_path / "out")]
    arguments += ["--backend", "onnx", "--vocabulary", "sky; tree"]
    formats = ["--format", "overlay", "labels", "confidence", "coco"]
    assert segment.main([*arguments, *formats, "--weights", str(folder)]) == 0
    assert len(list((tmp_path / "out").glob("photo*"))) >= 3
    arguments += ["--max-pixels", "1000"]
    assert segment.main([*arguments, "--weights", str(folder), "--overwrite"]) == 0
    assert json.loads((tmp_path / "out" / "run.json").read_text())["max_input_pixels"] == 1000
    for wrong, message in (([], "needs --weights"), (["--weights", str(tmp_path)], "encoder.onnx")):
        with pytest.raises(SystemExit) as raised:
            segment.main([*arguments, *wrong])
        assert message in f"{raised.value} {capsys.readouterr().err}"
