"""What `benchmark.py` measures with: time, FLOPs, memory, and a profile of operators."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of one call, the device's work included."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if on_gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def count_flops(function: Callable[[], object]) -> int:
    """FLOPs of one call: 2 for each multiply-add in convolutions, matrix products and attention."""
    # PyTorch's counter knows the attention kernels of GPUs only, and not the fused operator that
    # nn.MultiheadAttention takes in evaluation.
    cpu_attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def count_attention(query, key, value, *args, **kwargs) -> int:
        return sdpa_flop(query, key, value)

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        mapping = {cpu_attention: count_attention}
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            function()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.get_total_flops()


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes that tensors allocated by one call take at one time, its result included.

    It is counted by PyTorch's allocator, on a CPU through the profiler. Unlike the resident set it
    depends neither on what ran before nor on what the C library keeps, and what was allocated
    before the call is no part of it.
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
    with _profiler(device, profile_memory=True) as profiler:
        result = function()
    del result
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()  # negative where memory is freed
        peak = max(peak, total)
    return peak


@dataclass(frozen=True)
class Spent:
    """Milliseconds a call, and bytes that it allocates less those that it frees, of an operator or
    scope: with what it calls, and (`own`) without."""

    ms: float
    own_ms: float
    bytes: float
    own_bytes: float


def profile_calls(
    function: Callable[[], object], device: torch.device, repeats: int = 5
) -> dict[str, Spent]:
    """What a call spends, by the name of operator or `record_function` scope; on a GPU its time
    and memory."""
    with _profiler(device, profile_memory=True) as profiler:
        for _ in range(repeats):
            function()
    kind = "device" if device.type == "cuda" else "cpu"
    times, memory = f"{kind}_time_total", f"{kind}_memory_usage"

    def spent(event: object) -> Spent:
        ms = [getattr(event, key) / 1e3 / repeats for key in (times, f"self_{times}")]
        return Spent(*ms, *(getattr(event, key) / repeats for key in (memory, f"self_{memory}")))

    return {event.key: spent(event) for event in profiler.key_averages()}


def _profiler(device: torch.device, **options) -> profile:
    # It would write to stderr what it is doing, and of GPUs that it does not find.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    return profile(activities=activities, **options)


def limit_memory() -> None:
    """Make an allocation beyond the machine's memory an error; Linux would end the process instead.

    Does nothing on systems without such limits.
    """
    try:
        import resource

        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (int(0.9 * memory), hard))
    except (ImportError, AttributeError, ValueError, OSError):
        pass
