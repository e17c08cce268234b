"""Weights in autocast's precision, kept: the same bits, and never those of older weights."""

import copy
import pickle

import pytest
import torch
from detectron2.modeling import build_backbone
from torch import nn

from dcp_clip.modeling.precision import AutocastWeights

WINDOWS = {"MODEL.CLIP.WINDOW": 64, "MODEL.CLIP.WINDOW_STRIDE": 32}


@pytest.fixture
def make_backbone(make_cfg, randomize):
    def make(clip="test-convnext", opts=None):
        torch.manual_seed(0)
        return randomize(build_backbone(make_cfg(clip, opts))).eval()

    return make


@pytest.fixture
def count_copies(monkeypatch):
    """A list that grows with each copy that is made."""
    copies, of = [], AutocastWeights.of

    def counted(self, module):
        used = of(self, module)
        if used is not module and not any(used is x for x in copies):
            copies.append(used)
        return used

    monkeypatch.setattr(AutocastWeights, "of", counted)
    return copies


def run(backbone, images):
    with torch.autocast("cpu", torch.bfloat16):
        return backbone(images)


def plain(backbone, images):
    """What autocast itself makes of the tower."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutocastWeights, "of", lambda self, module: module)
        return run(backbone, images)


def assert_same_bits(out, expected):
    assert out.keys() == expected.keys()
    for key in out:
        assert torch.equal(out[key], expected[key]), key


@torch.no_grad()
@pytest.mark.parametrize(
    "clip, opts", [("test-convnext", {}), ("test-convnext-mlp", {}), ("dcp-tiny-cnn", WINDOWS)]
)
def test_answers_are_autocasts_own_to_the_bit(make_backbone, count_copies, clip, opts):
    backbone = make_backbone(clip, opts)
    side = 5 * backbone.size_divisibility
    for _ in range(2):
        images = torch.randn(2, 3, side, side)
        assert_same_bits(run(backbone, images), plain(backbone, images))
    assert len(count_copies) == 1
    assert not torch.equal(run(backbone, images)["dense"], backbone(images)["dense"])


@torch.no_grad()
@pytest.mark.parametrize("clip", ["test-vit-16", "test-vit-14-quickgelu"])
@pytest.mark.parametrize("opts", [{"MODEL.CLIP.DENSE": "neighbour"}, {"MODEL.CLIP.DENSE": "value"}])
def test_a_vits_answers_are_as_near_to_float32(make_backbone, count_copies, clip, opts):
    """Its attention is rounded elsewhere: PyTorch takes another path for weights in bfloat16."""
    backbone = make_backbone(clip, opts)
    side = 5 * backbone.size_divisibility
    images = torch.randn(8, 3, side, side)
    exact = backbone(images)
    for key in ("dense", "pooled", "res4"):
        errors = [
            (answer(backbone, images)[key] - exact[key]).square().mean() for answer in (run, plain)
        ]
        assert 0 < errors[0] < 1.2 * errors[1]
        assert errors[0] < 1e-3 * exact[key].square().mean()
    assert len(count_copies) == 1


@torch.no_grad()
def test_all_that_autocast_does_not_convert_is_shared(make_backbone, count_copies):
    backbone = make_backbone()
    run(backbone, torch.randn(1, 3, 64, 64))
    ((kept,), own) = count_copies, dict(backbone.visual.named_parameters())
    kinds = {name: type(backbone.visual.get_submodule(name.rpartition(".")[0])) for name in own}
    for name, parameter in kept.named_parameters():
        converted = issubclass(kinds[name], (nn.Linear, nn.Conv2d))
        assert (parameter is own[name]) != converted
        assert parameter.dtype == (torch.bfloat16 if converted else torch.float32)
    assert all(p.dtype == torch.float32 for p in own.values())
    assert backbone.state_dict().keys() == make_backbone().state_dict().keys()


def _load_others(backbone, others):
    backbone.load_state_dict(others.state_dict())


def _copy_data(backbone, others):
    """As some averages of weights do it; the weights do not tell, but the model is told to eval."""
    for parameter, other in zip(backbone.parameters(), others.parameters(), strict=True):
        parameter.data.copy_(other.data)
    backbone.eval()


@torch.no_grad()
@pytest.mark.parametrize("change", [_load_others, _copy_data])
def test_changed_weights_are_seen(make_backbone, randomize, change):
    backbone, others = make_backbone(), randomize(make_backbone(), seed=1)
    images = torch.randn(1, 3, 64, 64)
    before = run(backbone, images)["dense"]
    change(backbone, others)
    after = run(backbone, images)
    assert not torch.allclose(after["dense"], before)
    assert_same_bits(after, plain(others, images))


@torch.no_grad()
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copied_model_has_its_own_weights(make_backbone, randomize, clone):
    backbone = make_backbone()
    images = torch.randn(1, 3, 64, 64)
    before = run(backbone, images)
    other = randomize(clone(backbone), seed=1)
    assert not torch.allclose(run(other, images)["dense"], before["dense"])
    assert_same_bits(run(backbone, images), before)


def test_float32_and_gradients_are_left_alone(make_backbone, count_copies):
    backbone = make_backbone()
    images = torch.randn(1, 3, 64, 64)
    run(backbone, images)["dense"].float().sum().backward()
    assert all(p.grad is not None for p in backbone.visual.trunk.stages.parameters())
    with torch.no_grad():
        assert backbone(images)["dense"].dtype == torch.float32
        run(backbone.train(), images)
        assert not count_copies
        run(backbone.eval(), images)
        assert len(count_copies) == 1


def test_inference_mode_and_no_grad_take_turns(make_backbone):
    backbone = make_backbone()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        first = run(backbone, images)
    with torch.no_grad():
        assert_same_bits(run(backbone, images), first)


def test_weights_that_do_not_tell_of_changes_are_not_kept(make_backbone, count_copies):
    with torch.inference_mode():
        backbone = make_backbone()
        run(backbone, torch.randn(1, 3, 64, 64))
    assert not count_copies
