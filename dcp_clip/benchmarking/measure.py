"""Measure one call: wall-clock time, FLOPs, peak memory, and the cost of every operator."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

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

WARM_UPS = 2


def time_call(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, including the work of a GPU."""
    start = timer()
    function()
    return timer() - start


def time_in_turns(functions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of `repeats` calls of each function, after a warm-up.

    The functions take turns, so that a disturbance of the machine affects all of them.
    """
    times: list[list[float]] = [[] for _ in functions]
    for i in tqdm(range(WARM_UPS + repeats), desc="Timing", unit="round"):
        for function, kept in zip(functions, times):
            seconds = time_call(function)
            if i >= WARM_UPS:
                kept.append(seconds)
    return times


@contextmanager
def flop_counter() -> Iterator[FlopCounterMode]:
    """PyTorch's FLOP counter: 2 FLOPs for each multiply-add in convolutions, matrix products and
    attention.

    PyTorch's counter knows neither the attention kernels of CPUs nor the fused operator that
    ``nn.MultiheadAttention`` uses in evaluation. It also overestimates the backward pass of grouped
    convolutions (of ConvNeXt's depthwise layers by a factor of hundreds). All three are corrected.
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


def count_flops(function: Callable[[], object]) -> int:
    """FLOPs of one call; see :func:`flop_counter`."""
    with flop_counter() as counter:
        function()
    return counter.get_total_flops()


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes that the tensors of one call occupy at one time, including its result.

    PyTorch's allocator counts it; on a CPU the profiler reports the allocations. Memory allocated
    before the call is not included.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = function()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del result
        return peak
    with _profiler(device) as profiler:
        result = function()
    del result
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()  # negative if memory is freed
        peak = max(peak, total)
    return peak


class OperatorCost(NamedTuple):
    """What one call spends in an operator or in a ``record_function`` scope.

    Attributes:
        ms, bytes: milliseconds, and bytes allocated minus bytes freed.
        own_ms, own_bytes: the same without the operators that it calls.
    """

    ms: float = 0.0
    bytes: float = 0.0
    own_ms: float = 0.0
    own_bytes: float = 0.0


def profile_operators(
    function: Callable[[], object], device: torch.device, repeats: int
) -> dict[str, OperatorCost]:
    """The cost of each operator and scope in one call, by name: mean of `repeats` calls."""
    with _profiler(device) as profiler:
        for _ in range(repeats):
            function()
    kind = "device" if device.type == "cuda" else "cpu"
    keys = (f"{kind}_time_total", f"{kind}_memory_usage")
    keys += tuple(f"self_{key}" for key in keys)
    costs = {}
    for event in profiler.key_averages():
        microseconds, memory, own_microseconds, own_memory = (
            getattr(event, key) / repeats for key in keys
        )
        costs[event.key] = OperatorCost(
            microseconds / 1e3, memory, own_microseconds / 1e3, own_memory
        )
    return costs


def _profiler(device: torch.device) -> profile:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise it logs to stderr
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    return profile(activities=activities, profile_memory=True)


def limit_memory() -> None:
    """Make an allocation beyond 90% of the machine's memory an error.

    Otherwise Linux kills the process. On systems without such limits this does nothing.
    """
    try:
        import resource

        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * memory), hard))
    except (ImportError, AttributeError, ValueError, OSError):
        pass
