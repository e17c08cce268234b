"""An exported model gives the answers of the model, for every size and every vocabulary."""

import json
import shutil
import subprocess
import sys
import threading
import venv
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from dcp_clip.export import stage1
from dcp_clip.export.conversion import _adaptive_average
from dcp_clip.export.folder import _TORCH, export_model
from dcp_clip.export.support import ExportError
from dcp_clip.modeling.inference import SlidingWindow
from dcp_clip.modeling.stages.stage1_token_grouping import merge_tokens
from dcp_clip.predictor import Predictor
from dcp_clip.runtime import OnnxPredictor, RuntimeFolderError
from dcp_clip.runtime.sessions import open_program
from dcp_clip.runtime.text import clean_text
from dcp_clip.structures import TextFeatures
from dcp_clip.utils.atomic_files import WriteError
from dcp_clip.vocabulary import Vocabulary, VocabularyError

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
if tuple(map(int, torch.__version__.split(".")[:2])) < _TORCH:
    pytest.skip("an older PyTorch cannot export", allow_module_level=True)
ROOT = Path(__file__).parents[2]
RELATIVE = 1e-4  # of the largest logit
EQUAL_PIXELS = 0.9999
NAMES = [
    "sky",
    "tree; oak",
    "driver's seat",
    "天空",
    "Ampelmännchen",
    "crème brûlée",
    "ﬁsh &amp; chips",
]


@pytest.fixture(scope="module")
def cfg(make_cfg):
    """All five stages learn, K is 4, and every synonym has its own feature."""
    return make_cfg(
        opts={
            "MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING": "max",
            "MODEL.DCP_CLIP.COARSE_DECODER.NUM_LAYERS": 1,
            "INPUT.MIN_SIZE_TEST": 64,
            "INPUT.MAX_SIZE_TEST": 160,
            "DATASETS.TRAIN": (),
        }
    )


@pytest.fixture(scope="module")
def model(cfg, randomize):
    torch.manual_seed(0)
    return randomize(build_model(cfg)).eval()


@pytest.fixture(scope="module")
def folder(cfg, model, tmp_path_factory):
    output = tmp_path_factory.mktemp("exported") / "model"
    export_model(cfg, model, output)
    return output


@pytest.fixture(scope="module")
def program(folder):
    return open_program(folder / "image.onnx", "onnxruntime", threads=1)


@pytest.fixture(scope="module")
def onnx(folder):
    return OnnxPredictor(folder, NAMES, threads=1)


@pytest.fixture(scope="module")
def predictor(cfg, model):
    return Predictor(cfg, NAMES, model=model)


def random_text(num_categories, num_synonyms, width, seed=0):
    """Text features and rows; some categories have fewer synonyms than others."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = num_categories * num_synonyms
    embeddings = F.normalize(torch.randn(num_rows, width, generator=generator), dim=1)
    rows = torch.arange(num_rows).view(num_categories, num_synonyms)
    rows[::2, 1:] = rows[::2, :1]
    return TextFeatures(embeddings, rows)


def compare(model, program, images, text, monkeypatch):
    """Compare a program with the model on images of one size; returns the model's results."""
    monkeypatch.setattr(model.text_encoder, "encode_vocabulary", lambda vocabulary: text)
    vocabulary = Vocabulary([f"name {i}" for i in range(text.num_categories)])
    with torch.no_grad():
        expected = model([{"image": image, "vocabulary": vocabulary} for image in images])
    inputs = (torch.stack(images), text.embeddings, text.category_rows)
    names = ("image", "text_features", "category_rows")
    outputs = ["label_map", "ids", "scores", "confidence", "presence", "logits"]
    results = program({name: x.numpy() for name, x in zip(names, inputs, strict=True)}, outputs)
    for result, *values in zip(expected, *results, strict=True):
        label_map, ids, scores, confidence, presence, logits = values
        sem_seg, proposals = result["sem_seg"], result["proposals"]
        np.testing.assert_array_equal(ids, proposals["ids"])
        np.testing.assert_allclose(scores, proposals["scores"], atol=1e-5)
        np.testing.assert_allclose(presence, proposals["presence"], atol=1e-4)
        largest = sem_seg.maps.abs().max().item()
        np.testing.assert_allclose(logits, sem_seg.maps, rtol=0, atol=RELATIVE * largest)
        assert (label_map == sem_seg.label_map()).mean() >= EQUAL_PIXELS
        np.testing.assert_allclose(confidence, sem_seg.confidence(), atol=2e-3)
    return expected


@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    batch=st.integers(1, 3),
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    num_categories=st.sampled_from([1, 2, 3, 4, 5, 31, 32, 33, 70]),
    num_synonyms=st.integers(1, 4),
)
@example(batch=1, height=1, width=1, num_categories=1, num_synonyms=1)
@example(batch=2, height=33, width=64, num_categories=4, num_synonyms=3)
@example(batch=1, height=600, width=500, num_categories=300, num_synonyms=1)  # merges tokens
@example(batch=1, height=64, width=64, num_categories=5000, num_synonyms=2)
def test_one_program_serves_all_sizes(
    model, program, make_image, monkeypatch, batch, height, width, num_categories, num_synonyms
):
    images = [make_image(height, width, seed=i) for i in range(batch)]
    text = random_text(num_categories, num_synonyms, model.backbone.embed_dim)
    with monkeypatch.context() as patch:
        compare(model, program, images, text, patch)


def test_the_program_of_torch_export_equals_that_of_onnx(folder, model, program, make_image):
    exported = torch.export.load(folder / "image.pt2").module()
    for size, num_categories in (((1, 1), 1), ((70, 100), 4), ((64, 64), 33)):
        text = random_text(num_categories, 1, model.backbone.embed_dim)
        inputs = (make_image(*size)[None], text.embeddings, text.category_rows)
        results = exported(*inputs)
        names = ("image", "text_features", "category_rows")
        others = program(
            {name: x.numpy() for name, x in zip(names, inputs, strict=True)}, ["ids", "logits"]
        )
        np.testing.assert_array_equal(results[1], others[0])
        np.testing.assert_allclose(results[-1], others[1], atol=1e-3)


def test_names_have_the_features_of_the_model(model, onnx):
    vocabulary = Vocabulary.parse([*NAMES, ["car", "auto mobile", "Wagen"], "a" * 20])
    expected, features = model.text_encoder.encode_vocabulary(vocabulary), onnx._text(vocabulary)
    np.testing.assert_allclose(features.embeddings, expected.embeddings, atol=2e-6)
    np.testing.assert_array_equal(features.category_rows, expected.category_rows)
    with pytest.raises(VocabularyError, match="needs .* tokens"):
        onnx.set_vocabulary(["word " * 60, "sky"])
    assert onnx.vocabulary == Vocabulary(NAMES)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_synonyms_are_pooled_as_in_the_model(model, onnx, monkeypatch, pooling):
    vocabulary = Vocabulary([["car", "automobile", "vehicle"], "sky", ["tree", "oak"]])
    monkeypatch.setattr(model.text_encoder, "synonym_pooling", pooling)
    monkeypatch.setitem(onnx.folder.settings, "synonym_pooling", pooling)
    expected, features = (
        model.text_encoder.encode_vocabulary(vocabulary),
        onnx._text._encode(vocabulary),
    )
    assert features.embeddings.dtype == np.float32
    np.testing.assert_allclose(features.embeddings, expected.embeddings, atol=2e-6)
    np.testing.assert_array_equal(features.category_rows, expected.category_rows)


@given(st.text(max_size=20))
@example("<b>İ&lt;ﬁ</b>  ’s")
def test_texts_are_tokenized_as_by_open_clip(model, onnx, text):
    tokenizer = model.text_encoder.tokenizer
    expected = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
    assert clean_text(text) == tokenizer.clean_fn(text)
    assert onnx._text._tokenizer.encode(clean_text(text)).ids == expected


def equal(first, second):
    assert (first.label_map == second.label_map).mean() >= EQUAL_PIXELS
    assert first.label_map.dtype == second.label_map.dtype
    np.testing.assert_array_equal(first.category_ids, second.category_ids)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)
    np.testing.assert_allclose(first.confidence, second.confidence, atol=2e-3)
    for name, share in second.shares.items():
        assert first.shares.get(name, 0) == pytest.approx(share, abs=1e-3)


def test_predictors_agree(onnx, predictor, make_image, tmp_path):
    image = make_image(90, 130).permute(1, 2, 0).numpy()
    path = tmp_path / "photo.png"
    Image.fromarray(image).save(path)
    equal(onnx(path), predictor(path))
    equal(onnx(image, size=(33, 500)), predictor(image, size=(33, 500)))
    names = [*NAMES, "!wall", *(f"name {i}" for i in range(300))]
    equal(onnx(image, vocabulary=names), predictor(image, vocabulary=names))
    equal(onnx(image, unknown_below=0.5), predictor(image, unknown_below=0.5))
    narrow = make_image(2, 900).permute(1, 2, 0).numpy()
    equal(onnx(narrow), predictor(narrow))
    onnx(image).save(tmp_path / "labels.png")
    np.testing.assert_array_equal(Image.open(tmp_path / "labels.png"), onnx(image).label_map)
    with pytest.raises(ValueError, match="uint8"):
        onnx(image / 255)


def test_bands_do_not_change_the_labels(onnx, make_image, monkeypatch):
    image = make_image(90, 130).permute(1, 2, 0).numpy()
    whole = onnx(image)
    monkeypatch.setattr("dcp_clip.runtime.segmentation._LOGITS_PER_BAND", 3000)
    np.testing.assert_array_equal(onnx(image).label_map, whole.label_map)


def test_windows_agree(cfg, model, folder, make_image, tmp_path, monkeypatch):
    copy = tmp_path / "windows"
    shutil.copytree(folder, copy)
    content = json.loads((copy / "config.json").read_text())
    content["window"], content["input"]["min_size"] = {"size": 96, "stride": 48}, 0
    (copy / "config.json").write_text(json.dumps(content))
    onnx = OnnxPredictor(copy, NAMES, threads=1)
    monkeypatch.setattr(model, "window", SlidingWindow(96, 48))
    changed = cfg.clone()
    changed.INPUT.MIN_SIZE_TEST = 0
    predictor = Predictor(changed, NAMES, model=model)
    for size in ((210, 150), (97, 30), (60, 90)):
        image = make_image(*size).permute(1, 2, 0).numpy()
        equal(onnx(image), predictor(image))


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


def test_wrong_folders_are_one_sentence(folder, cfg, model, tmp_path):
    with pytest.raises(RuntimeFolderError, match="has no image.onnx"):
        OnnxPredictor(tmp_path)
    with pytest.raises(ValueError, match="no default vocabulary"):
        OnnxPredictor(folder)
    with pytest.raises(ValueError, match="backend 'x'"):
        OnnxPredictor(folder, NAMES, backend="x")
    with pytest.raises(ValueError, match="has no X"):
        OnnxPredictor(folder, NAMES, providers=["X"])
    with pytest.raises(WriteError, match="not an empty folder"):
        export_model(cfg, model, folder)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for content, message in (('{"format": 9}', "format 9"), ("{", "damaged"), ("[]", "damaged")):
        (copy / "config.json").write_text(content)
        with pytest.raises(RuntimeFolderError, match=message):
            OnnxPredictor(copy)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"MODEL.META_ARCHITECTURE": "PixelTextSegmentor"}, "MODEL.META_ARCHITECTURE"),
        ({"MODEL.DCP_CLIP.PROPOSAL.NAME": "OracleProposal"}, "MODEL.DCP_CLIP.PROPOSAL.NAME"),
        (
            {"MODEL.CLIP.ENCODER_WINDOW": 64, "MODEL.CLIP.ENCODER_WINDOW_STRIDE": 32},
            "MODEL.CLIP.ENCODER_WINDOW",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(make_cfg, tmp_path, options, key):
    cfg = make_cfg(opts=options)
    with pytest.raises(ExportError, match=key):
        export_model(cfg, build_model(cfg).eval(), tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 200, 257, 512, 1000])
def test_tokens_are_merged_as_in_the_model(count):
    generator = torch.Generator().manual_seed(count)
    tokens = torch.randn(2, 8, count, generator=generator, dtype=torch.float64)
    tokens = F.normalize(tokens, dim=1)
    expected, _ = merge_tokens(tokens, torch.ones(2, count, dtype=torch.bool), 128)
    sums, live = F.pad(tokens.mT, (0, 0, 0, count % 2)), torch.tensor(count)
    while live > 128:
        sums, live = stage1.merge_round(sums, live, 128)
    assert not sums[:, live:].any()
    torch.testing.assert_close(F.normalize(sums[:, :live], dim=2).mT, expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 11), (20, 14)])
def test_average_pooling_as_matrix_products(size):
    x = torch.rand(2, 3, 20, 14)
    torch.testing.assert_close(_adaptive_average(x, size), F.adaptive_avg_pool2d(x, size))


# What dcp_clip.runtime needs, with what these packages import themselves.
RUNTIME_PACKAGES = [
    *("numpy", "onnxruntime", "flatbuffers", "protobuf", "packaging"),
    *("tokenizers", "Pillow", "PyYAML", "ftfy", "wcwidth"),
]
WITHOUT_TORCH = """
import importlib.util, sys, time
start = time.perf_counter()
from dcp_clip.runtime import OnnxPredictor
predictor = OnnxPredictor(sys.argv[1], sys.argv[3].split(";"), threads=1)
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
    (site,) = folder.glob("lib*/python*/site-packages")
    for package in RUNTIME_PACKAGES:
        distribution = metadata.distribution(package)
        for top in {file.parts[0] for file in distribution.files if file.parts[0] != ".."}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return folder / "bin" / "python"


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_an_environment_without_torch(
    python_without_torch, folder, predictor, make_image, tmp_path
):
    image = make_image(90, 130).permute(1, 2, 0).numpy()
    Image.fromarray(image).save(tmp_path / "photo.png")
    arguments = [folder, tmp_path / "photo.png", ";".join(NAMES), tmp_path / "labels.png"]
    command = [python_without_torch, "-c", WITHOUT_TORCH, *map(str, arguments)]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    labels = np.array(Image.open(tmp_path / "labels.png"))
    assert (labels == predictor(image).label_map).mean() >= EQUAL_PIXELS
