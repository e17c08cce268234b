"""Fixtures for the model: a small text encoder, batches, and helpers of several test files."""

import pytest
import torch
from torch.nn import functional as F

from dcp_clip.modeling import TextEncoder
from dcp_clip.vocabulary import Vocabulary

_VOCABULARY = Vocabulary(["sky", ["tree", "shrub"], "car", "road", "wall", "cat", "dog", "sand"])


@pytest.fixture
def make_encoder(make_cfg, randomize, tmp_path):
    """``make_encoder(clip, {key: value}, cache, chunk_size)``: a frozen text encoder.

    `cache` is the name of its cache folder, "" for none.
    """

    def make(clip="test-convnext", opts=None, cache="text", chunk_size=None):
        torch.manual_seed(0)
        folder = str(tmp_path / cache) if cache else ""
        encoder = TextEncoder(
            make_cfg(clip, {"MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": folder, **(opts or {})})
        )
        encoder.chunk_size = chunk_size or encoder.chunk_size
        return randomize(encoder).requires_grad_(False).eval()

    return make


@pytest.fixture
def count_prompts():
    """``count_prompts(encoder)``: list of the batch sizes that its tower encodes from now on."""

    def count(encoder):
        sizes = []
        encoder.text.transformer.register_forward_pre_hook(
            lambda _, args: sizes.append(len(args[0]))
        )
        return sizes

    return count


# ---- one step of training and of evaluation


@pytest.fixture(scope="session")
def eight_categories():
    """The vocabulary of :func:`make_input`."""
    return _VOCABULARY


@pytest.fixture(scope="session")
def make_input(make_image):
    """``make_input(size, seed, categories)``: an input with labels of the first `categories`."""

    def make(size=(40, 52), seed=0, categories=5):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, categories, size, generator=generator)
        labels[:4] = 255
        image = make_image(*size, seed=seed)
        return {"image": image, "sem_seg": labels, "vocabulary": _VOCABULARY}

    return make


def _train_one_step(model, batch):
    model.train()
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values()), losses
    model.zero_grad()
    sum(losses.values()).backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    found = {n: g for n, g in trained.items() if g is not None}
    assert all(g.isfinite().all() for g in found.values())
    return losses, found, trained.keys() - found.keys()


@pytest.fixture(scope="session")
def train_one_step():
    """``train_one_step(model, batch)``: losses, gradients, and parameters without a gradient."""
    return _train_one_step


@torch.no_grad()
def _evaluate(model, batch):
    model.eval()
    outputs = model(batch)
    for x, output in zip(batch, outputs, strict=True):
        assert output["sem_seg"].image_size == tuple(x["image"].shape[-2:])
        assert output["sem_seg"].logits.isfinite().all()
        assert output["proposals"]["scores"].isfinite().all()
    return outputs


@pytest.fixture(scope="session")
def evaluate():
    """``evaluate(model, batch)``: the outputs of the model, with checks that hold for any model."""
    return _evaluate


# ---- the contracts of the whole model


@pytest.fixture(scope="session")
def twelve_categories():
    """Names and synonyms of twelve categories, as a list."""
    return [
        ["sky"],
        ["tall tree"],
        ["car", "automobile", "motor car"],
        ["road"],
        ["brick wall"],
        ["cat"],
        ["bicycle", "bike"],
        ["traffic light"],
        ["dog"],
        ["river"],
        ["sand"],
        ["window"],
    ]


@torch.no_grad()
def _run(model, image, names, **inputs):
    vocabulary = names if isinstance(names, Vocabulary) else Vocabulary(names)
    (output,) = model([{"image": image, "vocabulary": vocabulary, **inputs}])
    ids, scores = output["proposals"]["ids"], output["proposals"]["scores"]
    sem_seg = output["sem_seg"]
    assert sem_seg.num_categories == len(vocabulary)
    assert torch.equal(sem_seg.category_ids, ids)
    assert sem_seg.logits.isfinite().all()
    names = [vocabulary.display_names[i] for i in ids]
    logits = dict(zip(names, sem_seg.logits, strict=True))
    return logits, dict(zip(names, scores, strict=True)), sem_seg


@pytest.fixture(scope="session")
def run():
    """``run(model, image, names, **inputs)``: logits by name, scores by name, "sem_seg"."""
    return _run


def _assert_same(a, b, exact=False):
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-4}
    for left, right in zip(a[:2], b[:2], strict=True):
        assert left.keys() == right.keys()
        torch.testing.assert_close(left, right, **tolerance)


@pytest.fixture(scope="session")
def assert_same():
    """``assert_same(a, b, exact)``: two results of :func:`run` agree, in any order of the names."""
    return _assert_same


# ---- images with known borders


def _make_scene(seed, size=(192, 256), categories=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(size, dtype=torch.long)
    y, x = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
    for k in range(1, categories):
        cy, cx, ry, rx = torch.rand(4, generator=generator).tolist()
        down = (y / size[0] - cy).abs() / (0.12 + 0.2 * ry)
        across = (x / size[1] - cx).abs() / (0.12 + 0.2 * rx)
        inside = down.maximum(across) < 1 if k % 2 else down**2 + across**2 < 1
        labels[inside] = k
    colours = torch.randn(categories, 3, generator=generator)
    shading = F.interpolate(torch.randn(1, 1, 3, 4, generator=generator), size, mode="bilinear")
    image = colours[labels].permute(2, 0, 1) + 0.2 * torch.randn(3, *size, generator=generator)
    return labels, image[None] + 0.2 * shading


@pytest.fixture(scope="session")
def make_scene():
    """``make_scene(seed)``: labels (H, W) of ellipses and boxes, and an image (1, 3, H, W) of them
    with noise and shading."""
    return _make_scene


def _boundary_iou(prediction, labels, categories=4, width=6):
    hot = F.one_hot(labels, categories).permute(2, 0, 1)[None].float()
    side = 2 * width + 1
    border = F.max_pool2d(hot, side, 1, width) != -F.max_pool2d(-hot, side, 1, width)
    border = border.any(1)[0]
    ious = []
    for k in range(categories):
        a, b = (prediction == k) & border, (labels == k) & border
        if b.any():
            ious.append(((a & b).sum() / (a | b).sum()).item())
    return sum(ious) / len(ious)


@pytest.fixture(scope="session")
def boundary_iou():
    """``boundary_iou(prediction, labels)``: mean IoU within 6 pixels of the borders of the labels
    (after arXiv 2103.16562)."""
    return _boundary_iou
