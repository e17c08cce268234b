"""Where the time and the memory of a forward or of a training step go, by stage and operator."""

from collections.abc import Callable, Sequence

from torch import nn
from torch.profiler import record_function

from dcp_clip.benchmarking.meters import Spent, profile_calls
from dcp_clip.benchmarking.subject import Subject
from dcp_clip.vocabulary import Vocabulary

STAGES = ("backbone", "proposal", "guidance", "coarse_decoder", "fine_decoder", "refinement")
# Scopes that `Subject.train_step` opens itself.
STEP_SCOPES = ("backward", "optimiser")


def profile_forward(subject: Subject, vocabulary: Vocabulary) -> dict[str, dict]:
    """Profile a whole forward for one image, to the category of every pixel.

    Returns:
        "stages" and "operators", each a dict from name to "ms", milliseconds a call, and "bytes":
        of a stage those that it leaves allocated, of an operator what it allocates less what it
        frees. Operators are those beyond the encoder.
    """
    whole = subject.whole(vocabulary)
    names = _stages_of(subject)
    spent = _profile_stages(subject, whole, names)
    stages = _stage_figures(spent, names, "normalising, similarity, output")
    with subject.replaying():
        whole()
        operators = profile_calls(whole, subject.device)
    return {"stages": stages, "operators": {name: _own(x) for name, x in operators.items()}}


def profile_training(subject: Subject, batch: int, vocabulary: Vocabulary) -> dict[str, dict]:
    """Profile a training step as :func:`profile_forward` a forward.

    The losses, the backward pass and the optimiser count as stages. From the operators of the step
    those of the encoder's forward are subtracted; where the encoder trains, its backward remains.
    """
    step = subject.train_step(batch, vocabulary)
    step()  # the optimiser allocates its state in its first step
    names = (*_stages_of(subject), "criterion")
    spent = _profile_stages(subject, step, names, repeats=2)
    stages = _stage_figures(spent, (*names, *STEP_SCOPES), "normalising, similarity")
    encoder = profile_calls(subject.encoder_of(batch), subject.device, repeats=2)
    operators = {name: _own(x) for name, x in spent.items() if not name.startswith("stage: ")}
    for name, figures in operators.items():
        if name in encoder:
            for key, value in _own(encoder[name]).items():
                figures[key] -= value
    return {"stages": stages, "operators": operators}


def _stages_of(subject: Subject) -> tuple[str, ...]:
    """Those of the stages that the model has: other methods' heads have none but the encoder."""
    return tuple(name for name in STAGES if hasattr(subject.model, name))


def _own(spent: Spent) -> dict[str, float]:
    return {"ms": spent.own_ms, "bytes": spent.own_bytes}


def _profile_stages(
    subject: Subject, function: Callable[[], object], names: Sequence[str], repeats: int = 5
) -> dict[str, Spent]:
    """Profile with a scope "stage: <name>" around each of these modules' forward."""
    modules: dict[str, nn.Module] = {name: getattr(subject.model, name) for name in names}
    for name, module in modules.items():
        module.forward = record_function(f"stage: {name}")(module.forward)
    try:
        return profile_calls(record_function("stage: all")(function), subject.device, repeats)
    finally:
        for module in modules.values():
            del module.forward  # the class's own again


def _stage_figures(spent: dict[str, Spent], names: Sequence[str], rest: str) -> dict[str, dict]:
    """Figures by stage; `rest` names what is in none of them."""
    nothing = Spent(0.0, 0.0, 0.0, 0.0)
    scopes = {name: spent.get(f"stage: {name}", nothing) for name in (*names, "all")}
    whole = scopes.pop("all")
    figures = {name: {"ms": x.ms, "bytes": x.bytes} for name, x in scopes.items()}
    named = [sum(x[key] for x in figures.values()) for key in ("ms", "bytes")]
    return figures | {rest: {"ms": whole.ms - named[0], "bytes": whole.bytes - named[1]}}
