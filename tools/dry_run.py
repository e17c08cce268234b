#!/usr/bin/env python
"""Show what a config trains before you spend GPU hours on it; needs no GPU, weights or data.

    python tools/dry_run.py --config-file configs/coco_stuff/dcp_clip_convnext_b.yaml
    python tools/dry_run.py --config-file configs/coco_stuff/dcp_clip_convnext_b.yaml --num-gpus 4

Prints, as Markdown, and writes to the output folder (report.md, schedule.png, first_batch.png):

- the trainable parameters of each part and their learning rates;
- the schedule after Detectron2's rescaling to the number of GPUs: batch, epochs, learning rates;
- memory of one GPU: weights, gradients and optimizer state are counted, activations are traced at
  full size, without computing them;
- FLOPs of a training step and of a test image;
- a first training batch with its labels, if the data set is prepared; if nothing trains, the first
  test images (first_images.png).

The weights are random, which does not change these figures.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import add_import, output_path

_PHOTOGRAPH = (480, 640)  # (H, W) of the images before resizing: the most frequent in COCO


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="YAML")
    add_import(parser)
    output_help = "default: output/dry_run/<folder of the config>/<name of the config>"
    add("--output", type=output_path, metavar="DIR", help=output_help)
    add("--num-gpus", type=int, metavar="N", help="default: SOLVER.REFERENCE_WORLD_SIZE, or 1")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys")
    return parser


# PyTorch and dcp_clip are imported in the functions below, so that --help answers at once.


def load_config(args: argparse.Namespace):
    """The config as it would train on this number of GPUs, but on a CPU and with random weights."""
    from dcp_clip.config import setup_cfg
    from dcp_clip.engine import Trainer

    fixed = ["MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu"]
    fixed += ["MODEL.CLIP.PROXY.PRETRAINED", "", "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", ""]
    cfg = setup_cfg(args.config_file, args.opts + fixed, imports=args.imports)
    args.num_gpus = args.num_gpus or max(cfg.SOLVER.REFERENCE_WORLD_SIZE, 1)
    return Trainer.auto_scale_workers(cfg, args.num_gpus)


def test_size(cfg) -> tuple[int, int]:
    """(H, W) of a test image."""
    return _resized(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


def train_size(cfg) -> tuple[int, int]:
    """(H, W) of the largest training image."""
    from detectron2.data import transforms as T

    size = _resized(max(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN)
    kind, crop = cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE
    if not cfg.INPUT.CROP.ENABLED or kind == "relative_range":  # a crop can be the whole image
        return size
    if kind == "absolute_range":
        kind, crop = "absolute", (crop[1], crop[1])
    return T.RandomCrop(kind, crop).get_crop_size(size)


def _resized(short: int, longest: int) -> tuple[int, int]:
    from detectron2.data import transforms as T

    if not short:  # no resizing
        return _PHOTOGRAPH
    return T.ResizeShortestEdge.get_output_shape(*_PHOTOGRAPH, short, longest)


def training_report(cfg, model, vocabulary, num_images: int | None, args) -> list[str]:
    """The sections on parameters, schedule, memory and FLOPs; draws the schedule."""
    from tabulate import tabulate

    from dcp_clip.benchmarking import schedule
    from dcp_clip.benchmarking.traced_step import memory_rows, trace_step
    from dcp_clip.engine import Trainer
    from dcp_clip.engine.optimizer import learning_rates_by_part, part_of, trainable_table

    scheduler = Trainer.build_lr_scheduler(cfg, Trainer.build_optimizer(cfg, model))
    rates = learning_rates_by_part(cfg, model)
    trained = {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    trained_rates = {part: rate for part, rate in rates.items() if part in trained}
    picture = args.output / "schedule.png"
    schedule.draw_schedule(scheduler, cfg.SOLVER.MAX_ITER, trained_rates, picture)
    size, batch = train_size(cfg), cfg.SOLVER.IMS_PER_BATCH // args.num_gpus
    half = cfg.SOLVER.AMP.ENABLED or cfg.MODEL.DCP_CLIP.BF16
    step = trace_step(model, vocabulary, batch, size, half)
    memory = memory_rows(model, cfg, step, args.num_gpus)
    memory = [(what, f"{count / 2**30:.2f}", basis) for what, count, basis in memory]
    align = ("left", "right", "left")
    return [
        f"## Trainable parameters\n\n{trainable_table(model, rates)}",
        f"## Schedule\n\n{schedule.describe_schedule(cfg, args.num_gpus, num_images)}\n\n"
        f"Learning rates: {picture}",
        f"## Memory of a GPU\n\n{batch} images of {size[0]} x {size[1]}.\n\n"
        + tabulate(memory, ["what", "GiB", "basis"], "github", colalign=align),
        f"## FLOPs\n\nA training step of one GPU: {step.forward_flops / 1e9:,.0f} GFLOPs forward "
        f"and {step.backward_flops / 1e9:,.0f} backward.",
    ]


def report(cfg, args: argparse.Namespace) -> str:
    """The whole report; the pictures are written to the output folder."""
    from detectron2.modeling import build_model

    from dcp_clip.benchmarking import dataset_preview
    from dcp_clip.benchmarking.benchmark_model import make_vocabulary
    from dcp_clip.benchmarking.traced_step import trace_step
    from dcp_clip.data import resolve_dataset_name
    from dcp_clip.data.vocabularies import dataset_vocabulary
    from dcp_clip.modeling.segmentor import OpenVocabularySegmentor

    model = build_model(cfg)
    if not isinstance(model, OpenVocabularySegmentor):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is '{cfg.MODEL.META_ARCHITECTURE}', which does not segment "
            "images with a vocabulary, so there is nothing to show."
        )
    trains = any(p.requires_grad for p in model.parameters())
    known = cfg.DATASETS.TRAIN or cfg.DATASETS.TEST[:1]
    names = cfg.DATASETS.TRAIN if trains else known
    vocabularies = list(map(dataset_vocabulary, known)) or [make_vocabulary(150)]
    vocabulary = max(vocabularies, key=len)  # the cost is that of the longest one
    dataset, records, reason = "", [], "DATASETS.TRAIN is empty."
    if names:
        dataset = names[0]
        records, reason = dataset_preview.load_records(dataset)
    clip = f"{cfg.MODEL.CLIP.NAME}, random weights; {len(vocabulary)} categories"
    sections = [f"# Dry run of {args.config_file}\n\n{cfg.MODEL.META_ARCHITECTURE} on {clip}."]
    if trains:
        factors = [(resolve_dataset_name(x), n) for x, n in cfg.DATASETS.TRAIN_REPEAT_FACTOR]
        num_images = dataset_preview.count_images(names, factors)
        sections += training_report(cfg, model.train(), vocabulary, num_images, args)
    else:
        sections.append("This config has no trainable parameters: it is for evaluation.")
    half = cfg.MODEL.DCP_CLIP.BF16
    cost = trace_step(model.eval(), vocabulary, 1, test_size(cfg), half, backward=False)
    height, width = test_size(cfg)
    sections.append(
        f"A test image of {height} x {width}: {cost.forward_flops / 1e9:,.0f} GFLOPs, "
        f"{cost.peak_bytes / 2**20:,.0f} MiB without the weights, in {'bf16' if half else 'fp32'}"
        f"{', without its sliding windows' if cfg.MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE else ''}."
    )
    title, count, file = "First images", 2, "first_images.png"
    if trains:
        count = max(cfg.SOLVER.IMS_PER_BATCH // args.num_gpus, 1)
        title, file = "First batch", "first_batch.png"
    if records:
        images = dataset_preview.first_images(cfg, dataset, records, count, trains)
        dataset_preview.draw_images(images, dataset, args.output / file)
        sizes = ", ".join("{} x {}".format(*x["image"].shape[-2:]) for x in images)
        sections.append(f"## {title}\n\n{args.output / file}: {sizes}.")
    else:
        sections.append(f"## {title}\n\nNo picture: {reason}")
    return "\n\n".join(sections)


def main(argv: Sequence[str] | None = None) -> None:
    """Print and write the report; an error of the user ends with one sentence."""
    args = get_parser().parse_args(argv)
    if args.num_gpus is not None and args.num_gpus < 1:
        sys.exit("--num-gpus must be positive.")
    config = Path(os.path.abspath(args.config_file))
    args.output = args.output or Path("output/dry_run", config.parent.name, config.stem)

    from dcp_clip.data.pairing import DatasetError
    from dcp_clip.modeling.clip.loading import CLIPWeightsError
    from dcp_clip.utils.arguments import format_error
    from dcp_clip.utils.atomic_files import atomic_write

    try:
        cfg = load_config(args)
        args.output.mkdir(parents=True, exist_ok=True)
        text = report(cfg, args)
        with atomic_write(args.output / "report.md", "w") as file:
            file.write(text + "\n")
    except (OSError, KeyError, ValueError, CLIPWeightsError, DatasetError) as error:
        sys.exit(f"{args.config_file}: {format_error(error)}")
    print(text)


if __name__ == "__main__":
    main()
