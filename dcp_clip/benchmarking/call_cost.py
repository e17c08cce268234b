"""Measure a call: wall-clock time, FLOPs, peak memory, and what each operator spends."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import timer
from torch.utils.flop_counter import (
    FlopCounterMode,
    conv_flop_count,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)
from tqdm import tqdm

_WARM_UPS = 2

Call = Callable[[], object]


def time_call(call: Call) -> float:
    """Wall-clock seconds of one call, including the work of a GPU."""
    start = timer()
    call()
    return timer() - start


def time_in_turns(calls: Sequence[Call], repeats: int) -> list[float]:
    """Median seconds of each call after a warm-up.

    The calls take turns, so that other load on the machine affects all of them.
    """
    rounds = tqdm(range(_WARM_UPS + repeats), desc="Timing", unit="round", leave=False)
    times = [[time_call(call) for call in calls] for _ in rounds]
    return [median(column) for column in zip(*times[_WARM_UPS:])]


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """Open PyTorch's FLOP counter, which counts convolutions, matrix products and attention.

    A multiply-add counts as 2 FLOPs. PyTorch's counter knows neither the attention kernels of CPUs
    nor the fused operator that ``nn.MultiheadAttention`` uses in evaluation. It also overestimates
    the backward pass of grouped convolutions (of ConvNeXt's depthwise layers by a factor of
    hundreds). All three are corrected.
    """
    aten = torch.ops.aten

    def attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
        return sdpa_flop_count(query, key, value)

    def attention_backward(grad, query, key, value, *args, out_shape=None, **kwargs) -> int:
        return sdpa_backward_flop_count(grad, query, key, value)

    def convolution_backward(
        grad, x, w, bias, stride, padding, dilation, transposed, pad, groups, mask, out_shape=None
    ) -> int:
        # The gradients of the input and of the weight each cost as much as the forward pass.
        return (mask[0] + mask[1]) * conv_flop_count(x, w, grad, transposed=transposed)

    mapping = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
        aten.convolution_backward: convolution_backward,
    }
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def count_flops(call: Call) -> int:
    """FLOPs of one call; see :func:`flop_counter`."""
    with flop_counter() as counter:
        call()
    return counter.get_total_flops()


def peak_bytes(call: Call, device: torch.device) -> int:
    """Measure the most bytes that the tensors of one call, with its result, occupy at one time.

    PyTorch's allocator counts them; on a CPU the profiler reports the allocations. Memory that was
    allocated before the call is not included.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with profiler(device) as profiled:
        call()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()  # negative if memory is freed
        peak = max(peak, total)
    return peak


def profiler(device: torch.device) -> profile:
    """PyTorch's profiler for time and memory on this device."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it logs to stderr
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, profile_memory=True)
