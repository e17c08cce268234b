#!/usr/bin/env python
"""Show what a config will do before a GPU is spent on it; needs neither GPU, weights nor data.

    python tools/dry_run.py --config-file configs/coco_stuff/dcp_clip_convnext_b.yaml
    python tools/dry_run.py --config-file configs/coco_stuff/dcp_clip_convnext_b.yaml --num-gpus 4

Prints, as Markdown, and writes into the output folder (report.md, schedule.png, first_batch.png):

- what trains, part by part, and the optimiser's groups;
- the schedule, after Detectron2's rescaling to the number of GPUs: batch, epochs, learning rates;
- a GPU's memory: weights, gradients and optimiser counted, activations traced at full size;
- time: arithmetic, memory traffic and operators of a step, counted; a GPU's speed is assumed;
- a first batch with its labels, or, where the data set is not prepared, synthetic images; where
  nothing trains, the first images as they are evaluated (first_images.png).

Weights are random whatever the config says: they change none of this.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from torch import nn

from dcp_clip.benchmarking.dry_run_batch import expected_count, load_records, picture_of_first
from dcp_clip.benchmarking.dry_run_costs import (
    GIB,
    StepCost,
    memory_table,
    trace_losses,
    trace_step,
)
from dcp_clip.benchmarking.dry_run_schedule import (
    describe_schedule,
    draw_schedule,
    is_half,
    schedule_table,
    table,
)
from dcp_clip.benchmarking.subject import make_vocabulary
from dcp_clip.config import setup_cfg
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine import Trainer
from dcp_clip.engine.optimizer import rates_by_part
from dcp_clip.modeling.clip.freezing import part_of, trainable_table
from dcp_clip.modeling.clip.loading import CLIPWeightsError
from dcp_clip.utils.arguments import format_error
from dcp_clip.utils.image_io import atomic_write
from dcp_clip.vocabulary import Vocabulary

# What one GPU is taken to sustain, in TFLOP/s: two fifths of an RTX 3090's peak with tensor cores,
# a tenth of an A100's; and without them.
TFLOPS_HALF, TFLOPS_SINGLE = 30.0, 10.0
BANDWIDTH = 600.0  # GB/s: two thirds of an RTX 3090's
_TRAFFIC = 3  # bytes moved for each byte of a tensor made: one writes it, two read it
_LAUNCH_SECONDS = 1e-5  # of Python and PyTorch for an operator
_PHOTOGRAPH = (480, 640)  # (H, W) of what is resized: COCO's most frequent


def vocabulary_of(cfg: CfgNode) -> Vocabulary:
    """The categories of the first data set that the config names; invented ones without any."""
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    return dataset_vocabulary(names[0]) if names else make_vocabulary(150)


def optimizer_table(model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """Learning rate, weight decay, tensors and parameters by part."""
    part = {p: part_of(name) for name, p in model.named_parameters()}
    tensors, numbers = Counter(), Counter()
    for group in optimizer.param_groups:
        for p in group["params"]:
            key = (part[p], group["initial_lr"], group["weight_decay"])
            tensors[key] += 1
            numbers[key] += p.numel()
    rows = [(k[0], f"{k[1]:g}", f"{k[2]:g}", n, numbers[k]) for k, n in sorted(tensors.items())]
    return table(rows, ["part", "highest lr", "weight decay", "tensors", "parameters"])


def describe_time(cfg: CfgNode, step: StepCost, args: argparse.Namespace) -> str:
    """Time of a step and of the training, with the arithmetic and what it assumes."""
    tflops = args.tflops or (TFLOPS_HALF if is_half(cfg) else TFLOPS_SINGLE)
    compute = (step.forward_flops + step.backward_flops) / (tflops * 1e12)
    traffic = _TRAFFIC * step.made_bytes / (args.bandwidth * 1e9)
    launches = step.kernels * _LAUNCH_SECONDS
    seconds = max(compute + traffic, launches)
    hours = seconds * cfg.SOLVER.MAX_ITER / 3600
    rows = [
        (
            "arithmetic",
            f"{compute:.3f}",
            f"{step.forward_flops / 1e12:.2f} TFLOPs forward and {step.backward_flops / 1e12:.2f} "
            f"backward, counted, at {tflops:g} TFLOP/s sustained, assumed (--tflops)",
        ),
        (
            "memory traffic",
            f"{traffic:.3f}",
            f"{step.made_bytes / GIB:.1f} GiB of tensors made, counted, each written once and read "
            f"twice, at {args.bandwidth:g} GB/s, assumed (--bandwidth)",
        ),
        (
            "launches",
            f"{launches:.3f}",
            f"{step.kernels:,} operators, counted, at {1e6 * _LAUNCH_SECONDS:g} microseconds, "
            "assumed; they overlap with the rest",
        ),
    ]
    return (
        f"{table(rows, ['of a step', 's', 'basis'])}\n\n{seconds:.2g} s a step, {hours:.1f} h in "
        "all: the larger of the sum of the first two and the third. Waiting for data and for other "
        "GPUs, the optimiser and evaluations come on top."
    )


def describe_test(cfg: CfgNode, cost: StepCost) -> str:
    """What a test image costs."""
    height, width = test_size(cfg)
    return (
        f"A test image of {height} x {width}: {cost.forward_flops / 1e12:.2f} TFLOPs, "
        f"{cost.peak_bytes / GIB:.2f} GiB beside the weights"
        f"{'' if cfg.MODEL.DCP_CLIP.BF16 else ', in fp32'}."
    )


def test_size(cfg: CfgNode) -> tuple[int, int]:
    """(H, W) of a test image."""
    return resized(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


def train_size(cfg: CfgNode) -> tuple[int, int]:
    """(H, W) of the largest training image."""
    if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE == "absolute":
        return tuple(cfg.INPUT.CROP.SIZE)
    return resized(max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN)


def resized(short: int, longest: int) -> tuple[int, int]:
    """(H, W) of a photograph as Detectron2 resizes it; a `short` of 0 leaves it alone."""
    if not short:
        return _PHOTOGRAPH
    return T.ResizeShortestEdge.get_output_shape(*_PHOTOGRAPH, short, longest)


def training_sections(
    cfg: CfgNode,
    model: nn.Module,
    vocabulary: Vocabulary,
    images: int | None,
    args: argparse.Namespace,
) -> list[str]:
    """The report on optimiser, schedule, memory and time; draws the schedule."""
    optimizer = Trainer.build_optimizer(cfg, model)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    rates = rates_by_part(cfg, model)
    trained = {part_of(n) for n, p in model.named_parameters() if p.requires_grad}
    rates = {part: rate for part, rate in rates.items() if part in trained}
    draw_schedule(cfg, scheduler, rates, args.output / "schedule.png")
    size, batch = train_size(cfg), cfg.SOLVER.IMS_PER_BATCH // args.num_gpus
    step = trace_step(model, vocabulary, batch, size, is_half(cfg))
    losses = trace_losses(model, cfg, len(vocabulary), batch, size)
    memory = memory_table(model, cfg, step, losses, args.num_gpus)
    test = trace_evaluation(cfg, model, vocabulary)
    return [
        f"## What trains\n\n{trainable_table(model, rates)}",
        f"## Optimiser\n\n{type(optimizer).__name__}\n\n{optimizer_table(model, optimizer)}",
        f"## Schedule\n\n{describe_schedule(cfg, args.num_gpus, images)}\n\n"
        + schedule_table(cfg, scheduler, rates),
        f"## Memory of a GPU\n\n{batch} images of {size[0]} x {size[1]}.\n\n"
        + table([(w, f"{n / GIB:.2f}", basis) for w, n, basis in memory], ["what", "GiB", "basis"]),
        f"## Time\n\n{describe_time(cfg, step, args)}\n\n{describe_test(cfg, test)}",
    ]


def trace_evaluation(cfg: CfgNode, model: nn.Module, vocabulary: Vocabulary) -> StepCost:
    model.eval()
    cost = trace_step(model, vocabulary, 1, test_size(cfg), cfg.MODEL.DCP_CLIP.BF16, backward=False)
    model.train()
    return cost


def report(cfg: CfgNode, args: argparse.Namespace) -> str:
    """The whole report; pictures go into the output folder."""
    model, vocabulary = build_model(cfg).train(), vocabulary_of(cfg)
    dataset = next(iter((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)), "")
    records, why = load_records(dataset) if dataset else ([], "The config names no data set.")
    images = len(records) or expected_count(dataset)
    clip = f"{cfg.MODEL.CLIP.NAME}, random weights; {len(vocabulary)} names"
    sections = [f"# Dry run of {args.config_file}\n\n{cfg.MODEL.META_ARCHITECTURE} on {clip}."]
    trains = any(p.requires_grad for p in model.parameters())
    if trains:
        sections += training_sections(cfg, model, vocabulary, images, args)
    else:
        cost = trace_evaluation(cfg, model, vocabulary)
        sections.append(
            f"Nothing trains with this config: it is for evaluation.\n\n{describe_test(cfg, cost)}"
        )
    title, count = "First images", 2
    if trains:
        title, count = "A first batch", max(cfg.SOLVER.IMS_PER_BATCH // args.num_gpus, 1)
    path = args.output / f"{'first_batch' if trains else 'first_images'}.png"
    sizes = picture_of_first(cfg, records, vocabulary, count, path, trains)
    shown = ", ".join(f"{height} x {width}" for height, width in sizes)
    note = f"\n\nSynthetic images stand in for '{dataset}', which is not prepared: {why}"
    sections.append(f"## {title}\n\n{path}: {shown}.{'' if records else note}")
    return "\n\n".join(sections)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="YAML")
    add("--output", type=Path, metavar="DIR", help="default: output/dry_run/<name of the config>")
    add("--num-gpus", type=int, metavar="N", help="default: SOLVER.REFERENCE_WORLD_SIZE, or 1")
    tflops = f"default {TFLOPS_HALF:g} in mixed precision, else {TFLOPS_SINGLE:g}"
    add("--tflops", type=float, metavar="X", help=f"what a GPU sustains, TFLOP/s; {tflops}")
    add("--bandwidth", type=float, default=BANDWIDTH, metavar="X", help="of its memory, GB/s")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="of the config")
    return parser


def load(args: argparse.Namespace) -> CfgNode:
    """The config as this number of GPUs would train it, on the CPU, with random weights."""
    fixed = ["MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu"]
    fixed += ["MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", ""]
    cfg = setup_cfg(args.config_file, args.opts + fixed)
    args.num_gpus = args.num_gpus or max(cfg.SOLVER.REFERENCE_WORLD_SIZE, 1)
    cfg = Trainer.auto_scale_workers(cfg, args.num_gpus)
    if cfg.MODEL.META_ARCHITECTURE not in ("DCPCLIP", "FPNBaseline"):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}'; this program measures "
            "DCPCLIP and FPNBaseline."
        )
    if cfg.SOLVER.IMS_PER_BATCH % args.num_gpus:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, which {args.num_gpus} GPUs "
            "cannot share evenly."
        )
    return cfg


def main(argv: Sequence[str] | None = None) -> None:
    """Print and write the report; a wrong argument ends with one sentence."""
    args = get_parser().parse_args(argv)
    numbers = (args.num_gpus, args.tflops, args.bandwidth)
    if not all(number is None or number > 0 for number in numbers):
        sys.exit("--num-gpus, --tflops and --bandwidth must be positive.")
    args.output = args.output or Path("output/dry_run", Path(args.config_file).stem)
    try:
        cfg = load(args)
        args.output.mkdir(parents=True, exist_ok=True)
        text = report(cfg, args)
        with atomic_write(args.output / "report.md", "w") as file:
            file.write(text + "\n")
    except (OSError, KeyError, ValueError, CLIPWeightsError, DatasetError) as error:
        sys.exit(f"{args.config_file}: {format_error(error)}")
    print(text)


if __name__ == "__main__":
    main()
