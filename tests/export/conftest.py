"""A small model and its export, which is written once for all workers of pytest."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from filelock import FileLock

from dcp_clip.export.conversion import save_program
from dcp_clip.export.folder import TORCH, export_model
from dcp_clip.predictor import Predictor
from dcp_clip.runtime import OnnxPredictor
from dcp_clip.runtime.sessions import open_program

# Hard names for the tokenizer.
NAMES = ["sky", "tree, oak", "driver's seat", "天空", "Ampelmännchen", "ﬁsh &amp; chips"]


@pytest.fixture(scope="session")
def names():
    """Names that are hard for a tokenizer."""
    return NAMES


@pytest.fixture(scope="session")
def can_export():
    """Skip what needs an export where the packages for it are missing or too old."""
    for package in ("onnx", "onnxscript", "onnxruntime", "tokenizers"):
        pytest.importorskip(package)
    if tuple(map(int, torch.__version__.split(".")[:2])) < TORCH:
        pytest.skip("an older PyTorch cannot export")


@pytest.fixture(scope="session")
def cfg(make_cfg):
    """All five stages learn, 4 of 6 proposals are refined, every synonym has its own feature."""
    return make_cfg(
        opts={
            "MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING": "max",
            "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS": 6,
            "MODEL.DCP_CLIP.COARSE_DECODER.NUM_LAYERS": 1,
            "MODEL.DCP_CLIP.FINE_DECODER.NUM_CATEGORIES": 4,
            "INPUT.MIN_SIZE_TEST": 64,
            "INPUT.MAX_SIZE_TEST": 160,
            "DATASETS.TRAIN": (),
        }
    )


@pytest.fixture(scope="session")
def model(cfg, randomize):
    torch.manual_seed(0)
    return randomize(build_model(cfg)).eval()


@pytest.fixture(scope="session")
def exported():
    """The programs in memory, by name; empty if another worker has exported the model."""
    return {}


@pytest.fixture(scope="session")
def folder(can_export, cfg, model, exported, tmp_path_factory, worker_id):
    """The folder of the exported model."""

    def save(program, path):
        save_program(program, path)
        exported[path.stem] = program

    base = tmp_path_factory.getbasetemp()
    output = (base if worker_id == "master" else base.parent) / "exported"
    with FileLock(f"{output}.lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("dcp_clip.export.folder.save_program", save)
        if not output.exists():
            export_model(cfg, model, output)
    return output


@pytest.fixture(scope="session")
def program(folder):
    return open_program(folder / "image.onnx", "onnxruntime", threads=1)


@pytest.fixture(scope="session")
def onnx(folder):
    return OnnxPredictor(folder, NAMES, threads=1)


@pytest.fixture(scope="session")
def predictor(cfg, model):
    return Predictor(cfg, NAMES, model=model)


@pytest.fixture(scope="session")
def assert_equal():
    """``assert_equal(prediction, other, scores)``: equal up to rounding, scores up to `scores`."""

    def check(first, second, scores=1e-5):
        assert (first.label_map == second.label_map).mean() >= 0.9999
        assert first.label_map.dtype == second.label_map.dtype
        np.testing.assert_array_equal(first.category_ids, second.category_ids)
        np.testing.assert_allclose(first.scores, second.scores, atol=scores)
        np.testing.assert_allclose(first.confidence, second.confidence, atol=2e-3)
        for name, share in second.shares.items():
            assert first.shares.get(name, 0) == pytest.approx(share, abs=1e-3)

    return check
