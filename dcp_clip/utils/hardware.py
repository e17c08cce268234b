"""Describe the machine: processors, memory, accelerators, and what PyTorch can do with them."""

from __future__ import annotations

import os
import platform
from collections.abc import Collection
from pathlib import Path

# Instruction sets with which a CPU multiplies bfloat16 matrices faster than float32 ones.
BF16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "Arm BF16"}


def hardware_summary() -> dict[str, str]:
    """Return the processors that PyTorch can use here, and memory, as text by name."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    summary = {
        "CPU": cpu_name(),
        "cores": f"{usable} usable of {os.cpu_count()}",
        "memory": memory_size(),
        "CPU bfloat16": bf16_support(cpu_flags()),
    }
    try:
        import torch
    except Exception as error:  # a damaged installation can raise anything
        reason = str(error).strip().partition("\n")[0]
        return summary | {"GPU": f"unknown: PyTorch cannot be imported ({reason})"}
    threads = f"{torch.get_num_threads()} threads"
    summary["PyTorch on CPU"] = f"{torch.backends.cpu.get_cpu_capability()}, {threads}"
    return summary | {"GPU": gpu_names()}


def bf16_support(flags: Collection[str]) -> str:
    """Return whether bf16 autocast pays on a CPU with these instruction sets."""
    if not flags:
        return "unknown: this system does not list its CPU's instruction sets"
    native = [label for flag, label in BF16_FLAGS.items() if flag in flags]
    if native:
        return f"native ({', '.join(native)}): bf16 autocast pays"
    if "avx512bw" in flags:
        return "emulated with AVX-512: bf16 autocast saves memory, seldom time"
    return "emulated: bf16 autocast is many times slower than float32"


def gpu_names() -> str:
    """Return the accelerators that PyTorch sees, with memory and compute capability."""
    import torch

    if torch.cuda.is_available():
        devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        return "; ".join(
            f"cuda:{i} {device.name}, {device.total_memory / 2**30:.0f} GiB, "
            f"capability {device.major}.{device.minor}"
            for i, device in enumerate(devices)
        )
    if torch.backends.mps.is_available():
        return "mps"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU only"
    return f"none (this PyTorch is built for {build})"


def cpu_flags() -> set[str]:
    """Return the CPU's instruction sets as Linux names them; empty on another system."""
    for key in ("flags", "Features"):  # x86 and Arm
        if line := cpu_info(key):
            return set(line.split())
    return set()


def cpu_name() -> str:
    """Return the CPU's name for people, or at least its architecture."""
    return cpu_info("model name") or platform.processor() or platform.machine()


def cpu_info(key: str) -> str:
    """Return the first value of ``key`` in Linux's list of processors, empty if there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), "")


def memory_size() -> str:
    """Return the machine's main memory."""
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not a POSIX system
        return "unknown"
    return f"{size / 2**30:.1f} GiB"
