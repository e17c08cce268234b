"""How `vocabulary_study.py` shows what it measured: a Markdown table and a plot."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib

from dcp_clip.experiments.study_questions import Row
from dcp_clip.utils.image_io import atomic_write

matplotlib.use("Agg")

# Key of the figures, and heading; of evaluators' results first the task and the metric.
METRICS = {
    "mIoU": ("sem_seg", "mIoU"),
    "mIoU_things": ("sem_seg", "mIoU_things"),
    "mIoU_stuff": ("sem_seg", "mIoU_stuff"),
    "recall": ("proposals", "recall"),
    "recall_things": ("proposals", "recall_things"),
    "proposals": ("proposals", "per_image"),
}
_HEADINGS = "names|in the vocabulary|mIoU|things|stuff|recall|recall things|K|ms / image"


def figures_of(row: Row, results: dict, seconds: float) -> dict:
    """One row of the study as plain figures; None for what the data set does not tell apart."""
    found = {key: results[task].get(metric) for key, (task, metric) in METRICS.items()}
    found = {k: None if v is None or math.isnan(v) else float(v) for k, v in found.items()}
    described = {"names": row.names, "vocabulary": row.title, "special": row.special}
    return described | {"per_image": not row.shared} | found | {"milliseconds": 1e3 * seconds}


def format_table(rows: Sequence[dict]) -> str:
    """The Markdown table: mIoU and recall in percent, K proposals on average, milliseconds."""
    formats = dict.fromkeys(METRICS, ".1f") | {"proposals": ".3g", "milliseconds": ".1f"}
    lines = [_HEADINGS.split("|"), ["---:", "---", *["---:"] * 7]]
    for row in rows:
        cells = ["–" if row[key] is None else format(row[key], f) for key, f in formats.items()]
        lines.append([f"{row['names']:,}", row["vocabulary"], *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def save_plot(path: str | Path, rows: Sequence[dict], own: int) -> None:
    """mIoU, recall and milliseconds against the size of the vocabulary, as PNG.

    Args:
        path: the file to write.
        rows: figures; special questions are no part of the curve.
        own: names of the data set; from there on all images share a vocabulary.
    """
    from matplotlib import pyplot

    rows = [row for row in rows if not row["special"]]
    sizes = [row["names"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    curves = {"mIoU_things": "mIoU, things", "mIoU_stuff": "mIoU, stuff", "mIoU": "mIoU"}
    curves |= {"recall_things": "proposal recall, things", "recall": "proposal recall"}
    if rows[0]["mIoU_things"] is not None:
        curves = {key: label for key, label in curves.items() if key not in ("mIoU", "recall")}
    for key, label in curves.items():
        values = [float("nan") if row[key] is None else row[key] for row in rows]
        if not all(map(math.isnan, values)):
            style = "--" if key.startswith("recall") else "-"
            left.plot(sizes, values, style, marker="o", markersize=4, label=label)
    left.set(ylim=(0, 100), ylabel="percent")
    above = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 3}
    left.legend(**above, frameon=False, fontsize="small", columnspacing=1)
    milliseconds = [row["milliseconds"] for row in rows]
    right.plot(sizes, milliseconds, marker="o", markersize=4, color="black")
    right.set(ylim=(0, 1.3 * max(milliseconds)), ylabel="milliseconds an image")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="names in the vocabulary")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.axvline(own, color="grey", linestyle=":", linewidth=1)
        axes.spines[["top", "right"]].set_visible(False)
    note = f" the data set's {own:,}"
    right.text(own, 0.02, note, transform=right.get_xaxis_transform(), color="grey", fontsize=8)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=150)
    pyplot.close(figure)
