"""The exported programs give the answers of the model, for every size and every vocabulary."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcp_clip.export import stage1
from dcp_clip.export.conversion import _adaptive_average, _export
from dcp_clip.export.folder import export_model
from dcp_clip.export.support import ExportError
from dcp_clip.modeling.stages.stage1_proposal import AllCategories
from dcp_clip.modeling.stages.stage1_token_grouping import merge_tokens
from dcp_clip.structures import TextFeatures
from dcp_clip.vocabulary import Vocabulary

RELATIVE = 1e-4  # of the largest logit
EQUAL_PIXELS = 0.9999


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
@example(batch=1, height=400, width=400, num_categories=300, num_synonyms=1)  # merges tokens
@example(batch=1, height=64, width=64, num_categories=5000, num_synonyms=2)
def test_one_program_serves_all_sizes(
    model, program, make_image, monkeypatch, batch, height, width, num_categories, num_synonyms
):
    images = [make_image(height, width, seed=i) for i in range(batch)]
    text = random_text(num_categories, num_synonyms, model.backbone.embed_dim)
    with monkeypatch.context() as patch:
        compare(model, program, images, text, patch)


def test_the_program_of_torch_export_equals_that_of_onnx(exported, model, program, make_image):
    if "image" not in exported:
        pytest.skip("another worker has it in memory, and loading image.pt2 takes long")
    run = exported["image"].module(check_guards=False)
    for size, num_categories in (((1, 1), 1), ((70, 100), 4), ((64, 64), 33)):
        text = random_text(num_categories, 1, model.backbone.embed_dim)
        inputs = (make_image(*size)[None], text.embeddings, text.category_rows)
        results = run(*inputs)  # also without torch.no_grad()
        names = ("image", "text_features", "category_rows")
        others = program(
            {name: x.numpy() for name, x in zip(names, inputs, strict=True)}, ["ids", "logits"]
        )
        np.testing.assert_array_equal(results[1], others[0])
        np.testing.assert_allclose(results[5], others[1], atol=1e-3)


def test_a_program_of_torch_export_can_be_loaded(folder, onnx):
    run = torch.export.load(folder / "text.pt2").module(check_guards=False)
    tokens = torch.tensor([onnx._text._tokenizer.encode("a photo of a sky.").ids])
    (expected,) = onnx._text._program({"tokens": tokens.numpy()}, ["features"])
    torch.testing.assert_close(run(tokens), torch.from_numpy(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"MODEL.META_ARCHITECTURE": "PixelTextSegmentor"}, "MODEL.META_ARCHITECTURE"),
        ({"MODEL.DCP_CLIP.PROPOSAL.NAME": "OracleProposal"}, "MODEL.DCP_CLIP.PROPOSAL.NAME"),
        (
            {"MODEL.CLIP.ENCODER_WINDOW": 64, "MODEL.CLIP.ENCODER_WINDOW_STRIDE": 32},
            "MODEL.CLIP.ENCODER_WINDOW",
        ),
        ({"INPUT.RESIZE_TEST": "opencv"}, "INPUT.RESIZE_TEST is 'opencv'"),
        ({"TEST.AUG.ENABLED": True}, "TEST.AUG.ENABLED is True"),
        ({"MODEL.CLIP.NAME": "test-vit-16", "MODEL.CLIP.DENSE": "scclip"}, "DENSE is 'scclip'"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(can_export, make_cfg, tmp_path, options, key):
    cfg = make_cfg(opts=options)
    with pytest.raises(ExportError, match=key):
        export_model(cfg, build_model(cfg).eval(), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_all_categories_without_evidence_can_be_exported():
    proposal = AllCategories(num_proposals=1, pooled_weight=0.0, dense_weight=0.0)
    exportable = stage1.ExportableProposal.of(proposal)
    assert (exportable.pooled_weight, exportable.dense_weight) == (0.0, 0.0)


class _OneSize(torch.nn.Module):
    """``torch.kron`` fixes the sizes of its inputs, if they follow from those of the program."""

    def forward(self, x):
        return torch.kron(*(torch.ones(side // 2, side // 2) for side in x.shape))


def test_a_program_for_one_size_is_refused(can_export):
    dynamic = torch.export.Dim.DYNAMIC
    with pytest.raises(ExportError, match="some sizes only"):
        _export(_OneSize(), (torch.ones(18, 26),), ({0: dynamic, 1: dynamic},))


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
