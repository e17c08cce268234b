"""The results of the vocabulary study as a Markdown table and as a plot."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from tabulate import tabulate

from dcp_clip.utils.atomic_files import atomic_write

_COLUMNS = {
    "mIoU": ("mIoU", ".1f"),
    "mIoU_things": ("things", ".1f"),
    "mIoU_stuff": ("stuff", ".1f"),
    "recall": ("recall", ".1f"),
    "recall_things": ("recall things", ".1f"),
    "proposals": ("K", ".3g"),
    "milliseconds": ("ms / image", ".1f"),
}


def format_table(rows: Sequence[dict]) -> str:
    """A Markdown table of the figures of all rows; a dash for what does not exist."""
    cells = [
        [f"{row['names']:,}", row["vocabulary"]]
        + ["–" if row[key] is None else format(row[key], f) for key, (_, f) in _COLUMNS.items()]
        for row in rows
    ]
    headings = ["names", "in the vocabulary", *(heading for heading, _ in _COLUMNS.values())]
    align = ["right", "left", *["right"] * len(_COLUMNS)]
    return tabulate(cells, headings, "pipe", colalign=align, disable_numparse=True)


def save_plot(path: str | Path, rows: Sequence[dict], own: int) -> None:
    """Plot mIoU, recall and time over the size of the vocabulary.

    Args:
        path: PNG file to write.
        rows: figures; special rows are left out.
        own: number of names of the data set, marked by a vertical line.
    """
    rows = [row for row in rows if not row["special"]]
    sizes = [row["names"] for row in rows]
    curves = {"mIoU": "mIoU", "recall": "proposal recall"}
    if rows[0]["mIoU_things"] is not None:
        curves = {"mIoU_things": "mIoU, things", "mIoU_stuff": "mIoU, stuff"}
        curves |= {"recall_things": "proposal recall, things"}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label in curves.items():
        values = [float("nan") if row[key] is None else row[key] for row in rows]
        style = "--" if key.startswith("recall") else "-"
        left.plot(sizes, values, style, marker="o", markersize=4, label=label)
    left.set(ylim=(0, 100), ylabel="percent")
    left.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, fontsize="small", frameon=False
    )
    milliseconds = [row["milliseconds"] for row in rows]
    right.plot(sizes, milliseconds, marker="o", markersize=4, color="black")
    right.set(ylim=(0, 1.3 * max(milliseconds)), ylabel="milliseconds per image")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="names in the vocabulary")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.axvline(own, color="grey", linestyle=":", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    place = {"transform": right.get_xaxis_transform(), "color": "grey", "fontsize": 8}
    right.text(own, 0.02, f" the data set's {own:,}", **place)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
