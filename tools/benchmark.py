"""Measure what segmentation costs beside CLIP's image encoder alone, by size of the vocabulary.

    python tools/benchmark.py
    python tools/benchmark.py --config-file configs/camvid/dcp_clip_tiny.yaml --size 360 480

Prints one Markdown table a config, batch 1, in evaluation:

- K: categories that the proposal stage lets through.
- GFLOPs: convolutions, matrix products and attention; one multiply-add counts as 2 FLOPs.
- ms: median wall-clock time with the text features in the cache. Encoder and whole forward take
  turns, so that a disturbance of the machine hits both. The encoder is CLIPBackbone's forward: what
  encode_image does, with the pyramid and the dense map on the way.
- peak MiB: the most memory that tensors take at one time in a forward, output included, weights and
  text features not. "beyond" is the whole forward's peak less the encoder's own.

Weights are random, whatever the config says, unless --opts MODEL.CLIP.PRETRAINED names some; so is
the image. Neither changes the cost. Nor do the values of text features, which are random unit
vectors unless --no-random-text is given: a large text tower needs minutes for thousands of names on
a CPU. Its time is then measured on a few names and scaled to all.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from benchmark_meters import count_flops, limit_memory, peak_bytes, profile_times, seconds
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import record_function
from tqdm import tqdm

from dcp_clip.check_env import environment_summary
from dcp_clip.config import setup_cfg
from dcp_clip.image_io import atomic_write
from dcp_clip.modeling.clip_loading import CLIPWeightsError
from dcp_clip.modeling.text_encoder import TextFeatures
from dcp_clip.vocabulary import Vocabulary

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = [f"{ROOT}/configs/coco_stuff/dcp_clip_{name}.yaml" for name in ("convnext_b", "vit_b16")]
STAGES = ("backbone", "proposal", "guidance", "coarse_decoder", "fine_decoder", "refinement")
SYLLABLES = [c + v for c, v in product("bdfgklmnprstvz", "aeiou")]
WARM_UPS = 2
SAMPLE_NAMES = 32  # encoded to estimate the text tower's time a name


class RandomText(nn.Module):
    """Stands in for the model's text encoder: random unit vectors, one a category, kept."""

    def __init__(self, embed_dim: int, device: torch.device):
        super().__init__()
        self.embed_dim, self.device = embed_dim, device
        self._cache: dict[Vocabulary, TextFeatures] = {}

    def encode_vocabulary(self, vocabulary: Vocabulary) -> TextFeatures:
        """As `TextEncoder.encode_vocabulary`; the same categories get the same vectors."""
        if vocabulary not in self._cache:
            generator = torch.Generator().manual_seed(0)
            vectors = torch.randn(len(vocabulary), self.embed_dim, generator=generator)
            rows = torch.arange(len(vocabulary))[:, None].to(self.device)
            embeddings = F.normalize(vectors, dim=1).to(self.device)
            self._cache[vocabulary] = TextFeatures(embeddings, rows)
        return self._cache[vocabulary]


class Replay(nn.Module):
    """Stands in for the backbone: answers with features computed before."""

    def __init__(self, backbone: nn.Module, features: dict[str, Tensor]):
        super().__init__()
        self.size_divisibility, self.features = backbone.size_divisibility, features

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.features


class Subject:
    """A model under measurement: its encoder and its whole forward as functions."""

    def __init__(self, cfg: CfgNode, size: Sequence[int], output_size: Sequence[int]):
        self.model = build_model(cfg).eval()
        self.name = cfg.MODEL.CLIP.NAME
        self.weights = cfg.MODEL.CLIP.PRETRAINED or "random weights"
        self.bf16 = cfg.MODEL.DCP_CLIP.BF16
        self.device = self.model.device
        parameters = list(self.model.parameters())
        self.parameters = {
            "total": sum(p.numel() for p in parameters),
            "trained": sum(p.numel() for p in parameters if p.requires_grad),
            "clip_image_tower": sum(p.numel() for p in self.model.backbone.parameters()),
        }
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
        self.input = {"image": image, "height": output_size[0], "width": output_size[1]}
        divisor = self.model.backbone.size_divisibility
        padded = [-(-side // divisor) * divisor for side in size]
        self.pixels = torch.randn(1, 3, *padded, generator=generator).to(self.device)

    def encoder(self) -> dict[str, Tensor]:
        """CLIP's image encoder alone, under the model's own precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.model.backbone(self.pixels)

    def whole(self, vocabulary: Vocabulary) -> Callable[[], list[dict]]:
        """The whole forward for one image and this vocabulary."""
        return partial(self.model, [self.input | {"vocabulary": vocabulary}])

    def time_text(self, vocabularies: Sequence[Vocabulary], random: bool) -> list[float]:
        """Seconds to encode each vocabulary; with `random` estimated, and RandomText installed."""
        encoder, device = self.model.text_encoder, self.device
        encoder.encode_vocabulary(Vocabulary(["a warm-up"]))
        if not random:
            return [seconds(partial(encoder.encode_vocabulary, v), device) for v in vocabularies]
        sample = make_vocabulary(SAMPLE_NAMES)
        each = seconds(partial(encoder.encode_vocabulary, sample), device) / SAMPLE_NAMES
        self.model.text_encoder = RandomText(self.model.backbone.embed_dim, device)
        return [each * len(v) for v in vocabularies]


def make_vocabulary(count: int) -> Vocabulary:
    """`count` distinct pseudo-words; a smaller vocabulary is the beginning of a larger one."""
    names = []
    for number in range(count):
        word = ""
        for _ in range(4):  # 70**4 words
            number, syllable = divmod(number, len(SYLLABLES))
            word = SYLLABLES[syllable] + word
        names.append(word)
    return Vocabulary(names)


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
    encoder_times, whole_times = [], [[] for _ in rows]
    for round_ in tqdm(range(WARM_UPS + repeats), desc=subject.name, unit="round"):
        for whole, times in zip(wholes, whole_times):
            pair = seconds(subject.encoder, subject.device), seconds(whole, subject.device)
            if round_ >= WARM_UPS:
                encoder_times.append(pair[0])
                times.append(pair[1])
    encoder = statistics.median(encoder_times)
    for row, times in zip(rows, whole_times):
        whole = statistics.median(times)
        row |= {"encoder_seconds": encoder, "whole_seconds": whole, "ratio": whole / encoder}
        row |= {"encoder_seconds_all": encoder_times, "whole_seconds_all": times}
    return rows


def format_table(rows: Sequence[dict], text_is_estimated: bool) -> str:
    """The rows as a Markdown table."""
    head = "names|K|GFLOPs encoder|GFLOPs rest|ms encoder|ms whole|ratio"
    head += "|peak MiB encoder|peak MiB whole|peak MiB beyond|text, once (s)"
    lines = [f"| {head.replace('|', ' | ')} |", "|" + " ---: |" * (head.count("|") + 1)]
    mib = 2**20
    for r in rows:
        peaks = r["encoder_peak_bytes"] / mib, r["whole_peak_bytes"] / mib
        cells = [f"{r['vocabulary']:,}", f"{r['proposals']:,}"]
        cells += [f"{r[key] / 1e9:.1f}" for key in ("encoder_flops", "rest_flops")]
        cells += [f"{1e3 * r[key]:.1f}" for key in ("encoder_seconds", "whole_seconds")]
        cells += [f"{r['ratio']:.2f}", *(f"{x:.0f}" for x in (*peaks, peaks[1] - peaks[0]))]
        cells += [f"{'about ' * text_is_estimated}{r['text_seconds']:.3g}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_profile(subject: Subject, vocabulary: Vocabulary, top: int = 12) -> str:
    """Where a forward's time goes: by stage, and the top operators beyond the encoder."""
    model, whole = subject.model, subject.whole(vocabulary)
    stages = {name: getattr(model, name) for name in STAGES}
    for name, stage in stages.items():
        stage.forward = record_function(f"stage: {name}")(stage.forward)
    times = profile_times(record_function("stage: all")(whole), subject.device)
    for stage in stages.values():
        del stage.forward  # the class's own again
    backbone = model.backbone
    model.backbone = Replay(backbone, subject.encoder())
    operators = profile_times(whole, subject.device)
    model.backbone = backbone

    spent = {name: times.get(f"stage: {name}", (0.0, 0.0))[0] for name in (*STAGES, "all")}
    whole_ms = spent.pop("all")
    spent["normalising, similarity, output"] = whole_ms - sum(spent.values())
    lines = ["| stage | ms | share |", "| --- | ---: | ---: |"]
    lines += [f"| {name} | {ms:.1f} | {ms / whole_ms:.1%} |" for name, ms in spent.items()]
    lines += ["", "| operator beyond the encoder | ms |", "| --- | ---: |"]
    ranked = sorted(operators.items(), key=lambda item: -item[1][1])[:top]
    return "\n".join(lines + [f"| {name} | {own:.1f} |" for name, (_, own) in ranked])


def load(args: argparse.Namespace, config_file: str) -> Subject:
    """Build the model; ends the program with one sentence if the config does not allow it."""
    # No data set is needed, and the text tower is to be timed, not a cache on disk.
    opts = ["DATASETS.TRAIN", "()", "MODEL.CLIP.PRETRAINED", ""]
    opts += ["MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", "", "MODEL.DEVICE", args.device]
    opts += ["MODEL.DCP_CLIP.BF16", str(args.dtype == "bf16")]
    try:
        cfg = setup_cfg(config_file, opts + args.opts)
        return Subject(cfg, args.size, args.output_size or args.size)
    except (OSError, KeyError, ValueError, AssertionError, CLIPWeightsError) as error:
        sys.exit(f"{config_file}: {error.args[0] if error.args else error}")


def benchmark(args: argparse.Namespace, config_file: str) -> tuple[str, dict]:
    """Measure one config; returns its section of the report, and all figures."""
    subject = load(args, config_file)
    rows = measure(subject, args.vocabulary_sizes, args.repeats, args.random_text)
    counts = [f"{key.replace('_', ' ')} {n / 1e6:.2f} M" for key, n in subject.parameters.items()]
    text = [
        f"## {config_file}",
        f"{subject.name}, {subject.weights}; height x width {args.size[0]} x {args.size[1]}, "
        f"output {subject.input['height']} x {subject.input['width']}, "
        f"{'bf16 autocast' if subject.bf16 else 'fp32'}, {subject.device}, batch 1, "
        f"median of {args.repeats}; text features: {'random' if args.random_text else 'encoded'}.",
        f"Parameters: {', '.join(counts)}.",
        format_table(rows, args.random_text),
    ]
    if args.profile:
        text.append(format_profile(subject, make_vocabulary(args.vocabulary_sizes[-1])))
    figures = {"config": config_file, "clip": subject.name, "weights": subject.weights}
    return "\n\n".join(text), figures | {"parameters": subject.parameters, "rows": rows}


def positive(text: str) -> int:
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
    add("--output-size", nargs=2, type=positive, metavar=("H", "W"), help="default: the image's")
    add("--vocabulary-sizes", nargs="+", type=positive, default=[20, 150, 847, 3000], metavar="C")
    add("--dtype", choices=("fp32", "bf16"), default="fp32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--repeats", type=positive, default=10, metavar="N", help="timed rounds (default 10)")
    text_help = "random text features instead of running the text tower on all names (default: on)"
    add("--random-text", action=argparse.BooleanOptionalAction, default=True, help=text_help)
    add("--profile", action="store_true", help="also show where the largest vocabulary's time goes")
    add("--json", metavar="FILE", help="also write all figures there")
    add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="of the config")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the report; a wrong argument or too little memory ends with one sentence."""
    args = get_parser().parse_args(argv)
    if args.json and not Path(args.json).parent.is_dir():
        sys.exit(f"--json: the folder {Path(args.json).parent} does not exist.")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("--device cuda: PyTorch sees no GPU; `python -m dcp_clip.check_env` says why.")
    figures = []
    for config_file in args.config_file:
        try:
            with torch.no_grad():
                text, measured = benchmark(args, config_file)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "allocate" not in str(error):
                raise
            sys.exit(
                f"{config_file}: {args.size[0]} x {args.size[1]} pixels and up to "
                f"{max(args.vocabulary_sizes):,} names need more memory than there is; choose less."
            )
        print(text, end="\n\n", flush=True)
        figures.append(measured)
    environment = environment_summary()
    print("Environment: " + "; ".join(f"{name} {value}" for name, value in environment.items()))
    if args.json:
        with atomic_write(args.json, "w") as file:
            content = {"environment": environment, "settings": vars(args), "results": figures}
            json.dump(content, file, indent=1)


if __name__ == "__main__":
    limit_memory()
    main()
