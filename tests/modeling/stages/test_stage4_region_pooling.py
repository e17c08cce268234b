"""RegionPooling: regions share their names, padding has no share, names are not positional."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.utils._python_dispatch import TorchDispatchMode

from dcp_clip.modeling.layers import resize_to
from dcp_clip.modeling.stages.stage4_region_pooling import (
    RegionPooling,
    _average_over_all,
    _average_over_neighbours,
)

NODE = "MODEL.DCP_CLIP.FINE_DECODER."


def _maps(h, w, categories=3, seed=0):
    """Embeddings (2, 5, h, w), attention logits (2, 1, h, w), values (2, K, h, w)."""
    torch.manual_seed(seed)
    return torch.randn(2, 5, h, w), torch.randn(2, 1, h, w), torch.rand(2, categories, h, w)


def _expected(queries, keys, weight, values, near=None):
    """The definition, with all distances; `near` (queries, keys) tells which pairs there are."""
    flat = [x.flatten(2).mT for x in (queries, keys, weight, values)]
    logits = flat[2].mT - (flat[0][:, :, None] - flat[1][:, None]).square().sum(3)
    if near is not None:
        logits = logits.masked_fill(~near, float("-inf"))
    return (logits.softmax(2) @ flat[3]).mT.unflatten(2, queries.shape[-2:])


@pytest.mark.parametrize("categories", [1, 3, 40])
def test_positions_attend_to_all_by_the_negative_squared_distance(categories):
    keys, weight, values = _maps(3, 2, categories)
    found = _average_over_all(keys, weight, values)
    torch.testing.assert_close(found, _expected(keys, keys, weight, values))


@pytest.mark.parametrize("cell", [1, 2, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (21, 30)])
def test_pixels_attend_to_the_positions_around_them(cell, size):
    rows, columns = (-(-side // cell) for side in size)
    keys, weight, values = _maps(rows, columns)
    queries = torch.randn(2, 5, *size)
    own = [torch.arange(side) // cell for side in size]
    row_near = (own[0][:, None] - torch.arange(rows)).abs() <= 2
    column_near = (own[1][:, None] - torch.arange(columns)).abs() <= 2
    near = row_near[:, None, :, None] & column_near[None, :, None, :]
    near = near.flatten(2, 3).flatten(0, 1)
    found = _average_over_neighbours(queries, keys, weight, values, cell)
    torch.testing.assert_close(found, _expected(queries, keys, weight, values, near))


def _pooling(stride=2, key_stride=4):
    torch.manual_seed(0)
    module = RegionPooling(6, stride, key_stride)
    torch.nn.init.normal_(module.embedding.weight, std=0.3)
    torch.nn.init.ones_(module.gate.bias)  # open; it is closed at the start
    return module


def _inputs(h=8, w=12, categories=3, seed=0):
    """Logits and image features at stride 4, pixels, all valid."""
    torch.manual_seed(seed)
    logits, image = torch.randn(1, categories, h, w), torch.randn(1, 6, h, w)
    valid = torch.ones(1, h // 4 or 1, w // 4 or 1).bool()
    return [
        logits,
        image,
        torch.randn(1, 3, 4 * h, 4 * w),
        valid,
        torch.ones(1, categories).bool(),
    ]


def test_two_textures_with_mixed_names_get_one_name_each():
    """Each half of the image has one colour; most of its logits, not all, agree on a category."""
    logits, image, pixels, pixel_valid, proposal_valid = _inputs(8, 8, 2)
    image.zero_()
    pixels[..., :16], pixels[..., 16:] = -1.0, 1.0
    logits.zero_()
    logits[:, 0, :, :4] = logits[:, 1, :, 4:] = 2.0
    logits[:, 0, 3, 1], logits[:, 1, 5, 6] = -2.0, -2.0  # two positions disagree
    module = _pooling()
    torch.nn.init.normal_(module.embedding.weight, std=3.0)
    module.clarity_weight.data.zero_()
    labels = module(logits, image, pixels, pixel_valid, proposal_valid).argmax(1)[0]
    # Inside the halves: the border of the image and the edge between the halves look different.
    assert (labels[4:-4, 3:5] == 0).all() and (labels[4:-4, 11:13] == 1).all()


@pytest.mark.parametrize("stride, size", [(2, (16, 24)), (4, (8, 12))])
@pytest.mark.parametrize("key_stride", [4, 8, 12, 32])
def test_the_result_has_the_stride_of_the_key(stride, size, key_stride):
    out = _pooling(stride, key_stride)(*_inputs())
    assert out.shape == (1, 3, *size)


def test_it_starts_without_effect():
    torch.manual_seed(0)
    inputs, module = _inputs(), RegionPooling(6, 2, 8)
    inputs[4] = torch.tensor([[True, True, False]])
    assert torch.equal(module(*inputs), resize_to(inputs[0], (16, 24)))


def test_similar_pixels_have_similar_logits():
    """Where all embeddings are equal and the gate is open, every pixel has the mean probability."""
    inputs, module = _inputs(), _pooling(key_stride=4)
    torch.nn.init.zeros_(module.embedding.weight)
    torch.nn.init.zeros_(module.reliability.weight)
    module.clarity_weight.data.zero_()
    found = module(*inputs).softmax(1)
    mean = inputs[0].softmax(1).mean((2, 3), keepdim=True)
    torch.testing.assert_close(found, mean.expand_as(found), rtol=0, atol=1e-4)


@pytest.mark.parametrize("side", [1, 2, 3, 5, 13, 33])
@pytest.mark.parametrize("stride", [2, 4])
def test_any_size(side, stride):
    rows = -(-side // 4)
    inputs = _inputs(rows, rows)
    inputs[2] = torch.randn(1, 3, side, side)
    out = _pooling(stride, 8)(*inputs)
    assert out.shape[-2:] == (-(-side // stride),) * 2 and out.isfinite().all()


def test_the_weights_are_shared_over_the_categories():
    inputs, module, order = _inputs(), _pooling(), torch.tensor([2, 0, 1])
    out = module(*inputs)
    inputs[0] = inputs[0][:, order]
    torch.testing.assert_close(module(*inputs), out[:, order])


def test_padded_proposals_have_no_share():
    inputs, module = _inputs(), _pooling()
    out = module(*inputs)
    inputs[0] = torch.cat([inputs[0], 50 + inputs[0][:, :1]], 1)
    inputs[4] = torch.tensor([[True, True, True, False]])
    padded = module(*inputs)
    torch.testing.assert_close(padded[:, :3], out)


def test_the_names_of_padding_have_no_share():
    """The logits at padding do not change the result at any pixel of the image."""
    inputs, module = _inputs(8, 8), _pooling(key_stride=16)
    inputs[3] = torch.tensor([[[True, False], [True, False]]])
    out = module(*inputs)
    inputs[0][..., 4:] += 10 * torch.randn(1, 3, 8, 4)
    assert torch.equal(module(*inputs)[..., :7], out[..., :7])
    inputs[0][..., :4] += torch.randn(1, 3, 8, 4)
    assert not torch.equal(module(*inputs)[..., :7], out[..., :7])


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("REGION_STRIDE", 3, "REGION_STRIDE is 3; it must be 0 .off., 2 or 4"),
        ("REGION_STRIDE", 8, "REGION_STRIDE is 8"),
        ("REGION_KEY_STRIDE", 6, "REGION_KEY_STRIDE is 6; it must be a multiple of 4"),
        ("REGION_KEY_STRIDE", 0, "REGION_KEY_STRIDE is 0"),
    ],
)
def test_strides_that_do_not_fit_are_refused(make_cfg, key, value, message):
    with pytest.raises(ValueError, match=message):
        build_model(make_cfg(opts={NODE + "REGION_STRIDE": 2, NODE + key: value}))


def test_everything_in_it_is_trained(make_model, make_input):
    model = make_model(opts={NODE + "REGION_STRIDE": 2, NODE + "REGION_KEY_STRIDE": 4}).train()
    sum(model([make_input()]).values()).backward()
    parameters = dict(model.fine_decoder.regions.named_parameters())
    still = [name for name, p in parameters.items() if p.grad is None or not p.grad.any()]
    assert len(parameters) > 10 and not still


class _LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("key_stride", [4, 8])
def test_the_memory_grows_with_the_area_of_the_image(key_stride):
    """No tensor has all pairs: 16 times the area would have 256 times as many."""
    largest = []
    for side in (16, 64):
        with torch.no_grad(), _LargestTensor() as mode:
            _pooling(2, key_stride)(*_inputs(side, side))
        largest.append(mode.numel)
    assert largest[1] <= 20 * largest[0]
