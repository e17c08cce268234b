"""The Markdown tables and the plot of tools/benchmark.py."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from dcp_clip.utils.atomic_files import atomic_write

# End of a key: unit in the table, factor, decimals.
_UNITS = {"_seconds": ("ms", 1e3, 1), "_flops": ("GFLOPs", 1e-9, 1), "_bytes": ("MiB", 2**-20, 1)}


def format_rows(rows: Sequence[dict]) -> str:
    """A Markdown table of rows of figures, whose keys tell the units; see _UNITS."""
    cells = [[_format(key, value) for key, value in row.items()] for row in rows]
    headers = [header for header, _ in cells[0]]
    align = ["left" if isinstance(x, str) else "right" for x in rows[0].values()]
    body = [[text for _, text in row] for row in cells]
    return tabulate(body, headers, tablefmt="pipe", colalign=align, disable_numparse=True)


def _format(key: str, value: int | float | str) -> tuple[str, str]:
    """Header and cell of a figure."""
    for end, (unit, factor, decimals) in _UNITS.items():
        if key.endswith(end):
            header = f"{key.removesuffix(end).replace('_', ' ')} {unit}"
            return header, f"{factor * value:,.{decimals}f}"
    text = f"{value:.3f}" if isinstance(value, float) else value
    return key.replace("_", " "), f"{text:,}" if isinstance(text, int) else text


def save_plot(path: str | Path, results: Sequence[dict]) -> None:
    """Draw time relative to the encoder against the vocabulary size, as PNG.

    For each config a line shows the encoder plus the added time, which are measured separately, and
    dots show the whole forward pass.

    Args:
        path: file to write.
        results: dicts with "clip", the name of the CLIP, and "rows" of ``measure_inference``.
    """
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for result in results:
        rows = result["rows"]
        sizes = [row["categories"] for row in rows]
        line = [1 + row["added_seconds"] / row["encoder_seconds"] for row in rows]
        (drawn,) = axes.plot(sizes, line, label=result["clip"])
        axes.plot(sizes, [row["relative_time"] for row in rows], "o", color=drawn.get_color())
    axes.axhline(1, color="grey", linestyle="--", linewidth=1, label="image encoder alone")
    axes.set(xscale="log", ylim=(0, 1.2 * axes.dataLim.y1), xlabel="categories in the vocabulary")
    axes.set(ylabel="relative time")
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
