"""The learning-rate schedule of a config, in words and as a curve."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from matplotlib.figure import Figure
from torch.optim.lr_scheduler import LRScheduler

from dcp_clip.utils.atomic_files import atomic_write


def describe_schedule(cfg: CfgNode, num_gpus: int, num_images: int | None) -> str:
    """Describe batch, epochs, schedule, evaluations and checkpoints in words.

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
    evaluations = (-(-last // period) if period > 0 else 1) if cfg.DATASETS.TEST else 0
    checkpoints = last // cfg.SOLVER.CHECKPOINT_PERIOD + 1  # the last one is model_final.pth
    return (
        f"{num_gpus} GPU{'s' * (num_gpus > 1)} x {batch // num_gpus} = {batch} images per "
        f"iteration, {last:,} iterations, {batch * last:,} images: {epochs}.\n"
        f"{cfg.SOLVER.LR_SCHEDULER_NAME}, warm-up {cfg.SOLVER.WARMUP_ITERS:,} iterations; "
        f"gradient clipping: {clipping}; mixed precision: {'yes' if half else 'no'}.\n"
        f"{evaluations} evaluation{'s' * (evaluations != 1)}, "
        f"{checkpoints} checkpoint{'s' * (checkpoints != 1)}."
    )


def relative_rates(scheduler: LRScheduler, iterations: Sequence[int]) -> list[float]:
    """Learning rates at these iterations relative to the highest.

    Detectron2's schedulers compute the rate from the iteration alone.
    """
    before, rates = scheduler.last_epoch, []
    initial = [group["initial_lr"] for group in scheduler.optimizer.param_groups]
    highest = max(initial)
    index = initial.index(highest)  # another group may have the rate 0
    for iteration in iterations:
        scheduler.last_epoch = iteration
        rates.append(scheduler.get_lr()[index] / highest)
    scheduler.last_epoch = before
    return rates


def draw_schedule(scheduler: LRScheduler, last: int, rates: dict[str, float], path: Path) -> None:
    """Draw the learning rates over the iterations as PNG.

    Args:
        scheduler: the scheduler of the training.
        last: number of iterations.
        rates: highest learning rate of each part that trains.
        path: file to write.
    """
    iterations = sorted({i * (last - 1) // 1000 for i in range(1001)})
    relative = relative_rates(scheduler, iterations)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    rates = {part: rate for part, rate in rates.items() if rate}  # the axis is logarithmic
    for rate in sorted(set(rates.values()), reverse=True):
        label = ", ".join(part for part in rates if rates[part] == rate)
        axes.plot(iterations, [rate * r for r in relative], label=label)
    axes.set(xlabel="iteration", ylabel="learning rate", yscale="log")
    axes.set_ylim(max(min(rates.values()) * 1e-3, 1e-12), None)
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
