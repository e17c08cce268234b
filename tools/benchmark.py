#!/usr/bin/env python
"""Measure the cost of segmentation relative to CLIP's image encoder alone, by vocabulary size.

    python tools/benchmark.py
    python tools/benchmark.py --config-file configs/camvid/dcp_clip_tiny.yaml --size 360 480
    python tools/benchmark.py --train --size 512 512
    python tools/benchmark.py --text --vocabulary-sizes 20000
    python tools/benchmark.py --bf16 --vocabulary-sizes 150
    python tools/benchmark.py --bf16 photos/ --config-file configs/camvid/dcp_clip_tiny.yaml
    python tools/benchmark.py --backends torch,compile,onnx,openvino --vocabulary-sizes 20
    python tools/benchmark.py --demo photos/ --config-file configs/camvid/dcp_clip_tiny.yaml

Prints a Markdown table for each config: batch 1, evaluation mode, text features in the cache.

- encoder: the forward pass of CLIPBackbone, which is what encode_image computes, with the feature
  pyramid and the dense features, without a proxy (MODEL.CLIP.PROXY) and without test-time
  augmentation (TEST.AUG). whole: the forward pass up to the category of every pixel, with both.
  Both take turns, so that other load on the machine affects both. added: whole without encoder; its
  ms are without the proxy and without test-time augmentation.
- ms: median wall-clock time. relative time: whole (or training step) divided by encoder.
- GFLOPs: convolutions, matrix products and attention; a multiply-add counts as 2 FLOPs.
- peak MiB: the most memory that tensors occupy at one time, with the output but without weights
  and text features.

Weights, images and text features are random, which does not change the cost. --opts
MODEL.CLIP.PRETRAINED <tag> loads CLIP's weights. For photographs the weights of the config are
used, as in the demo.
"""

import argparse
import io
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dcp_clip_cli.arguments import add_import, positive

ROOT = Path(__file__).resolve().parents[1]
# Relative to the working directory, as headings show them.
_FOLDER = os.path.relpath(ROOT / "configs" / "coco_stuff")
CONFIGS = [f"{_FOLDER}/dcp_clip_{name}.yaml" for name in ("convnext_b", "vit_b16")]
SIZES = [20, 150, 847, 3000, 20000]
MODES = ("train", "text", "demo", "bf16", "backends")
BACKENDS = ("torch", "compile", "onnx", "openvino")


def backend_list(text: str) -> list[str]:
    """Names of backends with commas between them, for the ``type`` of an argument."""
    names = text.split(",")
    if unknown := [name for name in names if name not in BACKENDS]:
        raise argparse.ArgumentTypeError(
            f"'{unknown[0]}' is no backend; choose among {','.join(BACKENDS)}"
        )
    return names


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", nargs="+", default=CONFIGS, metavar="YAML")
    add_import(parser)
    add("--size", nargs=2, type=positive, default=[640, 640], metavar=("H", "W"))
    add("--output-size", nargs=2, type=positive, metavar=("H", "W"), help="default: --size")
    add("--vocabulary-sizes", nargs="+", type=positive, default=SIZES, metavar="C")
    add("--device", help="default: cuda if there is a GPU, else cpu")
    add("--repeats", type=positive, default=10, metavar="N", help="timed rounds (default 10)")
    add("--train", action="store_true", help="measure a training step, for the first vocabulary")
    add("--batch", type=positive, default=2, metavar="B", help="images in a training step")
    add("--text", action="store_true", help="measure the encoding of the vocabularies")
    bf16_help = "compare bfloat16 autocast with float32; for a FOLDER of photographs also show "
    bf16_help += "how many pixels get the same category"
    add("--bf16", nargs="?", const="", metavar="FOLDER", help=bf16_help)
    backends_help = f"compare backends on one image and the first vocabulary: {','.join(BACKENDS)}"
    add("--backends", type=backend_list, metavar="A,B", help=backends_help)
    demo_help = "measure the demo on photographs, from file to written results"
    add("--demo", metavar="FOLDER", help=demo_help)
    add("--images", type=positive, default=200, metavar="N", help="photographs (default 200)")
    add("--vocabulary", metavar="NAMES", help="categories for photographs, as in demo.py")
    profile_help = "also show time and memory of each stage and operator, for the largest "
    profile_help += "vocabulary (with --train for the first one), and write them to FILE"
    add("--profile", nargs="?", const="", metavar="FILE", help=profile_help)
    add("--json", metavar="FILE", help="also write all figures to FILE")
    add("--plot", metavar="PNG", help="also draw relative time against vocabulary size")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config keys")
    return parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the arguments; arguments that do not fit together end the program."""
    args = get_parser().parse_args(argv)
    from dcp_clip.utils.arguments import require_folders

    require_folders({"--json": args.json, "--plot": args.plot, "--profile": args.profile})
    modes = [f"--{name}" for name in MODES if getattr(args, name) not in (None, False)]
    if len(modes) > 1:
        sys.exit(f"{' and '.join(modes)} measure different things: choose one.")
    if args.profile is not None and modes not in ([], ["--train"]):
        sys.exit(f"--profile shows a forward pass or a training step: leave out {modes[0]}.")
    if args.output_size and args.backends:
        sys.exit("--backends compares outputs of the size of the image: leave out --output-size.")
    if args.plot and modes:
        sys.exit(f"--plot draws the cost of the forward pass: leave out {modes[0]}.")
    return args


# PyTorch and dcp_clip are imported in the functions below, so that --help answers at once.


def benchmark(args: argparse.Namespace, config_file: str) -> dict:
    """Measure a config with random images; returns the figures."""
    from dcp_clip.benchmarking import benchmarks, profiling
    from dcp_clip.benchmarking.benchmark_model import BenchmarkModel, make_vocabulary
    from dcp_clip.config import setup_cfg

    # No data set is needed, and the text cache on disk would hide the time of the text tower.
    opts = ["DATASETS.TRAIN", "()", "MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", args.device]
    opts += ["MODEL.CLIP.PROXY.PRETRAINED", "", "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", ""]
    cfg = setup_cfg(config_file, opts + args.opts, imports=args.imports)
    subject = BenchmarkModel(cfg, args.size, args.output_size or args.size)
    result = {"config": config_file, "clip": cfg.MODEL.CLIP.NAME}
    result |= {"weights": cfg.MODEL.CLIP.PRETRAINED or "random weights"}
    result |= {"precision": "bf16 autocast" if cfg.MODEL.DCP_CLIP.BF16 else "fp32"}
    sizes, repeats = args.vocabulary_sizes, args.repeats
    if args.text:
        return result | {"rows": [benchmarks.measure_text(subject, size) for size in sizes]}
    if args.backends:
        from dcp_clip.benchmarking.backends import measure_backends

        return result | {"rows": measure_backends(subject, args.backends, sizes[0], repeats)}
    subject.use_random_text()
    if args.train:
        result |= {"rows": [benchmarks.measure_training(subject, args.batch, sizes[0], repeats)]}
    elif args.bf16 is not None:
        result |= {
            "rows": [benchmarks.compare_precisions(subject, size, repeats) for size in sizes]
        }
    else:
        result |= {"rows": [benchmarks.measure_inference(subject, size, repeats) for size in sizes]}
    if args.profile is not None and args.train:
        result |= profiling.profile_training(subject, args.batch, make_vocabulary(sizes[0]))
    elif args.profile is not None:
        result |= profiling.profile_inference(subject, make_vocabulary(max(sizes)))
    return result


def benchmark_photographs(args: argparse.Namespace, config_file: str) -> dict:
    """Measure the demo, or compare both precisions, on photographs; returns the figures."""
    from dcp_clip.benchmarking import benchmarks
    from dcp_clip.folder_run.pipeline import Job, segment_files
    from dcp_clip.predictor import Predictor
    from dcp_clip.utils.images.listing import list_images

    images = list_images([args.demo or args.bf16])[: args.images]
    opts = ["MODEL.DEVICE", args.device, *args.opts]
    predictor = Predictor.from_config_file(
        config_file, None, opts, args.vocabulary, imports=args.imports
    )

    def segment(paths: Sequence[Path]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            jobs = [Job(path, Path(str(i))) for i, path in enumerate(paths)]
            summary = segment_files(predictor, jobs, Path(folder), io.StringIO())
        if summary.failed:
            raise ValueError(summary.failed[0])
        if summary.interrupted:
            raise KeyboardInterrupt

    if args.bf16:
        row = benchmarks.compare_precisions_on_images(predictor, images)
    else:
        row = benchmarks.measure_demo(predictor, segment, images, args.images)
    return {"config": config_file, "clip": predictor.cfg.MODEL.CLIP.NAME, "rows": [row]}


def run(args: argparse.Namespace) -> None:
    """Print the report and write the files; an error of the user ends with one sentence."""
    import torch

    from dcp_clip.benchmarking.report import format_rows, save_plot
    from dcp_clip.data.pairing import DatasetError
    from dcp_clip.engine.checkpoints.loading import WeightsError
    from dcp_clip.evaluation.environment import software_and_hardware
    from dcp_clip.modeling.clip.loading import CLIPWeightsError
    from dcp_clip.utils.arguments import format_error
    from dcp_clip.utils.atomic_files import WriteError, atomic_write

    known = (OSError, KeyError, ValueError, ImportError)
    known += (CLIPWeightsError, DatasetError, WeightsError)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch finds no GPU; `python tools/check_env.py` shows why.")
    measure = benchmark_photographs if args.demo or args.bf16 else benchmark
    results, profiles = [], []
    for config_file in args.config_file:
        try:
            with torch.no_grad():
                result = measure(args, config_file)
        except known as e:
            sys.exit(f"{config_file}: {format_error(e)}")
        results.append(result)
        about = [result[key] for key in ("clip", "weights", "precision") if key in result]
        if measure is benchmark:
            about.append(f"{args.size[0]} x {args.size[1]} pixels, median of {args.repeats}")
        tables = [f"## {config_file}", f"{', '.join([*about, args.device])}."]
        print("\n\n".join([*tables, format_rows(result["rows"])]), end="\n\n", flush=True)
        if "stages" in result:
            tables = [format_rows(result[part]) for part in ("stages", "operators")]
            print("\n\n".join(tables), end="\n\n", flush=True)
            profiles.append("\n\n".join([f"## {config_file}", *tables]) + "\n")
    environment = software_and_hardware()
    print("Environment: " + "; ".join(f"{name} {value}" for name, value in environment.items()))
    try:
        if args.plot:
            save_plot(args.plot, results)
        if args.profile:
            with atomic_write(args.profile, "w") as file:
                file.write("\n".join(profiles))
        if args.json:
            with atomic_write(args.json, "w") as file:
                content = {"environment": environment, "settings": vars(args), "results": results}
                json.dump(content, file, indent=1)
    except WriteError as error:
        sys.exit(f"error: {error}")


def main(argv: Sequence[str] | None = None) -> None:
    run(parse_args(argv))


if __name__ == "__main__":
    main()
