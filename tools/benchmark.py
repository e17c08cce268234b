"""Measure what segmentation costs beside CLIP's image encoder alone, by size of the vocabulary.

    python tools/benchmark.py
    python tools/benchmark.py --config-file configs/camvid/dcp_clip_tiny.yaml --size 360 480
    python tools/benchmark.py --train --size 512 512
    python tools/benchmark.py --text --vocabulary-sizes 20000 --opts \\
        MODEL.DCP_CLIP.VOCABULARY.TEMPLATES single

Prints one Markdown table a config, batch 1, in evaluation:

- K: categories that the proposal stage lets through.
- GFLOPs: convolutions, matrix products and attention; one multiply-add counts as 2 FLOPs.
- ms: median wall-clock time with the text features in the cache. Encoder and whole forward take
  turns, so that a disturbance of the machine hits both. The encoder is CLIPBackbone's forward: what
  encode_image does, with the pyramid and the dense map on the way. The whole ends with the category
  of every pixel. The rest is the whole with the encoder's answer given: on a noisy machine it tells
  more about what comes on top than the difference of two long times.
- peak MiB: the most memory that tensors take at one time in a forward, output included, weights and
  text features not. "beyond" is the whole forward's peak less the encoder's own.

With --train: a training step (forward, backward, optimiser), beside the encoder's forward on the
same images. With --text: the encoding of the vocabulary, and a second start from the disk cache.
With --demo: the demo on a folder of photographs, from file to written pictures, beside the model
alone on decoded ones, with the weights that demo.py would take:

    python tools/benchmark.py --demo photos/ --config-file configs/camvid/dcp_clip_tiny.yaml

With --bf16: the whole forward under bfloat16 autocast beside float32, in turns. With a folder of
photographs also how many of their pixels get the same name, with the weights that demo.py would
take:

    python tools/benchmark.py --bf16 --vocabulary-sizes 150
    python tools/benchmark.py --bf16 photos/ --config-file configs/camvid/dcp_clip_tiny.yaml

Otherwise weights are random, whatever the config says, unless --opts MODEL.CLIP.PRETRAINED names
some; so is the image. Neither changes the cost. Nor do the values of text features, which are
random unit vectors unless --no-random-text is given: a large text tower needs minutes for thousands
of names on a CPU. Its time is then measured on a few names and scaled to all.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from dcp_clip.benchmarking.demo import load_predictor, measure_demo
from dcp_clip.benchmarking.meters import count_flops, limit_memory, peak_bytes
from dcp_clip.benchmarking.precision import compare_on_images, compare_on_noise
from dcp_clip.benchmarking.profile import profile_forward, profile_training
from dcp_clip.benchmarking.report import (
    format_demo_table,
    format_precision_table,
    format_profile,
    format_table,
    format_text_table,
    format_train_table,
    save_plot,
)
from dcp_clip.benchmarking.subject import Subject, alternate, make_vocabulary, time_text_cache
from dcp_clip.config import setup_cfg
from dcp_clip.engine.checkpoint import WeightsError
from dcp_clip.modeling.clip.loading import CLIPWeightsError
from dcp_clip.utils.arguments import format_error, positive, require_folders
from dcp_clip.utils.check_env import environment_summary
from dcp_clip.utils.image_io import atomic_write

ROOT = Path(__file__).resolve().parents[1]
# Relative, as headings and JSON name them.
_FOLDER = os.path.relpath(ROOT / "configs" / "coco_stuff")
CONFIGS = [f"{_FOLDER}/dcp_clip_{name}.yaml" for name in ("convnext_b", "vit_b16")]
SIZES = [20, 150, 847, 3000, 20000]
MODES = ("train", "text", "demo", "bf16")


def measure(subject: Subject, sizes: Sequence[int], repeats: int, random_text: bool) -> list[dict]:
    """One row of figures a vocabulary size; times in seconds, memory in bytes."""
    vocabularies = [make_vocabulary(size) for size in sizes]
    text_seconds = subject.time_text(vocabularies, random_text)
    wholes = [subject.whole(vocabulary) for vocabulary in vocabularies]
    encoder_flops = count_flops(subject.encoder)
    encoder_peak = peak_bytes(subject.encoder, subject.device)
    rows = []
    for size, whole, text in zip(sizes, wholes, text_seconds):
        row = {"vocabulary": size, "proposals": len(whole()[0]["sem_seg"]), "text_seconds": text}
        row |= {"encoder_flops": encoder_flops, "rest_flops": count_flops(whole) - encoder_flops}
        row |= {"encoder_peak_bytes": encoder_peak}
        rows.append(row | {"whole_peak_bytes": peak_bytes(whole, subject.device)})
    # All sizes within each round, so that rows compare as well as columns.
    turns = [function for whole in wholes for function in (subject.encoder, whole)]
    times = alternate(subject, turns, repeats)
    encoder_times = [t for part in times[::2] for t in part]
    encoder = statistics.median(encoder_times)
    with subject.replaying():
        rest_times = alternate(subject, wholes, repeats)
    for row, whole_times, rest in zip(rows, times[1::2], rest_times):
        whole = statistics.median(whole_times)
        row |= {"encoder_seconds": encoder, "whole_seconds": whole, "ratio": whole / encoder}
        row |= {"rest_seconds": statistics.median(rest), "rest_seconds_all": rest}
        row |= {"encoder_seconds_all": encoder_times, "whole_seconds_all": whole_times}
    return rows


def measure_training(subject: Subject, batch: int, names: int, repeats: int) -> dict:
    """Figures of a training step; times in seconds, memory in bytes."""
    vocabulary = make_vocabulary(names)
    subject.time_text([vocabulary], random=True)
    encoder, step = subject.encoder_of(batch), subject.train_step(batch, vocabulary)
    output, _ = subject.whole(vocabulary)()
    row = {"batch": batch, "vocabulary": names, "proposals": len(output["sem_seg"])}
    row |= {"encoder_flops": count_flops(encoder), "step_flops": count_flops(step)}
    row |= {"encoder_peak_bytes": peak_bytes(encoder, subject.device)}
    row |= {"step_peak_bytes": peak_bytes(step, subject.device)}
    times = alternate(subject, [encoder, step], repeats)
    row |= {"encoder_seconds_all": times[0], "step_seconds_all": times[1]}
    row |= {"encoder_seconds": statistics.median(times[0])}
    row |= {"step_seconds": statistics.median(times[1])}
    beyond = row["step_seconds"] - row["encoder_seconds"]
    return row | {"beyond_ratio": beyond / row["encoder_seconds"]}


def measure_text(subject: Subject, names: int) -> dict:
    """Figures of encoding a vocabulary; times in seconds, memory in bytes."""
    vocabulary = make_vocabulary(names)
    first, cached = time_text_cache(subject, vocabulary)
    encoder = subject.model.text_encoder
    # The memory of a chunk is that of all: what is more is the features themselves.
    few = make_vocabulary(min(names, 4 * encoder.chunk_size))
    peak = peak_bytes(partial(encoder.encode_vocabulary, few), subject.device)
    peak += 4 * subject.model.backbone.embed_dim * (names - len(few))
    row = {"vocabulary": names, "templates": len(encoder.templates)}
    return row | {"first_seconds": first, "cached_seconds": cached, "peak_bytes": peak}


def load(args: argparse.Namespace, config_file: str) -> Subject:
    """Build the model; ends the program with one sentence if the config does not allow it."""
    # No data set is needed, and the text tower is to be timed, not a cache on disk.
    opts = ["DATASETS.TRAIN", "()", "MODEL.CLIP.PRETRAINED", ""]
    opts += ["MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", "", "MODEL.DEVICE", args.device]
    opts += ["MODEL.DCP_CLIP.BF16", str(args.dtype == "bf16")]
    with _ending_in_a_sentence(config_file):
        cfg = setup_cfg(config_file, opts + args.opts)
        return Subject(cfg, args.size, args.output_size or args.size)


@contextmanager
def _ending_in_a_sentence(config_file: str) -> Iterator[None]:
    """Within this context a config that cannot be measured ends the program, saying why."""
    try:
        yield
    except (OSError, KeyError, ValueError, AssertionError, CLIPWeightsError, WeightsError) as error:
        sys.exit(f"{config_file}: {format_error(error)}")


def benchmark(args: argparse.Namespace, config_file: str) -> tuple[str, dict]:
    """Measure one config; returns its section of the report, and all figures."""
    subject = load(args, config_file)
    figures = {"config": config_file, "clip": subject.name, "weights": subject.weights}
    figures |= {"parameters": subject.parameters}
    heading = f"## {config_file}\n\n{subject.title}"
    if args.train:
        with _ending_in_a_sentence(config_file):  # as when nothing of this config trains
            row = measure_training(subject, args.batch, args.vocabulary_sizes[0], args.repeats)
        text = f"{heading}, median of {args.repeats}.\n\n{format_train_table(row)}"
        figures |= {"training": row}
        if args.profile is not None:
            vocabulary = make_vocabulary(row["vocabulary"])
            figures |= {"profile": profile_training(subject, args.batch, vocabulary)}
        return text, figures
    if args.text:
        rows = [measure_text(subject, size) for size in args.vocabulary_sizes]
        return f"{heading}.\n\n{format_text_table(rows)}", figures | {"text": rows}
    if args.bf16 is not None:
        rows = [compare_on_noise(subject, size, args.repeats) for size in args.vocabulary_sizes]
        text = f"{heading}, median of {args.repeats}.\n\n{format_precision_table(rows)}"
        return text, figures | {"precision": rows}
    rows = measure(subject, args.vocabulary_sizes, args.repeats, args.random_text)
    counts = [f"{key.replace('_', ' ')} {n / 1e6:.2f} M" for key, n in subject.parameters.items()]
    text = [
        f"{heading}, output {subject.input['height']} x {subject.input['width']}, batch 1, "
        f"median of {args.repeats}; text features: {'random' if args.random_text else 'encoded'}.",
        f"Parameters: {', '.join(counts)}.",
        format_table(rows, args.random_text),
    ]
    figures |= {"rows": rows}
    if args.profile is not None:
        vocabulary = make_vocabulary(args.vocabulary_sizes[-1])
        figures |= {"profile": profile_forward(subject, vocabulary)}
    return "\n\n".join(text), figures


def benchmark_photographs(args: argparse.Namespace, config_file: str) -> tuple[str, dict]:
    """Measure the demo or both precisions on a folder of photographs; ends the program with one
    sentence where that cannot be done."""
    with _ending_in_a_sentence(config_file):
        predictor = load_predictor(config_file, args.vocabulary, args.opts, args.device)
        if args.demo:
            row = measure_demo(predictor, [args.demo], args.images)
            text = f"## {config_file}, the demo\n\n{format_demo_table(row)}"
            return text, {"config": config_file, "demo": row}
        row = compare_on_images(predictor, args.bf16, args.images)
    text = f"## {config_file}, both precisions\n\n{format_precision_table([row])}"
    return text, {"config": config_file, "precision": [row]}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", nargs="+", default=CONFIGS, metavar="YAML")
    add("--size", nargs=2, type=positive, default=[640, 640], metavar=("H", "W"))
    add("--output-size", nargs=2, type=positive, metavar=("H", "W"), help="default: the image's")
    add("--vocabulary-sizes", nargs="+", type=positive, default=SIZES, metavar="C")
    add("--dtype", choices=("fp32", "bf16"), default="fp32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--repeats", type=positive, default=10, metavar="N", help="timed rounds (default 10)")
    text_help = "random text features instead of running the text tower on all names (default: on)"
    add("--random-text", action=argparse.BooleanOptionalAction, default=True, help=text_help)
    profile_help = "also show where time and memory go, with the largest vocabulary or, of a "
    profile_help += "training step, the first; in FILE as well"
    add("--profile", nargs="?", const="", metavar="FILE", help=profile_help)
    add("--train", action="store_true", help="measure a training step, with the first vocabulary")
    add("--batch", type=positive, default=2, metavar="B", help="images of a training step")
    add("--text", action="store_true", help="measure the encoding of the vocabularies")
    add("--demo", metavar="FOLDER", help="measure the demo on these photographs")
    bf16_help = "compare bfloat16 autocast with float32; on these photographs if a folder is given"
    add("--bf16", nargs="?", const="", metavar="FOLDER", help=bf16_help)
    add("--images", type=positive, default=200, metavar="N", help="of a folder (default 200)")
    add("--vocabulary", metavar="NAMES", help="for a folder, as demo.py takes it")
    add("--json", metavar="FILE", help="also write all figures there")
    add("--plot", metavar="PNG", help="also draw time against the size of the vocabulary")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="of the config")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report; a wrong argument or too little memory ends with one sentence."""
    args = get_parser().parse_args(argv)
    require_folders({"--json": args.json, "--plot": args.plot, "--profile": args.profile})
    modes = [f"--{name}" for name in MODES if getattr(args, name) not in (None, False)]
    if len(modes) > 1:
        sys.exit(f"{' and '.join(modes)} measure different things: choose one.")
    if args.profile is not None and modes not in ([], ["--train"]):
        sys.exit(f"--profile shows a forward or a training step: leave out {modes[0]}.")
    if args.plot and modes:
        sys.exit(f"--plot draws the forward's cost: leave out {modes[0]}.")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit(
            "--device cuda: PyTorch sees no GPU; `python -m dcp_clip.utils.check_env` says why."
        )
    figures, profiles = [], []
    for config_file in args.config_file:
        try:
            with torch.no_grad():
                on_photographs = args.demo or args.bf16
                measure_config = benchmark_photographs if on_photographs else benchmark
                text, measured = measure_config(args, config_file)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate" not in str(error):
                raise
            sys.exit(
                f"{config_file}: {args.size[0]} x {args.size[1]} pixels and up to "
                f"{max(args.vocabulary_sizes):,} names need more memory than there is; choose less."
            )
        print(text, end="\n\n", flush=True)
        if "profile" in measured:
            profile = format_profile(measured["profile"])
            print(profile, end="\n\n", flush=True)
            profiles.append(f"## {config_file}\n\n{profile}\n")
        figures.append(measured)
    environment = environment_summary()
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


if __name__ == "__main__":
    limit_memory()
    main()
