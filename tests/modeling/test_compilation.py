"""torch.compile by config: the same answers, or a warning and the same answers."""

import copy
import logging

import pytest
import torch
from detectron2.modeling import build_backbone

from dcp_clip.modeling import compilation
from dcp_clip.modeling.compilation import Compiled

KEY = "MODEL.DCP_CLIP.COMPILE"


@pytest.fixture(autouse=True)
def use(monkeypatch):
    """``use(backend)``: what is compiled from now on is compiled by it; inductor takes minutes."""
    torch.compiler.reset()
    compile_ = torch.compile

    def set_backend(backend):
        monkeypatch.setattr(
            compilation.torch, "compile", lambda f, **_: compile_(f, backend=backend)
        )

    set_backend("aot_eager")
    yield set_backend
    torch.compiler.reset()


@pytest.fixture
def counter(use):
    """A list that grows with each graph that is compiled."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    use(backend)
    return graphs


@pytest.fixture
def make_pair(make_cfg, randomize):
    """``make_pair(clip, opts)``: a plain backbone and a compiled one with the same weights."""

    def make(clip="dcp-tiny-cnn", opts=None):
        plain = randomize(build_backbone(make_cfg(clip, opts)))
        compiled = build_backbone(make_cfg(clip, {**(opts or {}), KEY: True}))
        compiled.load_state_dict(plain.state_dict())
        return [x.requires_grad_(False).eval() for x in (plain, compiled)]

    return make


def _assert_equal(out, expected):
    assert out.keys() == expected.keys()
    for key in out:
        torch.testing.assert_close(out[key], expected[key], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "clip, opts",
    [
        ("dcp-tiny-cnn", {}),
        ("test-vit-16", {"MODEL.CLIP.DENSE": "neighbour"}),
        ("test-vit-16", {"MODEL.CLIP.WINDOW": 64, "MODEL.CLIP.WINDOW_STRIDE": 32}),
    ],
)
def test_answers_are_the_plain_ones_at_every_size(make_pair, clip, opts):
    plain, compiled = make_pair(clip, opts)
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    for size in ((64, 64), (160, 96)):
        images = torch.randn(1, 3, *size)
        _assert_equal(compiled(images), plain(images))


@torch.no_grad()
def test_sizes_become_dynamic(make_pair, counter):
    """Once each side has changed, another size needs no further compilation."""
    _, compiled = make_pair()
    counts = []
    for size in ((64, 64), (64, 64), (64, 96), (128, 96), (96, 160)):
        compiled(torch.randn(1, 3, *size))
        counts.append(len(counter))
    assert 0 < counts[0] == counts[1] and counts[3] == counts[4]


def test_nothing_is_compiled_before_it_is_used(make_pair, counter):
    make_pair()
    assert not counter


@torch.no_grad()
def test_channels_last_stays(make_model, make_image, segment):
    opts = {"MODEL.DCP_CLIP.CHANNELS_LAST": True}
    image = make_image(64, 96)
    expected = segment(make_model(opts=opts), image)["sem_seg"].to_dense()
    model = make_model(opts={**opts, KEY: True})
    torch.testing.assert_close(
        segment(model, image)["sem_seg"].to_dense(), expected, rtol=1e-4, atol=1e-4
    )
    stem = model.backbone.visual.trunk.stem[0].weight
    assert stem.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_a_copy_has_its_own_weights(make_pair, counter, randomize):
    plain, compiled = make_pair()
    images = torch.randn(1, 3, 64, 64)
    compiled(images)
    other = randomize(copy.deepcopy(compiled), seed=1)
    assert counter
    assert not torch.allclose(other(images)["pooled"], plain(images)["pooled"])
    _assert_equal(compiled(images), plain(images))
    plain.load_state_dict(other.state_dict())
    _assert_equal(other(images), plain(images))


def test_a_tower_that_trains_runs_as_it_is(make_pair, counter):
    _, compiled = make_pair()
    compiled.requires_grad_(True).train()
    compiled(torch.randn(2, 3, 64, 64))["dense"].sum().backward()
    assert not counter and all(p.grad is not None for p in compiled.parameters())
    compiled.requires_grad_(False).train()
    compiled(torch.randn(2, 3, 64, 64))
    assert counter


@torch.no_grad()
def test_where_compiling_fails_one_warning_says_so(make_pair, use, caplog):
    calls = []

    def broken(graph, inputs):
        calls.append(graph)
        raise OSError("there is no compiler here")

    use(broken)
    plain, compiled = make_pair()
    images = torch.randn(1, 3, 64, 64)
    with caplog.at_level(logging.WARNING, logger="dcp_clip"):
        for _ in range(3):
            _assert_equal(compiled(images), plain(images))
    (message,) = [r.message for r in caplog.records if r.name.startswith("dcp_clip")]
    assert "CLIP's image tower, which runs uncompiled" in message and KEY in message
    assert "there is no compiler here" in message and "\n" not in message
    assert len(calls) == 1


def _refuse(x):
    raise ValueError("not such an input")


def test_errors_of_the_function_are_its_own():
    with pytest.raises(Exception, match="not such an input"):
        Compiled(_refuse, "a function")(torch.zeros(1))
