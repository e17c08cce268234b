"""Time and memory of a forward pass or of a training step, by stage and by operator."""

from collections.abc import Callable

from torch.profiler import record_function

from dcp_clip.benchmarking.benchmark_model import BenchmarkModel
from dcp_clip.benchmarking.call_cost import profiler
from dcp_clip.vocabulary import Vocabulary

STAGES = ("backbone", "proposal", "guidance", "coarse_decoder", "fine_decoder", "refinement")
_MODULES = (*STAGES, "criterion")
_REPEATS = 3
_OPERATORS = 12  # the most expensive ones are listed


def profile_inference(subject: BenchmarkModel, vocabulary: Vocabulary) -> dict[str, list[dict]]:
    """Profile the whole forward pass for one image, up to the category of every pixel.

    Returns:
        Rows of time and memory for "stages", and for "operators" outside the image encoder. A stage
        counts the memory that it leaves allocated, an operator what it allocates minus what it
        frees.
    """
    forward = subject.forward(vocabulary)
    stages, _ = _profile(subject, forward)
    with subject.cached_backbone():
        _, operators = _profile(subject, forward)
    return {"stages": stages, "operators": operators}


def profile_training(
    subject: BenchmarkModel, batch: int, vocabulary: Vocabulary
) -> dict[str, list[dict]]:
    """Profile a training step as :func:`profile_inference` does a forward pass.

    The losses ("criterion"), the backward pass and the optimizer are further stages. The operators
    include those of the image encoder.
    """
    stages, operators = _profile(subject, subject.train_step(batch, vocabulary))
    return {"stages": stages, "operators": operators}


def _profile(subject: BenchmarkModel, call: Callable[[], object]) -> tuple[list[dict], list[dict]]:
    """Rows for the stages that the model has, and for the most expensive operators."""
    call()  # allocates the state of an optimizer, and fills caches
    modules = {name: getattr(subject.model, name, None) for name in _MODULES}
    modules = {name: module for name, module in modules.items() if module is not None}
    for name, module in modules.items():
        module.forward = record_function(f"stage: {name}")(module.forward)
    try:
        with profiler(subject.device) as profiled:
            for _ in range(_REPEATS):
                record_function("stage: all")(call)()
    finally:
        for module in modules.values():
            del module.forward  # restores the method of the class
    kind = "device" if subject.device.type == "cuda" else "cpu"
    stages, operators = [], []
    for event in profiled.key_averages():
        is_stage = event.key.startswith("stage: ")
        own = "" if is_stage else "self_"
        row = {"stage" if is_stage else "operator": event.key.removeprefix("stage: ")}
        microseconds = getattr(event, f"{own}{kind}_time_total")
        row |= {"time_seconds": microseconds / 1e6 / _REPEATS}
        row |= {"memory_bytes": getattr(event, f"{own}{kind}_memory_usage") / _REPEATS}
        (stages if is_stage else operators).append(row)
    operators.sort(key=lambda row: -row["time_seconds"])
    return stages, operators[:_OPERATORS]
