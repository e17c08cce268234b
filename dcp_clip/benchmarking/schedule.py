"""The learning-rate schedule of a config: in words, as a table and as a curve."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from matplotlib.figure import Figure
from torch.optim.lr_scheduler import LRScheduler

from dcp_clip.benchmarking.report import markdown_table
from dcp_clip.utils.image_io import atomic_write


def describe_schedule(cfg: CfgNode, num_gpus: int, num_images: int | None) -> str:
    """Sentences on batch, epochs, schedule, evaluations and checkpoints.

    Args:
        cfg: the config, already scaled to `num_gpus`.
        num_gpus: number of processes.
        num_images: size of the training set; None if it is unknown.
    """
    batch, last = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER
    epochs = "epochs unknown"
    if num_images:
        epochs = f"{batch * last / num_images:.1f} epochs of {num_images:,}"
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clipping = f"{clip.CLIP_TYPE} at {clip.CLIP_VALUE:g}" if clip.ENABLED else "none"
    half = cfg.SOLVER.AMP.ENABLED or cfg.MODEL.DCP_CLIP.BF16
    period = cfg.TEST.EVAL_PERIOD
    return (
        f"{num_gpus} GPU{'s' * (num_gpus > 1)} x {batch // num_gpus} = {batch} images per "
        f"iteration, {last:,} iterations, {batch * last:,} images: {epochs}.\n"
        f"{cfg.SOLVER.LR_SCHEDULER_NAME}, warm-up {cfg.SOLVER.WARMUP_ITERS:,} iterations; "
        f"gradient clipping: {clipping}; mixed precision: {'yes' if half else 'no'}.\n"
        f"{last // period if period else 1} evaluations, "
        f"{-(-last // cfg.SOLVER.CHECKPOINT_PERIOD)} checkpoints."
    )


def relative_rates(scheduler: LRScheduler, iterations: Sequence[int]) -> list[float]:
    """Learning rates at these iterations relative to the highest.

    Detectron2's schedulers compute the rate from the iteration alone.
    """
    before, rates = scheduler.last_epoch, []
    highest = scheduler.optimizer.param_groups[0]["initial_lr"]
    for iteration in iterations:
        scheduler.last_epoch = iteration
        rates.append(scheduler.get_lr()[0] / highest)
    scheduler.last_epoch = before
    return rates


def milestones(cfg: CfgNode) -> list[int]:
    """The iterations of the table: warm-up, steps, quarters and the last one."""
    last, warm_up = cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS
    steps = [i for s in cfg.SOLVER.STEPS for i in (s - 1, s)]
    if "Step" not in cfg.SOLVER.LR_SCHEDULER_NAME:
        steps = []
    marks = [0, warm_up // 2, warm_up, *steps, *(round(last * f) for f in (0.25, 0.5, 0.75, 0.9))]
    return sorted({min(max(i, 0), last - 1) for i in (*marks, last - 1)})


def schedule_table(cfg: CfgNode, scheduler: LRScheduler, rates: dict[str, float]) -> str:
    """The learning rate of every part at the milestones.

    Args:
        cfg: the config.
        scheduler: the scheduler of the training.
        rates: highest learning rate of each part.
    """
    labels, marks = _parts_by_rate(rates), milestones(cfg)
    rows = [
        (i, *(f"{rate * relative:.3g}" for rate in labels))
        for i, relative in zip(marks, relative_rates(scheduler, marks))
    ]
    return markdown_table(["iteration", *(f"lr of {parts}" for parts in labels.values())], rows)


def draw_schedule(
    cfg: CfgNode, scheduler: LRScheduler, rates: dict[str, float], path: Path
) -> None:
    """Draw the learning rates over the iterations as PNG; see :func:`schedule_table`."""
    last = cfg.SOLVER.MAX_ITER
    iterations = sorted({*milestones(cfg), *(i * (last - 1) // 400 for i in range(401))})
    relative = relative_rates(scheduler, iterations)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for rate, label in _parts_by_rate(rates).items():
        axes.plot(iterations, [rate * r for r in relative], label=label)
    axes.set(xlabel="iteration", ylabel="learning rate", yscale="log")
    axes.set_ylim(max(min(rates.values()) * 1e-3, 1e-12), None)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)


def _parts_by_rate(rates: dict[str, float]) -> dict[float, str]:
    """The parts that share a learning rate, by rate, the highest first."""
    return {
        rate: ", ".join(part for part in rates if rates[part] == rate)
        for rate in sorted(set(rates.values()), reverse=True)
    }
