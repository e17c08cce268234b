"""Stage 4, PyramidDecoder: its options, and weights that are shared over the categories."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from dcp_clip.modeling.stages.stage4_fine_decoder import PyramidDecoder

NODE = "MODEL.DCP_CLIP.FINE_DECODER."


@pytest.mark.parametrize("key", ["IMAGE_DIM", "CATEGORY_DIM"])
def test_widths_that_group_norm_cannot_divide_are_refused(make_cfg, key):
    opts = {NODE + key: 18}
    with pytest.raises(ValueError, match=f"FINE_DECODER.{key} is 18; .* multiple of 4"):
        build_model(make_cfg(opts=opts))
    build_model(make_cfg(opts={**opts, NODE + "NORM": "LN"}))


@pytest.mark.parametrize("norm", ["GN", "BN", "LN", ""])
def test_every_norm_trains_and_evaluates(make_model, make_input, train_one_step, evaluate, norm):
    model = make_model(opts={NODE + "NORM": norm})
    train_one_step(model, [make_input()])
    evaluate(model, [make_input()])


def test_an_unknown_norm_is_refused(make_model):
    with pytest.raises(ValueError, match="FINE_DECODER.NORM is 'gn'; it must be one of 'GN'"):
        make_model(opts={"MODEL.DCP_CLIP.FINE_DECODER.NORM": "gn"})


def test_the_weights_are_shared_over_the_categories(make_cfg):
    """The correction of a category depends on its own map and text feature, not on its place."""
    torch.manual_seed(0)
    shapes = {f"res{i}": ShapeSpec(channels=4 * i, stride=2**i) for i in (2, 3, 4)}
    decoder = PyramidDecoder(make_cfg(), shapes, 6, 5)
    torch.nn.init.normal_(decoder.out.weight)
    features = {f"res{i}": torch.randn(1, 4 * i, 64 >> i, 96 >> i) for i in (2, 3, 4)}
    features["image"] = torch.randn(1, 3, 64, 96)
    coarse, visual, text = torch.randn(1, 3, 2, 3), torch.randn(1, 6, 2, 3), torch.randn(1, 3, 5)
    everywhere = torch.ones(1, 2, 3).bool()
    out = decoder(coarse, visual, text, features, everywhere, torch.ones(1, 3).bool())
    assert out.shape == (1, 3, 32, 48)  # REGION_STRIDE is 2
    order = torch.tensor([2, 0, 1])
    shuffled = decoder(
        coarse[:, order], visual, text[:, order], features, everywhere, torch.ones(1, 3).bool()
    )
    torch.testing.assert_close(shuffled, out[:, order], rtol=1e-4, atol=1e-5)
    padded = decoder(
        torch.cat([coarse, 50 + coarse[:, :1]], 1),
        visual,
        torch.cat([text, text[:, :1]], 1),
        features,
        everywhere,
        torch.tensor([[True, True, True, False]]),
    )
    torch.testing.assert_close(padded[:, :3], out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["GN", "BN"])
def test_categories_in_chunks_give_the_same_result(make_cfg, monkeypatch, norm):
    """Evaluation computes a few categories at a time, training all of them at once."""
    torch.manual_seed(0)
    shapes = {f"res{i}": ShapeSpec(channels=4 * i, stride=2**i) for i in (2, 3, 4)}
    decoder = PyramidDecoder(make_cfg(opts={NODE + "NORM": norm}), shapes, 6, 5).eval()
    torch.nn.init.normal_(decoder.out.weight)
    features = {f"res{i}": torch.randn(2, 4 * i, 64 >> i, 96 >> i) for i in (2, 3, 4)}
    features["image"] = torch.randn(2, 3, 64, 96)
    valid = torch.ones(2, 2, 3).bool(), torch.ones(2, 5).bool()
    inputs = torch.randn(2, 5, 2, 3), torch.randn(2, 6, 2, 3), torch.randn(2, 5, 5), features
    whole = decoder(*inputs, *valid)
    module = "dcp_clip.modeling.stages.stage4_fine_decoder"
    values = 2 * decoder.out.in_channels * 16 * 24  # the maps of one category of both images
    maps = []
    decoder.out.register_forward_hook(lambda module, inputs, output: maps.append(len(output)))
    for count in (1, 2, 3):  # categories in a chunk
        maps.clear()
        monkeypatch.setattr(f"{module}._CHUNK_CPU", count * values)
        with torch.no_grad():
            torch.testing.assert_close(decoder(*inputs, *valid), whole, rtol=1e-4, atol=1e-5)
        assert maps == [2 * min(count, 5 - start) for start in range(0, 5, count)]
