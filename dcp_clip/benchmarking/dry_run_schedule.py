"""The learning-rate schedule of a config: in words, as a table and as a curve."""

import re
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from matplotlib.figure import Figure
from tabulate import tabulate
from torch.optim.lr_scheduler import LRScheduler

from dcp_clip.utils.image_io import atomic_write


def is_half(cfg: CfgNode) -> bool:
    return cfg.SOLVER.AMP.ENABLED or cfg.MODEL.DCP_CLIP.BF16


def table(rows: Sequence[Sequence], headers: Sequence[str]) -> str:
    """A Markdown table; columns of numbers are aligned to the right."""
    rows = [[f"{x:,}" if isinstance(x, int) else str(x) for x in row] for row in rows]
    numeric = [re.fullmatch(r"[\d.,e+-]+", x) for x in rows[0]]
    align = ["right" if n else "left" for n in numeric]
    return tabulate(rows, headers, tablefmt="github", colalign=align, disable_numparse=True)


def schedule_shape(scheduler: LRScheduler, iterations: Sequence[int]) -> list[float]:
    """Learning rate at these iterations relative to the highest; schedules are closed formulas."""
    before, rates = scheduler.last_epoch, []
    highest = scheduler.optimizer.param_groups[0]["initial_lr"]
    for iteration in iterations:
        scheduler.last_epoch = iteration
        rates.append(scheduler.get_lr()[0] / highest)
    scheduler.last_epoch = before
    return rates


def milestones(cfg: CfgNode) -> list[int]:
    """Iterations at which the schedule is told: warm-up, steps, tenths, the last."""
    last, warm_up = cfg.SOLVER.MAX_ITER, min(cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER)
    steps = [i for s in cfg.SOLVER.STEPS for i in (s - 1, s)]
    if "Step" not in cfg.SOLVER.LR_SCHEDULER_NAME:
        steps = []
    marks = [0, warm_up // 2, warm_up, *steps, *(round(last * f) for f in (0.25, 0.5, 0.75, 0.9))]
    return sorted({min(max(i, 0), last - 1) for i in (*marks, last - 1)})


def rate_labels(cfg: CfgNode, rates: dict[str, float]) -> dict[float, str]:
    """Each distinct rate, the highest first, and the parts that have it."""
    others = {r: [p for p, rate in rates.items() if rate == r] for r in set(rates.values())}
    return {
        r: "all but the towers" if r == cfg.SOLVER.BASE_LR else ", ".join(sorted(others[r]))
        for r in sorted(others, reverse=True)
    }


def schedule_table(cfg: CfgNode, scheduler: LRScheduler, rates: dict[str, float]) -> str:
    marks, labels = milestones(cfg), rate_labels(cfg, rates)
    rows = [
        (i, *(f"{rate * s:.3g}" for rate in labels))
        for i, s in zip(marks, schedule_shape(scheduler, marks))
    ]
    return table(rows, ["iteration", *(f"lr of {parts}" for parts in labels.values())])


def draw_schedule(
    cfg: CfgNode, scheduler: LRScheduler, rates: dict[str, float], path: Path
) -> None:
    """The learning rate of every part that trains, over the iterations."""
    last = cfg.SOLVER.MAX_ITER
    iterations = sorted({*milestones(cfg), *(i * (last - 1) // 400 for i in range(401))})
    shape = schedule_shape(scheduler, iterations)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for rate, label in rate_labels(cfg, rates).items():
        axes.plot(iterations, [rate * s for s in shape], label=label)
    axes.set(xlabel="iteration", ylabel="learning rate", yscale="log")
    axes.set_ylim(max(min(rates.values()) * 1e-3, 1e-12), None)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def describe_schedule(cfg: CfgNode, num_gpus: int, images: int | None) -> str:
    """Sentences on batch, images seen, evaluations and checkpoints."""
    batch, last = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER
    epochs = f"{batch * last / images:.1f} epochs of {images:,}" if images else "epochs unknown"
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clipped = f"{clip.CLIP_TYPE} at {clip.CLIP_VALUE:g}" if clip.ENABLED else "no"
    period = cfg.TEST.EVAL_PERIOD
    lines = [
        f"{num_gpus} GPU{'s' * (num_gpus > 1)} x {batch // num_gpus} = {batch} images an "
        f"iteration, {last:,} iterations, {batch * last:,} images: {epochs}.",
        f"{cfg.SOLVER.LR_SCHEDULER_NAME}, warm-up {cfg.SOLVER.WARMUP_ITERS:,} iterations; "
        f"gradient clipping: {clipped}; mixed precision: {'yes' if is_half(cfg) else 'no'}.",
        f"{last // period if period else 1} evaluations, "
        f"{-(-last // cfg.SOLVER.CHECKPOINT_PERIOD)} checkpoints.",
    ]
    return "\n".join(lines)
