"""Memory does not grow with the number of images or vocabularies."""

import gc
import os
from pathlib import Path

import pytest
import torch

from dcp_clip.modeling.clip import text_cache
from dcp_clip.modeling.clip.text_encoder import TextEncoder
from dcp_clip.predictor import Prediction, Predictor
from dcp_clip.vocabulary import Vocabulary

IMAGES, VOCABULARIES = 1000, 200
BOUND = 100_000  # bytes of the text cache on disk
NOISE = 16 << 20  # bytes by which the allocator may differ


def resident_bytes():
    """The memory of this process that is not swapped out."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure():
    """The number of tensors, vocabularies and answers, and the resident memory in bytes."""
    gc.collect()
    kinds = [type(x) for x in gc.get_objects()]
    return [kinds.count(kind) for kind in (torch.Tensor, Vocabulary, Prediction)], resident_bytes()


@pytest.fixture
def predictor(make_cfg, make_model, tmp_path):
    options = {
        "INPUT.MIN_SIZE_TEST": 32,
        "MODEL.DCP_CLIP.FINE_DECODER.NAME": "BilinearDecoder",
        "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": str(tmp_path / "text"),
    }
    cfg, model = make_cfg("test-vit-16", options), make_model("test-vit-16", options)
    return Predictor(cfg, "sky; tree; car", model=model)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux")
def test_memory_is_flat(predictor, make_image, tmp_path, monkeypatch):
    monkeypatch.setattr(text_cache, "MAX_FOLDER_BYTES", BOUND)
    encoder = next(m for m in predictor.model.modules() if isinstance(m, TextEncoder))
    encoder._names.size = 8  # names in memory; the usual bound is larger than this test needs
    images = [make_image(32, 32, seed).permute(1, 2, 0).numpy() for seed in range(10)]
    vocabularies = [f"name {i}; sky; tree" for i in range(VOCABULARIES)]

    monkeypatch.setattr(os, "fsync", lambda file: None)  # slow, and it takes no memory

    def ask(count):
        """Every fifth image comes with another vocabulary."""
        for i in range(count):
            vocabulary = vocabularies[i // 5] if i % 5 == 0 else None
            predictor(images[i % 10], vocabulary=vocabulary)

    ask(100)
    counts, resident = measure()
    ask(IMAGES)
    counts_after, resident_after = measure()
    assert counts_after == counts
    assert resident_after - resident < NOISE
    assert len(encoder._cache) == len(encoder._names) == 8
    files = list((tmp_path / "text").iterdir())
    assert 1 < len(files) < VOCABULARIES // 2
    assert sum(path.stat().st_size for path in files) <= BOUND
