"""Test-time augmentation averages dense and pooled features over views, in evaluation only."""

import pytest
import torch
from detectron2.modeling import build_backbone
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dcp_clip.config import setup_cfg
from dcp_clip.modeling.clip.augmented_views import AugmentedViews

CLIPS = ["test-convnext", "test-vit-16", "test-vit-14-quickgelu"]
CELL = 8


def augmented(scales=(), flip=True):
    return {"TEST.AUG.ENABLED": True, "TEST.AUG.SCALES": scales, "TEST.AUG.FLIP": flip}


def some_images(height, width, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("scales", [(), (0.5, 1.5)])
def test_mirror_image_has_mirrored_features(make_backbone, clip, scales):
    """Without augmentation, these random towers distinguish an image from its mirror image."""
    backbone, plain = make_backbone(clip, augmented(scales)), make_backbone(clip)
    images = some_images(4 * backbone.size_divisibility, 2 * backbone.size_divisibility)
    with torch.no_grad():
        of_image, of_mirror = backbone(images), backbone(images.flip(-1))
        torch.testing.assert_close(of_mirror["dense"].flip(-1), of_image["dense"])
        torch.testing.assert_close(of_mirror["pooled"], of_image["pooled"])
        of_image, of_mirror = plain(images), plain(images.flip(-1))
    assert not torch.allclose(of_mirror["dense"].flip(-1), of_image["dense"], rtol=1e-2)
    assert not torch.allclose(of_mirror["pooled"], of_image["pooled"], rtol=1e-2)


@pytest.mark.parametrize("clip", CLIPS)
def test_only_dense_and_pooled_features_change(make_backbone, clip):
    backbone, plain = make_backbone(clip, augmented((0.5,))), make_backbone(clip)
    images = some_images(2 * backbone.size_divisibility, 3 * backbone.size_divisibility)
    with torch.no_grad():
        found, expected = backbone(images), plain(images)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].shape == tensor.shape
        assert torch.equal(found[key], tensor) == (key not in ("dense", "pooled"))
    for key in ("dense", "pooled"):  # heads may read the lengths
        ratio = found[key].norm(dim=1).mean() / expected[key].norm(dim=1).mean()
        assert 0.7 < ratio < 1.4


def test_training_uses_the_image_alone(make_backbone):
    backbone, plain = make_backbone("test-vit-16", augmented()), make_backbone("test-vit-16")
    images = some_images(32, 48)
    found, expected = backbone.train()(images), plain.train()(images)
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


@given(
    cells=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    scales=st.lists(st.floats(0.1, 2).filter(lambda scale: scale != 1), max_size=3),
    flip=st.booleans(),
)
def test_average_over_an_encoder_that_sees_only_its_size(cells, scales, flip):
    """Its features depend on the side of the view alone, so the average follows by hand."""
    if not (flip or scales):
        scales = [2.0]
    seen = []

    def encode(images):
        height, width = images.shape[-2:]
        assert height % CELL == 0 and width % CELL == 0
        seen.append((height, width))
        angle = torch.tensor(height / 10)
        vector = torch.stack([angle.sin(), angle.cos()])[None].expand(len(images), -1)
        grid = height // CELL, width // CELL
        return {"dense": vector[..., None, None].expand(-1, -1, *grid), "pooled": 3 * vector}

    size = cells[0] * CELL, cells[1] * CELL
    found = AugmentedViews(tuple(scales), flip).encode(encode, some_images(*size), CELL)
    assert seen[0] == size
    assert all(seen.count(other) == (2 if flip else 1) for other in set(seen))
    wanted = {tuple(max(1, round(side * s / CELL)) * CELL for side in size) for s in (1, *scales)}
    assert set(seen) == wanted
    angles = torch.tensor([height / 10 for height, _ in seen])
    mean = F.normalize(torch.stack([angles.sin(), angles.cos()]).mean(1), dim=0)
    torch.testing.assert_close(found["pooled"], 3 * mean.expand(2, -1))
    torch.testing.assert_close(found["dense"], mean[None, :, None, None].expand_as(found["dense"]))


WINDOWS = {"MODEL.CLIP.ENCODER_WINDOW": 64, "MODEL.CLIP.ENCODER_WINDOW_STRIDE": 32}


def test_windows_of_the_encoder_are_averaged_too(make_backbone):
    backbone = make_backbone("test-vit-16", augmented() | WINDOWS)
    images = some_images(64, 96)
    with torch.no_grad():
        found, mirrored = backbone(images), backbone(images.flip(-1))
    torch.testing.assert_close(mirrored["dense"].flip(-1), found["dense"])


def test_image_of_one_window_stays_whole_at_larger_sizes(make_backbone, monkeypatch):
    """Its views are as many passes of the encoder."""
    backbone, seen = make_backbone("test-vit-16", augmented((1.5,)) | WINDOWS), []
    encode = backbone._tower.encode
    monkeypatch.setattr(
        backbone._tower, "encode", lambda x: seen.append(tuple(x.shape[-2:])) or encode(x)
    )
    with torch.no_grad():
        backbone(some_images(64, 32))
    assert seen == [(64, 32)] * 2 + [(96, 48)] * 2


@torch.no_grad()
def test_a_model_without_decoders_gives_mirrored_labels(make_model, make_image):
    opts = {
        "MODEL.DCP_CLIP.TEXT_GUIDANCE.NAME": "StaticGuidance",
        "MODEL.DCP_CLIP.COARSE_DECODER.NAME": "CosineDecoder",
        "MODEL.DCP_CLIP.FINE_DECODER.NAME": "BilinearDecoder",
        "MODEL.DCP_CLIP.CLASS_REFINEMENT.NAME": "NoRefinement",
    }
    model, image = make_model(opts=opts | augmented((1.5,))), make_image(64, 96)
    found, mirrored = (
        model([{"image": x}])[0]["sem_seg"].to_dense() for x in (image, image.flip(-1))
    )
    torch.testing.assert_close(mirrored.flip(-1), found, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "opts",
    [
        {"MODEL.META_ARCHITECTURE": "SimilaritySegmentor", **WINDOWS},
        {"MODEL.META_ARCHITECTURE": "PixelTextSegmentor"},
        {"MODEL.META_ARCHITECTURE": "MaskQuerySegmentor"},
        {"MODEL.CLIP.PROXY.NAME": "test_vit"},
        {"MODEL.DCP_CLIP.BF16": True},
        {"MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE": 64},
    ],
)
def test_every_kind_of_model_has_other_results(make_model, make_image, opts):
    image = make_image(64, 96)
    results = [
        make_model("test-vit-16", opts | extra)([{"image": image}])[0]
        for extra in ({}, augmented((1.5,)))
    ]
    scores = [result["proposals"]["scores"] for result in results]
    labels = [result["sem_seg"].argmax(dim=0) for result in results]
    assert not (torch.equal(*scores) and torch.equal(*labels))
    assert all(x.isfinite().all() for x in scores)


@torch.no_grad()
def test_kept_image_has_the_same_answer(make_model, make_image):
    model, image = make_model(opts=augmented((0.5,))), make_image(64, 96)
    kept = model([{"image": image, "features": model.encode_image(image)}])[0]["sem_seg"]
    assert torch.equal(kept.maps, model([{"image": image}])[0]["sem_seg"].maps)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (augmented((0.9, 0.0)), r"SCALES contains 0\.0; a scale must be a number above 0"),
        (augmented((5.0,)), r"SCALES contains 5\.0; .* at most 4"),
        (augmented(("big",)), r"SCALES contains 'big'"),
        (augmented((0.9, 1.0)), r"SCALES contains 1\.0; .* but not 1"),
        (augmented((), flip=False), r"FLIP is False and TEST\.AUG\.SCALES is empty"),
        (augmented() | {"TEST.AUG.MIN_SIZES": (100, 200)}, r"MIN_SIZES has no effect"),
        (augmented() | {"TEST.AUG.MAX_SIZE": 100}, r"MAX_SIZE has no effect"),
    ],
)
def test_invalid_settings(make_cfg, opts, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(make_cfg("test-vit-16", opts))


def test_off_by_default():
    assert AugmentedViews.from_config(setup_cfg()) is None
