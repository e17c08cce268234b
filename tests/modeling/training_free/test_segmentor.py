"""SimilaritySegmentor: the published configs, step by step, with a small tower."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from dcp_clip.config import setup_cfg
from dcp_clip.modeling.clip.families.vit import position_embedding
from dcp_clip.modeling.large_image import segment_large_image
from dcp_clip.modeling.training_free.pamr import pixel_adaptive_refinement
from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import Vocabulary, load_templates

CONFIGS = Path(__file__).parents[3] / "configs" / "training_free" / "published"
FILES = sorted(path for path in CONFIGS.glob("*.yaml") if path.name != "Base.yaml")
NAMES = [["sky", "wall", "tree"], ["car", "automobile"], ["cat"]]
NODE = "MODEL.TRAINING_FREE."
# From the publications: short side, window, stride, scale, steps of PAMR, reading, residual.
PUBLISHED = {
    "maskclip": (512, 0, 112, 20, 0, "maskclip", True),
    "sclip": (336, 224, 112, 40, 0, "sclip", True),
    "clearclip": (448, 448, 224, 50, 0, "clearclip", False),
    "naclip": (336, 224, 112, 40, 0, "naclip", False),
    "naclip_pamr": (336, 224, 112, 40, 10, "naclip", False),
}


@pytest.fixture(scope="module")
def make(tiny_clips, randomize):
    """``make(stem, {key: value})``: the model of a config with a small ViT and small windows."""

    @functools.cache
    def built(stem, opts):
        windows = (0, 112) if stem == "maskclip" else (64, 32)
        options = {
            "MODEL.CLIP.NAME": "test-vit-16",
            "MODEL.CLIP.PRETRAINED": "",
            "MODEL.CLIP.ENCODER_WINDOW": windows[0],
            "MODEL.CLIP.ENCODER_WINDOW_STRIDE": windows[1],
            "MODEL.DEVICE": "cpu",
            "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "",
        } | dict(opts)
        flat = [x for pair in options.items() for x in pair]
        torch.manual_seed(0)
        return randomize(build_model(setup_cfg(CONFIGS / f"{stem}.yaml", flat))).eval()

    return lambda stem, opts=None: built(stem, tuple((opts or {}).items()))


@pytest.mark.parametrize("stem", PUBLISHED)
def test_settings(stem):
    assert {path.stem for path in FILES} == set(PUBLISHED)
    cfg = setup_cfg(CONFIGS / f"{stem}.yaml")
    clip, node = cfg.MODEL.CLIP, cfg.MODEL.TRAINING_FREE
    assert PUBLISHED[stem] == (
        cfg.INPUT.MIN_SIZE_TEST,
        clip.ENCODER_WINDOW,
        clip.ENCODER_WINDOW_STRIDE,
        cfg.MODEL.DCP_CLIP.SIMILARITY_SCALE,
        node.PAMR_STEPS,
        clip.DENSE,
        clip.DENSE_RESIDUAL,
    )
    assert (clip.NAME, clip.PRETRAINED) == ("ViT-B-16-quickgelu", "openai")
    assert cfg.INPUT.MAX_SIZE_TEST == 2048 and cfg.INPUT.RESIZE_TEST == "opencv"


def text_by_hand(model, names, templates):
    """The mean of the unit-length features of the prompts, of unit length."""
    features = []
    for name in names:
        prompts = [template.replace("{}", name) for template in templates]
        vectors = model.text_encoder(model.text_encoder.tokenizer(prompts))
        mean = (vectors / vectors.norm(dim=1, keepdim=True)).mean(0)
        features.append(mean / mean.norm())
    return torch.stack(features)


def average_over_windows(model, image, text, window, stride):
    """Cosines of each window, upsampled to it; their mean at each pixel."""
    height, width = image.shape[-2:]
    total, count = torch.zeros(len(text), height, width), torch.zeros(height, width)
    for y in range(math.ceil(max(height - window, 0) / stride) + 1):
        for x in range(math.ceil(max(width - window, 0) / stride) + 1):
            top = max(min(y * stride + window, height) - window, 0)
            left = max(min(x * stride + window, width) - window, 0)
            crop = image[:, top : top + window, left : left + window]
            dense = model.backbone(crop[None])["dense"]
            cosine = torch.einsum("nd,bdhw->bnhw", text, dense / dense.norm(dim=1, keepdim=True))
            maps = F.interpolate(cosine, crop.shape[-2:], mode="bilinear", align_corners=False)
            total[:, top : top + window, left : left + window] += maps[0]
            count[top : top + window, left : left + window] += 1
    return total / count


@torch.no_grad()
@pytest.mark.parametrize("stem", ["sclip", "clearclip", "naclip_pamr"])
def test_every_step_of_an_image(make, make_image, stem):
    """Prompts, windows, upsampling, PAMR, scale, softmax, synonyms and thresholds by hand."""
    opts = {
        NODE + "PROBABILITY_THRESHOLD": 0.3,
        NODE + "AREA_THRESHOLD": 0.1,
        "MODEL.DCP_CLIP.SIMILARITY_SCALE": 20.0,
        "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": "vild14",
    }
    model, image = make(stem, opts), make_image(96, 135)
    inputs = {"image": image, "height": 60, "width": 90, "vocabulary": Vocabulary(NAMES)}
    (output,) = model([inputs])
    flat = [name for names in NAMES for name in names]
    text = text_by_hand(model, flat, load_templates("vild14"))
    pixels = (image - model.pixel_mean) / model.pixel_std
    maps = average_over_windows(model, pixels, text, 64, 32)
    maps = F.interpolate(maps[None], (60, 90), mode="bilinear", align_corners=False)[0]
    if stem == "naclip_pamr":
        guide = F.interpolate(pixels[None], (60, 90), mode="bilinear", align_corners=False)[0]
        maps = pixel_adaptive_refinement(maps, guide, 10, (8, 16))
    names = (20.0 * maps).softmax(0)
    best = torch.stack([part.amax(0) for part in names.split([3, 2, 1])])
    winners = best.argmax(0)
    area = torch.stack([(winners == i).sum() for i in range(3)])
    for category in (1, 2):
        if area[category] <= 0.1 * (area[1] + area[2]):
            best[category] = 0
    expected = best.argmax(0)
    expected[best.amax(0) < 0.3] = 0
    labels = torch.from_numpy(output["sem_seg"].label_map().astype(np.int64))
    assert labels.shape == (60, 90)
    assert len(expected.unique()) > 1
    assert (labels != expected).float().mean() < 1e-3  # ties within rounding


@torch.no_grad()
@pytest.mark.parametrize("stem", PUBLISHED)
@pytest.mark.parametrize("size", [(1, 1), (5, 200), (70, 83)])
def test_any_size_and_batches(make, make_image, stem, size):
    model = make(stem, {"MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": "single"})
    model.set_vocabulary(Vocabulary(NAMES))
    images = [make_image(*size, seed=seed) for seed in range(2)]
    together = model([{"image": image} for image in images])
    for image, output in zip(images, together, strict=True):
        (alone,) = model([{"image": image}])
        labels = output["sem_seg"].label_map()
        assert labels.shape == size
        np.testing.assert_array_equal(labels, alone["sem_seg"].label_map())
        assert output["proposals"]["ids"].tolist() == [0, 1, 2]
        assert output["proposals"]["scores"].isfinite().all()


@torch.no_grad()
def test_the_position_table_off_the_native_grid(make):
    """Cubic convolution (a = -0.75) at (i + 0.5) / scale - 0.5, with scale (n + 0.1) / native."""
    vit = make("naclip").backbone.visual
    table = vit.positional_embedding[1:].unflatten(0, vit.grid_size)  # (4, 4, C)

    def weights(new, old):
        matrix, scale = torch.zeros(new, old), (new + 0.1) / old
        for i in range(new):
            place = (i + 0.5) / scale - 0.5
            for j in range(math.floor(place) - 1, math.floor(place) + 3):
                d = abs(place - j)
                if d <= 1:
                    weight = 1.25 * d**3 - 2.25 * d**2 + 1
                else:
                    weight = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
                matrix[i, min(max(j, 0), old - 1)] += weight
        return matrix

    rows, columns = weights(7, 4), weights(5, 4)
    expected = torch.einsum("ri,sj,ijc->rsc", rows, columns, table).flatten(0, 1)
    found = position_embedding(vit, (7, 5), 0.1)
    torch.testing.assert_close(found[1:], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0], vit.positional_embedding[0])
    assert (found - position_embedding(vit, (7, 5))).abs().max() > 1e-3
    assert position_embedding(vit, (4, 4), 0.1) is vit.positional_embedding


def test_the_offset_reaches_the_features(make, make_image):
    image = (make_image(96, 64).float() / 255)[None]
    features = [
        make("naclip", {"MODEL.CLIP.POSITION_OFFSET": offset, "MODEL.CLIP.ENCODER_WINDOW": 0})
        .backbone(image)["dense"]
        .detach()
        for offset in (0.0, 0.1)
    ]
    assert (features[0] - features[1]).abs().max() > 1e-4


def test_in_python(make_image, monkeypatch):
    cfg = setup_cfg(
        CONFIGS / "naclip_pamr.yaml",
        ["MODEL.CLIP.NAME", "test-vit-16", "MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu"]
        + ["MODEL.DCP_CLIP.VOCABULARY.TEMPLATES", "single", "INPUT.MIN_SIZE_TEST", 64]
        + ["MODEL.CLIP.ENCODER_WINDOW", 64, "MODEL.CLIP.ENCODER_WINDOW_STRIDE", 32],
    )
    predictor = Predictor(cfg, "sky, wall; car", allow_random_weights=True)
    image = make_image(90, 120).permute(1, 2, 0).numpy()
    found = predictor(image)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.confidence.shape == (90, 120) and found.to_coco("a.jpg")
    assert predictor(image, unknown_below=0.99).shares != found.shares
    # It gives no logits for the windows of a large image, which is resized as others are.
    monkeypatch.setattr("dcp_clip.predictor.LARGE_IMAGE_PIXELS", 1000)
    np.testing.assert_array_equal(predictor(image).label_map, found.label_map)
    predictor.set_image(image)
    with monkeypatch.context() as patch:  # a kept image is not encoded again
        patch.setattr(type(predictor.model.backbone), "forward", None)
        np.testing.assert_array_equal(predictor.predict().label_map, found.label_map)
    other = predictor(image, vocabulary="sky; tree; cat").label_map
    np.testing.assert_array_equal(predictor.predict("sky; tree; cat").label_map, other)
    with pytest.raises(ValueError, match="'SimilaritySegmentor' gives labels without logits"):
        segment_large_image(predictor.model, predictor.vocabulary, make_image(90, 120))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({NODE + "PADDING": "reflect"}, "PADDING is 'reflect'; known are none, end, center"),
        ({NODE + "PAMR_STEPS": -1}, "PAMR_STEPS is -1; it must be 0 or more"),
        ({NODE + "PROBABILITY_THRESHOLD": 1.5}, "PROBABILITY_THRESHOLD is 1.5"),
        ({"MODEL.CLIP.ENCODER_WINDOW": 8}, "ENCODER_WINDOW is 8 .* multiples of 16 pixels"),
        ({"MODEL.CLIP.POSITION_OFFSET": 2.0}, "POSITION_OFFSET is 2.0"),
        (
            {"MODEL.CLIP.NAME": "test-convnext", "MODEL.CLIP.DENSE": "maskclip"}
            | {"MODEL.CLIP.ENCODER_WINDOW": 0},
            "POSITION_OFFSET is 0.1, but .* does not use it",
        ),
        ({"MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE": 64}, "SLIDING_WINDOW.SIZE has no effect"),
    ],
)
def test_impossible_settings_are_refused(make, options, message):
    with pytest.raises(ValueError, match=message):
        make("naclip", options)


def test_it_does_not_train(make, make_image):
    model = make("naclip", {"MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": "single"})
    inputs = [{"image": make_image(32, 32), "vocabulary": Vocabulary(NAMES)}]
    with pytest.raises(ValueError, match="nothing to train: use --eval-only"):
        model.train()(inputs)
    model.eval()
