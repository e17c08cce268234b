"""The Markdown tables and the plot of tools/benchmark.py."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from dcp_clip.utils.image_io import atomic_write

MIB = 2**20


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns of numbers are aligned to the right."""
    cells = [[f"{x:,}" if isinstance(x, int) else str(x) for x in row] for row in rows]
    align = ["right" if re.fullmatch(r"-?[\d.,]+(e-?\d+)?%?", x) else "left" for x in cells[0]]
    return tabulate(cells, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


# Each table: header to the cell of a row of figures.
_INFERENCE = {
    "categories": lambda r: r["vocabulary"],
    "proposals": lambda r: r["proposals"],
    "GFLOPs encoder": lambda r: f"{r['encoder_flops'] / 1e9:.1f}",
    "GFLOPs rest": lambda r: f"{r['rest_flops'] / 1e9:.1f}",
    "ms encoder": lambda r: f"{1e3 * r['encoder_seconds']:.1f}",
    "ms rest": lambda r: f"{1e3 * r['rest_seconds']:.1f}",
    "ms whole": lambda r: f"{1e3 * r['whole_seconds']:.1f}",
    "relative time": lambda r: f"{r['relative_time']:.2f}",
    "peak MiB encoder": lambda r: f"{r['encoder_peak_bytes'] / MIB:.0f}",
    "peak MiB whole": lambda r: f"{r['whole_peak_bytes'] / MIB:.0f}",
    "MiB added": lambda r: f"{(r['whole_peak_bytes'] - r['encoder_peak_bytes']) / MIB:.0f}",
    "text, once (s)": lambda r: f"{'about ' * r['text_is_estimated']}{r['text_seconds']:.3g}",
}
_TRAINING = {
    "batch": lambda r: r["batch"],
    "categories": lambda r: r["vocabulary"],
    "proposals": lambda r: r["proposals"],
    "GFLOPs encoder": lambda r: f"{r['encoder_flops'] / 1e9:.1f}",
    "GFLOPs step": lambda r: f"{r['step_flops'] / 1e9:.1f}",
    "ms encoder": lambda r: f"{1e3 * r['encoder_seconds']:.1f}",
    "ms step": lambda r: f"{1e3 * r['step_seconds']:.1f}",
    "relative time": lambda r: f"{r['relative_time']:.2f}",
    "peak MiB encoder": lambda r: f"{r['encoder_peak_bytes'] / MIB:.0f}",
    "peak MiB step": lambda r: f"{r['step_peak_bytes'] / MIB:.0f}",
}
_TEXT = {
    "categories": lambda r: r["vocabulary"],
    "templates": lambda r: r["templates"],
    "s, encoded": lambda r: f"{r['first_seconds']:.2f}",
    "categories / s": lambda r: f"{r['vocabulary'] / r['first_seconds']:.1f}",
    "s, from disk": lambda r: f"{r['cached_seconds']:.3f}",
    "peak MiB": lambda r: f"{r['peak_bytes'] / MIB:.0f}",
}
_PRECISION = {
    "images": lambda r: r["images"],
    "categories": lambda r: r["vocabulary"],
    "ms, fp32": lambda r: f"{1e3 * r['fp32_seconds']:.1f}",
    "ms, bf16": lambda r: f"{1e3 * r['bf16_seconds']:.1f}",
    "fp32 / bf16": lambda r: f"{r['speed_up']:.2f}",
    "equal pixels": lambda r: f"{r['agreement']:.2%}" if "agreement" in r else "not measured",
}
_DEMO = {
    "images": lambda r: r["images"],
    "categories": lambda r: r["vocabulary"],
    "images / s, demo": lambda r: f"{r['images'] / r['demo_seconds']:.2f}",
    "images / s, model alone": lambda r: f"{r['images'] / r['model_seconds']:.2f}",
    "demo / model": lambda r: f"{r['relative_rate']:.2f}",
}
TABLES: dict[str, dict[str, Callable[[dict], object]]] = {
    "inference": _INFERENCE,
    "training": _TRAINING,
    "text": _TEXT,
    "precision": _PRECISION,
    "demo": _DEMO,
}


def format_rows(kind: str, rows: Sequence[dict]) -> str:
    """A table of figures.

    Args:
        kind: a key of TABLES.
        rows: figures as :mod:`dcp_clip.benchmarking.costs` returns them.
    """
    columns = TABLES[kind]
    return markdown_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def format_profile(profile: dict, top: int = 12) -> str:
    """Time and memory of each stage, and of the `top` operators outside the encoder."""
    stages = profile["stages"]
    total = sum(stage["ms"] for stage in stages.values())
    stage_rows = [
        (name, f"{x['ms']:.1f}", f"{x['ms'] / total:.1%}", f"{x['bytes'] / MIB:.1f}")
        for name, x in stages.items()
    ]
    ranked = sorted(profile["operators"].items(), key=lambda item: -item[1]["ms"])[:top]
    operator_rows = [(name, f"{x['ms']:.1f}", f"{x['bytes'] / MIB:.1f}") for name, x in ranked]
    stages = markdown_table(["stage", "ms", "share", "MiB kept"], stage_rows)
    headers = ["operator outside the encoder", "ms", "MiB allocated"]
    return f"{stages}\n\n{markdown_table(headers, operator_rows)}"


def save_plot(path: str | Path, results: Sequence[dict]) -> None:
    """Draw time relative to the encoder against the vocabulary size, as PNG.

    For each config a line shows encoder plus rest, which are measured separately, and dots show the
    whole forward pass.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for result in results:
        rows = result["rows"]
        sizes = [row["vocabulary"] for row in rows]
        added = [1 + row["rest_seconds"] / row["encoder_seconds"] for row in rows]
        (line,) = axes.plot(sizes, added, label=result["clip"])
        axes.plot(sizes, [row["relative_time"] for row in rows], "o", color=line.get_color())
    axes.axhline(1, color="grey", linestyle="--", linewidth=1, label="image encoder alone")
    axes.set(xscale="log", ylim=(0, 1.2 * axes.dataLim.y1), xlabel="categories in the vocabulary")
    axes.set(ylabel="relative time")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
