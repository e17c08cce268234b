#!/usr/bin/env python
"""Measure the cost of segmentation relative to CLIP's image encoder alone, by vocabulary size.

    python tools/benchmark.py
    python tools/benchmark.py --config-file configs/camvid/dcp_clip_tiny.yaml --size 360 480
    python tools/benchmark.py --train --size 512 512
    python tools/benchmark.py --text --vocabulary-sizes 20000
    python tools/benchmark.py --bf16 --vocabulary-sizes 150
    python tools/benchmark.py --bf16 photos/ --config-file configs/camvid/dcp_clip_tiny.yaml
    python tools/benchmark.py --demo photos/ --config-file configs/camvid/dcp_clip_tiny.yaml

Prints a Markdown table for each config: batch 1, evaluation mode, text features in the cache.

- GFLOPs: convolutions, matrix products and attention; a multiply-add counts as 2 FLOPs.
- ms: median wall-clock time. The encoder is the forward pass of CLIPBackbone: what encode_image
  computes, with the feature pyramid and the dense features. The whole forward pass ends with the
  category of every pixel. Both take turns, so that a disturbance of the machine affects both.
  "rest" is the whole forward pass with the features of the encoder given.
- relative time: whole forward pass (or training step) divided by the encoder's forward pass.
- peak MiB: the most memory that tensors occupy at one time, with the output but without weights
  and text features.

--train measures a training step (forward pass, backward pass, optimizer). --text measures the
encoding of the vocabulary, and reading it from the disk cache. --bf16 compares bfloat16 autocast
with float32; for a folder of photographs also how many pixels get the same category. --demo
measures demo/demo.py on a folder of photographs, from file to written results.

Weights and images are random, which does not change the cost; --opts MODEL.CLIP.PRETRAINED <tag>
loads CLIP's weights. On photographs the weights of the config are used, as in the demo. Text
features are random too, because large text towers need minutes for thousands of names on a CPU;
the time of the text tower is then estimated from a few names. --no-random-text encodes all names.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Relative to the working directory, as headings show them.
_FOLDER = os.path.relpath(ROOT / "configs" / "coco_stuff")
CONFIGS = [f"{_FOLDER}/dcp_clip_{name}.yaml" for name in ("convnext_b", "vit_b16")]
SIZES = [20, 150, 847, 3000, 20000]
MODES = ("train", "text", "demo", "bf16")


def positive(text: str) -> int:
    """An integer above 0, for the ``type`` of an argument."""
    if (number := int(text)) < 1:
        raise ValueError
    return number


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", nargs="+", default=CONFIGS, metavar="YAML")
    add("--size", nargs=2, type=positive, default=[640, 640], metavar=("H", "W"))
    add("--output-size", nargs=2, type=positive, metavar=("H", "W"), help="default: --size")
    add("--vocabulary-sizes", nargs="+", type=positive, default=SIZES, metavar="C")
    add("--dtype", choices=("fp32", "bf16"), default="fp32")
    add("--device", help="default: cuda if there is a GPU, else cpu")
    add("--repeats", type=positive, default=10, metavar="N", help="timed rounds (default 10)")
    text_help = "random text features instead of encoding all names (default: on)"
    add("--random-text", action=argparse.BooleanOptionalAction, default=True, help=text_help)
    profile_help = "also show time and memory of each stage and operator, for the largest "
    profile_help += "vocabulary (with --train for the first one), and write them to FILE"
    add("--profile", nargs="?", const="", metavar="FILE", help=profile_help)
    add("--train", action="store_true", help="measure a training step, for the first vocabulary")
    add("--batch", type=positive, default=2, metavar="B", help="images in a training step")
    add("--text", action="store_true", help="measure the encoding of the vocabularies")
    add("--demo", metavar="FOLDER", help="measure the demo on these photographs")
    bf16_help = "compare bfloat16 autocast with float32, on the photographs in FOLDER if given"
    add("--bf16", nargs="?", const="", metavar="FOLDER", help=bf16_help)
    add("--images", type=positive, default=200, metavar="N", help="photographs (default 200)")
    add("--vocabulary", metavar="NAMES", help="categories for photographs, as in demo.py")
    add("--json", metavar="FILE", help="also write all figures to FILE")
    add("--plot", metavar="PNG", help="also draw relative time against vocabulary size")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys")
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; arguments that do not fit together end the program."""
    args = get_parser().parse_args(argv)
    args.output_size = args.output_size or args.size
    for option in ("json", "plot", "profile"):
        path = getattr(args, option)
        if path and not Path(path).parent.is_dir():
            sys.exit(f"--{option}: the folder {Path(path).parent} does not exist.")
    modes = [f"--{name}" for name in MODES if getattr(args, name) not in (None, False)]
    if len(modes) > 1:
        sys.exit(f"{' and '.join(modes)} measure different things: choose one.")
    if args.profile is not None and modes not in ([], ["--train"]):
        sys.exit(f"--profile shows a forward pass or a training step: leave out {modes[0]}.")
    if args.plot and modes:
        sys.exit(f"--plot draws the cost of the forward pass: leave out {modes[0]}.")
    return args


# PyTorch and dcp_clip are imported in the functions below, so that --help answers at once.


def benchmark(args: argparse.Namespace, config_file: str) -> tuple[str, dict]:
    """Measure a config with random images; returns its section of the report and the figures."""
    from dcp_clip.benchmarking import costs
    from dcp_clip.benchmarking.benchmark_model import BenchmarkModel, make_vocabulary
    from dcp_clip.benchmarking.profiling import profile_inference, profile_training
    from dcp_clip.benchmarking.report import format_profile, format_rows
    from dcp_clip.config import setup_cfg

    # No data set is needed, and the text cache on disk would hide the time of the text tower.
    opts = ["DATASETS.TRAIN", "()", "MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", args.device]
    opts += [
        "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR",
        "",
        "MODEL.DCP_CLIP.BF16",
        str(args.dtype == "bf16"),
    ]
    subject = BenchmarkModel(setup_cfg(config_file, opts + args.opts), args.size, args.output_size)
    heading = f"## {config_file}\n\n{subject.title}"
    figures = {"config": config_file, "clip": subject.cfg.MODEL.CLIP.NAME}
    figures |= {"weights": subject.cfg.MODEL.CLIP.PRETRAINED or "random weights"}
    figures |= {"parameters": subject.parameters}
    sizes, repeats = args.vocabulary_sizes, args.repeats
    if args.text:
        rows = [costs.measure_text(subject, size) for size in sizes]
        return f"{heading}.\n\n{format_rows('text', rows)}", figures | {"text": rows}
    heading += f", median of {repeats}"
    if args.bf16 is not None:
        rows = [costs.compare_precisions(subject, size, repeats) for size in sizes]
        return f"{heading}.\n\n{format_rows('precision', rows)}", figures | {"precision": rows}
    if args.train:
        row = costs.measure_training(subject, args.batch, sizes[0], repeats)
        sections = [f"{heading}.", format_rows("training", [row])]
        figures |= {"training": row}
        if args.profile is not None:
            profile = profile_training(subject, args.batch, make_vocabulary(sizes[0]))
    else:
        rows = costs.measure_inference(subject, sizes, repeats, args.random_text)
        counts = [f"{k.replace('_', ' ')} {n / 1e6:.2f} M" for k, n in subject.parameters.items()]
        sections = [
            f"{heading}, output {args.output_size[0]} x {args.output_size[1]}, batch 1; "
            f"text features: {'random' if args.random_text else 'encoded'}.",
            f"Parameters: {', '.join(counts)}.",
            format_rows("inference", rows),
        ]
        figures |= {"rows": rows}
        if args.profile is not None:
            profile = profile_inference(subject, make_vocabulary(sizes[-1]))
    if args.profile is not None:
        sections.append(format_profile(profile))
        figures |= {"profile": profile}
    return "\n\n".join(sections), figures


def benchmark_photographs(args: argparse.Namespace, config_file: str) -> tuple[str, dict]:
    """Measure the demo, or compare both precisions, on a folder of photographs."""
    from dcp_clip.benchmarking import costs
    from dcp_clip.benchmarking.report import format_rows
    from dcp_clip.engine.checkpoint import shipped_weights
    from dcp_clip.predictor import Predictor
    from dcp_clip.utils.image_listing import list_images

    images = list_images([args.demo or args.bf16])[: args.images]
    opts = ["MODEL.DEVICE", args.device, *args.opts]
    weights = shipped_weights(config_file, args.opts)
    predictor = Predictor.from_config_file(config_file, weights, opts, args.vocabulary)
    if args.bf16:
        row = costs.compare_precisions_on_images(predictor, images)
        text = f"## {config_file}, both precisions\n\n{format_rows('precision', [row])}"
        return text, {"config": config_file, "precision": [row]}
    command = [str(ROOT / "demo" / "demo.py"), "--config-file", config_file]
    command += ["--vocabulary", args.vocabulary] if args.vocabulary else []
    row = costs.measure_demo(predictor, images, args.images, [*command, "--opts", *opts])
    text = f"## {config_file}, the demo\n\n{format_rows('demo', [row])}"
    return text, {"config": config_file, "demo": row}


def run(args: argparse.Namespace) -> None:
    """Print the report and write the files; an error of the user ends with one sentence."""
    import torch

    from dcp_clip.benchmarking.measure import limit_memory
    from dcp_clip.benchmarking.report import format_profile, save_plot
    from dcp_clip.evaluation.environment import software_and_hardware
    from dcp_clip.utils.arguments import format_error
    from dcp_clip.utils.image_io import atomic_write

    limit_memory()
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch finds no GPU; `python tools/check_env.py` shows why.")
    figures, profiles = [], []
    for config_file in args.config_file:
        try:
            with torch.no_grad():
                on_photographs = args.demo or args.bf16
                measure = benchmark_photographs if on_photographs else benchmark
                text, measured = measure(args, config_file)
        except (OSError, KeyError, ValueError, AssertionError, RuntimeError, MemoryError) as error:
            if isinstance(error, MemoryError) or "allocate" in str(error):
                sys.exit(
                    f"{config_file}: {args.size[0]} x {args.size[1]} pixels and up to "
                    f"{max(args.vocabulary_sizes):,} categories need more memory than this machine "
                    "has: reduce them."
                )
            sys.exit(f"{config_file}: {format_error(error)}")
        print(text, end="\n\n", flush=True)
        figures.append(measured)
        if "profile" in measured:
            profiles.append(f"## {config_file}\n\n{format_profile(measured['profile'])}\n")
    environment = software_and_hardware()
    print("Environment: " + "; ".join(f"{name} {value}" for name, value in environment.items()))
    if args.plot:
        save_plot(args.plot, figures)
    if args.profile:
        with atomic_write(args.profile, "w") as file:
            file.write("\n".join(profiles))
    if args.json:
        with atomic_write(args.json, "w") as file:
            content = {"environment": environment, "settings": vars(args), "results": figures}
            json.dump(content, file, indent=1)


def main(argv: Sequence[str] | None = None) -> None:
    run(parse_args(argv))


if __name__ == "__main__":
    main()
