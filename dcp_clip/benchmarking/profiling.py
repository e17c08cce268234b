"""Time and memory of a forward pass or of a training step, by stage and by operator."""

from collections.abc import Callable, Sequence

from torch.profiler import record_function

from dcp_clip.benchmarking.benchmark_model import BenchmarkModel
from dcp_clip.benchmarking.measure import OperatorCost, profile_operators
from dcp_clip.vocabulary import Vocabulary

STAGES = ("backbone", "proposal", "guidance", "coarse_decoder", "fine_decoder", "refinement")
# Scopes that `BenchmarkModel.train_step` opens.
STEP_SCOPES = ("backward", "optimizer")


def profile_inference(subject: BenchmarkModel, vocabulary: Vocabulary) -> dict[str, dict]:
    """Profile the whole forward pass for one image, up to the category of every pixel.

    Returns:
        "stages" and "operators" (those outside the encoder), each a dict from name to "ms" and
        "bytes" of one call. The bytes of a stage are what it leaves allocated; those of an operator
        are what it allocates minus what it frees.
    """
    forward = subject.forward(vocabulary)
    names = _stages_of(subject)
    costs = _profile_stages(subject, forward, names, repeats=5)
    stages = _stage_figures(costs, names, "normalisation, similarity, output")
    with subject.cached_backbone():
        forward()
        operators = profile_operators(forward, subject.device, repeats=5)
    return {"stages": stages, "operators": {name: _own(x) for name, x in operators.items()}}


def profile_training(
    subject: BenchmarkModel, batch: int, vocabulary: Vocabulary
) -> dict[str, dict]:
    """Profile a training step; returns what :func:`profile_inference` returns.

    The losses, the backward pass and the optimizer are further stages. The operators of the
    encoder's forward pass are subtracted, but not those of its backward pass if it trains.
    """
    step = subject.train_step(batch, vocabulary)
    step()  # the first step allocates the state of the optimizer
    names = (*_stages_of(subject), "criterion")
    costs = _profile_stages(subject, step, names, repeats=2)
    stages = _stage_figures(costs, (*names, *STEP_SCOPES), "normalisation, similarity")
    encoder = profile_operators(subject.encoder(batch), subject.device, repeats=2)
    operators = {}
    for name, cost in costs.items():
        if not name.startswith("stage: "):
            own, others = _own(cost), _own(encoder.get(name, OperatorCost()))
            operators[name] = {key: own[key] - others[key] for key in own}
    return {"stages": stages, "operators": operators}


def _stages_of(subject: BenchmarkModel) -> tuple[str, ...]:
    """The stages that the model has; other methods' heads have only the backbone."""
    return tuple(name for name in STAGES if hasattr(subject.model, name))


def _own(cost: OperatorCost) -> dict[str, float]:
    return {"ms": cost.own_ms, "bytes": cost.own_bytes}


def _profile_stages(
    subject: BenchmarkModel, function: Callable[[], object], names: Sequence[str], repeats: int
) -> dict[str, OperatorCost]:
    """Profile with a scope "stage: <name>" around the forward pass of each of these modules."""
    modules = {name: getattr(subject.model, name) for name in names}
    for name, module in modules.items():
        module.forward = record_function(f"stage: {name}")(module.forward)
    try:
        whole = record_function("stage: all")(function)
        return profile_operators(whole, subject.device, repeats)
    finally:
        for module in modules.values():
            del module.forward  # uncovers the method of the class


def _stage_figures(
    costs: dict[str, OperatorCost], names: Sequence[str], rest: str
) -> dict[str, dict]:
    """Figures of each stage; what belongs to none of them is listed as `rest`."""
    whole = costs["stage: all"]
    scopes = {name: costs.get(f"stage: {name}", OperatorCost()) for name in names}
    figures = {name: {"ms": x.ms, "bytes": x.bytes} for name, x in scopes.items()}
    ms, memory = (sum(x[key] for x in figures.values()) for key in ("ms", "bytes"))
    return figures | {rest: {"ms": whole.ms - ms, "bytes": whole.bytes - memory}}
