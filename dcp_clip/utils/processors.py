"""The number of processors, also where a scheduler gives a process only some of them."""

import os

__all__ = ["usable_cpus"]


def usable_cpus() -> int:
    """Return the number of processors that this process may use (CPU affinity)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
