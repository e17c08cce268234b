"""How `benchmark.py` shows what it measured: Markdown tables and a plot."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

from dcp_clip.utils.image_io import atomic_write

matplotlib.use("Agg")

MIB = 2**20


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of numbers, aligned to the right."""
    lines = [header, ["---:"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def format_table(rows: Sequence[dict], text_is_estimated: bool) -> str:
    """Cost by size of the vocabulary."""
    head = "names|K|GFLOPs encoder|GFLOPs rest|ms encoder|ms rest|ms whole|ratio"
    head += "|peak MiB encoder|peak MiB whole|peak MiB beyond|text, once (s)"
    body = []
    for r in rows:
        peaks = r["encoder_peak_bytes"] / MIB, r["whole_peak_bytes"] / MIB
        cells = [f"{r['vocabulary']:,}", f"{r['proposals']:,}"]
        cells += [f"{r[key] / 1e9:.1f}" for key in ("encoder_flops", "rest_flops")]
        cells += [
            f"{1e3 * r[key]:.1f}" for key in ("encoder_seconds", "rest_seconds", "whole_seconds")
        ]
        cells += [f"{r['ratio']:.2f}", *(f"{x:.0f}" for x in (*peaks, peaks[1] - peaks[0]))]
        body.append([*cells, f"{'about ' * text_is_estimated}{r['text_seconds']:.3g}"])
    return markdown(head.split("|"), body)


def format_train_table(row: dict) -> str:
    """Cost of a training step beside the encoder's forward on the same images."""
    head = "batch|names|K|GFLOPs encoder|GFLOPs step|ms encoder|ms step|beyond / encoder"
    head += "|peak MiB encoder|peak MiB step"
    cells = [f"{row[key]:,}" for key in ("batch", "vocabulary", "proposals")]
    cells += [f"{row[key] / 1e9:.1f}" for key in ("encoder_flops", "step_flops")]
    cells += [f"{1e3 * row[key]:.1f}" for key in ("encoder_seconds", "step_seconds")]
    cells += [f"{row['beyond_ratio']:.2f}"]
    cells += [f"{row[key] / MIB:.0f}" for key in ("encoder_peak_bytes", "step_peak_bytes")]
    return markdown(head.split("|"), [cells])


def format_text_table(rows: Sequence[dict]) -> str:
    """Cost of encoding vocabularies."""
    head = "names|templates|s, encoded|names / s|s, second start|peak MiB"
    body = [
        [
            f"{r['vocabulary']:,}",
            f"{r['templates']:,}",
            f"{r['first_seconds']:.2f}",
            f"{r['vocabulary'] / r['first_seconds']:.1f}",
            f"{r['cached_seconds']:.3f}",
            f"{r['peak_bytes'] / MIB:.0f}",
        ]
        for r in rows
    ]
    return markdown(head.split("|"), body)


def format_demo_table(row: dict) -> str:
    """The demo's rate beside the model's alone, and where an image's time goes."""
    head = "images|names|images / s, demo|images / s, model alone|demo / model"
    head += "|CPU ms / image, demo|CPU ms / image, model alone"
    cells = [f"{row[key]:,}" for key in ("images", "vocabulary")]
    cells += [f"{row['images'] / row[key]:.2f}" for key in ("demo_seconds", "model_seconds")]
    cells += [f"{row['share']:.2f}"]
    cpu = [row[f"{name}_cpu_seconds"] for name in ("demo", "model")]
    cells += [f"{1e3 * spent / row['images']:.1f}" for spent in cpu]
    steps = [[step, f"{1e3 * spent:.1f}"] for step, spent in row["step_seconds"].items()]
    return "\n\n".join(
        (
            markdown(head.split("|"), [cells]),
            markdown(["step of an image, alone", "ms"], steps),
        )
    )


def format_precision_table(rows: Sequence[dict]) -> str:
    """Time in both precisions, and the pixels on which their answers agree, where measured."""
    head = "images|names|ms, fp32|ms, bf16|fp32 / bf16|pixels with the same name"
    body = []
    for r in rows:
        cells = [f"{r[key]:,}" for key in ("images", "vocabulary")]
        cells += [f"{1e3 * r[key]:.1f}" for key in ("fp32_seconds", "bf16_seconds")]
        agreement = f"{r['agreement']:.2%}" if "agreement" in r else "not measured"
        body.append([*cells, f"{r['speed_up']:.2f}", agreement])
    return markdown(head.split("|"), body)


def format_profile(profile: dict, top: int = 12) -> str:
    """Where time and memory go: by stage, and the top operators beyond the encoder."""
    stages = profile["stages"]
    total = sum(stage["ms"] for stage in stages.values())
    stage_rows = [
        [name, f"{x['ms']:.1f}", f"{x['ms'] / total:.1%}", f"{x['bytes'] / MIB:.1f}"]
        for name, x in stages.items()
    ]
    ranked = sorted(profile["operators"].items(), key=lambda item: -item[1]["ms"])[:top]
    operator_rows = [[name, f"{x['ms']:.1f}", f"{x['bytes'] / MIB:.1f}"] for name, x in ranked]
    tables = (
        markdown(["stage", "ms", "share", "MiB kept"], stage_rows),
        markdown(["operator beyond the encoder", "ms", "MiB allocated"], operator_rows),
    )
    return "\n\n".join(tables)


def save_plot(path: str | Path, results: Sequence[dict]) -> None:
    """Draw cost against the size of the vocabulary, relative to the encoder alone, as PNG.

    A line a config shows encoder and rest, measured apart, and dots the whole.
    """
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")
    for result in results:
        rows = result["rows"]
        sizes = [row["vocabulary"] for row in rows]
        rest = [1 + row["rest_seconds"] / row["encoder_seconds"] for row in rows]
        (line,) = axes.plot(sizes, rest, label=result["clip"])
        axes.plot(sizes, [row["ratio"] for row in rows], "o", color=line.get_color())
    axes.axhline(1, color="grey", linestyle="--", linewidth=1, label="the encoder alone")
    axes.set(xscale="log", ylim=(0, 1.2 * axes.dataLim.y1), xlabel="names in the vocabulary")
    axes.set(ylabel="time, relative to the encoder")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)
