"""Region pooling of exported programs gives the model's answer and never stores all pairs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dcp_clip.export.stage4 import with_regions_in_parts
from dcp_clip.modeling.stages.stage4_region_pooling import RegionPooling


def _decoders():
    """A holder of region pooling with an open gate, and its version for exports."""
    decoder = torch.nn.Module()
    decoder.regions = RegionPooling(6, 2, 4)
    torch.nn.init.normal_(decoder.regions.embedding.weight, std=0.3)
    torch.nn.init.ones_(decoder.regions.gate.bias)
    return decoder.eval(), with_regions_in_parts(decoder)


def _inputs(batch, categories, h, w):
    return (
        torch.randn(batch, categories, h, w),
        torch.randn(batch, 6, h, w),
        torch.randn(batch, 3, 4 * h, 4 * w),
        torch.ones(batch, 1, 1).bool(),
        torch.ones(batch, categories).bool(),
    )


class _LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@settings(max_examples=20)
@given(st.integers(1, 3), st.sampled_from([1, 2, 33]), st.integers(1, 9), st.integers(1, 9))
def test_parts_give_the_same_logits(batch, categories, h, w):
    torch.manual_seed(h * w)
    decoder, exportable = _decoders()
    inputs = _inputs(batch, categories, h, w)
    with torch.no_grad():
        expected, found = decoder.regions(*inputs), exportable.regions(*inputs)
    # Logarithms of small sums differ by more than the default tolerance.
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_no_tensor_has_all_pairs():
    _, exportable = _decoders()
    h, w = 24, 32
    with torch.no_grad(), _LargestTensor() as largest:
        exportable.regions(*_inputs(1, 2, h, w))
    assert largest.numel < (2 * h * 2 * w) * (h * w) / 10


def test_the_model_keeps_its_own_region_pooling():
    decoder, exportable = _decoders()
    assert type(decoder.regions) is RegionPooling and exportable is not decoder
    assert exportable.regions.embedding is decoder.regions.embedding


def test_decoders_without_regions_stay_as_they_are():
    decoder = torch.nn.Identity()
    assert with_regions_in_parts(decoder) is decoder
