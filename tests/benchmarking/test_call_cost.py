"""FLOPs and memory agree with counts by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dcp_clip.benchmarking.call_cost import count_flops, flop_counter, peak_bytes, time_in_turns

MIB = 2**20


def forward_flops(module, *inputs, **options):
    with torch.no_grad():
        return count_flops(lambda: module.eval()(*inputs, **options))


def forward_and_backward_flops(function, *inputs):
    with flop_counter() as counter:
        out = function(*inputs)
        forward = counter.get_total_flops()
        out.sum().backward()
    return forward, counter.get_total_flops() - forward


def test_convolution_and_linear_layer():
    image = torch.zeros(1, 3, 8, 8)
    convolution = nn.Conv2d(3, 5, 3, padding=1)
    assert forward_flops(convolution, image) == 2 * 64 * 5 * 3 * 9
    assert forward_flops(nn.Linear(7, 11), torch.zeros(4, 7)) == 2 * 4 * 7 * 11
    # An image has no gradient, so the backward pass is one product as well.
    forward, backward = forward_and_backward_flops(convolution.train(), image)
    assert forward == backward


def test_depthwise_convolution():
    x = torch.zeros(2, 8, 10, 10, requires_grad=True)
    convolution = nn.Conv2d(8, 8, 3, padding=1, groups=8)
    forward, backward = forward_and_backward_flops(convolution, x)
    assert forward == 2 * 2 * 100 * 8 * 9
    assert backward == 2 * forward


def test_attention_has_two_products():
    n, d = 10, 16
    x = torch.zeros(1, n, d)
    expected = 2 * 4 * n * d * d + 2 * 2 * n * n * d  # four projections; scores and values
    attention = nn.MultiheadAttention(d, 2, batch_first=True)
    assert forward_flops(attention, x, x, x, need_weights=False) == expected
    query, key = torch.zeros(1, 2, 10, 8), torch.zeros(1, 2, 5, 8)
    with torch.no_grad():
        counted = count_flops(
            lambda: F.scaled_dot_product_attention(query, key, key, torch.zeros(10, 5))
        )
    assert counted == 2 * 2 * 2 * 10 * 5 * 8


def test_attention_backward():
    q, k, v = (torch.zeros(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    forward, backward = forward_and_backward_flops(F.scaled_dot_product_attention, q, k, v)
    assert forward == 2 * 2 * 2 * 16 * 16 * 8
    assert backward >= 2 * forward


def test_the_fast_path_of_attention_is_restored():
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError):
        count_flops(lambda: 1 / 0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_peak_memory_is_of_tensors_that_exist_at_one_time():
    before = torch.ones(8 * MIB, dtype=torch.uint8)

    def one_after_the_other():
        for _ in range(3):
            before.clone()
        return torch.ones(2 * MIB, dtype=torch.uint8)

    def both():
        first = before.clone()
        return first, before.clone()

    cpu = torch.device("cpu")
    assert peak_bytes(one_after_the_other, cpu) == pytest.approx(8 * MIB, rel=0.01)
    assert peak_bytes(both, cpu) == pytest.approx(16 * MIB, rel=0.01)


def test_calls_take_turns():
    calls = []
    times = time_in_turns([lambda: calls.append("a"), lambda: calls.append("b")], repeats=3)
    assert calls == ["a", "b"] * 5  # two rounds of warm-up
    assert len(times) == 2 and all(seconds > 0 for seconds in times)
