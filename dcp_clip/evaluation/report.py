"""Report of an evaluation: the results of all data sets in one table, and the environment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from dcp_clip.evaluation.confusion import CONVENTIONS
from dcp_clip.utils.atomic_files import atomic_write

__all__ = ["EvaluationReport"]

# Heading, task and metric in the results of the evaluators, and format.
_COLUMNS = (
    ("mIoU", "sem_seg", "mIoU", ".2f"),
    ("mIoU things", "sem_seg", "mIoU_things", ".2f"),
    ("mIoU stuff", "sem_seg", "mIoU_stuff", ".2f"),
    ("mIoU base", "sem_seg", "mIoU_base", ".2f"),
    ("mIoU unseen", "sem_seg", "mIoU_unseen", ".2f"),
    ("fwIoU", "sem_seg", "fwIoU", ".2f"),
    ("pixel accuracy", "sem_seg", "pACC", ".2f"),
    ("recall at K", "proposals", "recall", ".2f"),
    ("recall things", "proposals", "recall_things", ".2f"),
    ("K", "proposals", "per_image", ".4g"),
    ("images", "speed", "images", ",d"),
    ("images/s", "speed", "images_per_second", ".3g"),
    ("images/s, model only", "speed", "model_images_per_second", ".3g"),
)
_LEGEND = """\
All scores are percentages. mIoU is the mean over the classes present in the ground truth. Recall at
K is the fraction of the classes in an image that are among its K proposals, without those that do
not reach stage 4 (K: mean over the images). images/s is the throughput of the whole evaluation in
wall-clock time, with all processes; "model only" is that of the model in one process.
"""
# If the metadata of a data set has `is_thing` or `is_base`.
_GROUPS_LEGEND = """\
The mIoU and recall of things, of stuff, and of base and unseen classes are over the classes of that
group only. The model still chooses among all classes.
"""
_GROUPS = ("_things", "_stuff", "_base", "_unseen")
_CONVENTIONS_NOTE = """\
**{name}: {present}/{all} classes present.** Published mIoU figures divide the sum of IoU by
different numbers of classes:
"""
# Where each convention is used.
_SOURCES = {
    "present": "the table above; Detectron2 since July 2022",
    "present_or_predicted": "the release v0.6 of Detectron2",
    "all": "the sum divided by the number of all classes",
}


class EvaluationReport:
    """Collects the results of several data sets. It can be written after each of them."""

    def __init__(self, datasets: Sequence[str], environment: Mapping[str, str]):
        """
        Args:
            datasets: names of all data sets to evaluate.
            environment: text by name; see :func:`evaluation_environment`.
        """
        self._datasets = list(datasets)
        self._environment = dict(environment)
        self._results: dict[str, Mapping[str, Mapping[str, float]]] = {}

    def add(self, dataset: str, results: Mapping[str, Mapping[str, float]]) -> None:
        """Add the results of one data set.

        Args:
            dataset: its name.
            results: metrics and values by task, as Detectron2's evaluators return them.
        """
        self._results[dataset] = results

    def to_markdown(self) -> str:
        """Return the table, the missing data sets, mIoU by convention, and the environment."""
        columns = [c for c in _COLUMNS if any(_find(r, c) is not None for r in self._list())]
        rows = [
            [name, _classes(results), *(_cell(results, column) for column in columns)]
            for name, results in self._results.items()
        ]
        headings = ["data set", "classes present", *(column[0] for column in columns)]
        parts = [_table(rows, headings), "\n" + _LEGEND]
        if any(column[2].endswith(_GROUPS) for column in columns):
            parts[1] += _GROUPS_LEGEND
        missing = [name for name in self._datasets if name not in self._results]
        if missing:
            parts.append(f"**Not evaluated (yet): {', '.join(missing)}.**\n")
        parts += [_conventions(name, results) for name, results in self._results.items()]
        parts.append(_table(list(self._environment.items()), ["environment", ""]))
        return "\n".join(part for part in parts if part) + "\n"

    def to_json(self) -> str:
        """Return the report as JSON, with null for NaN.

        The format is ``{"datasets": names, "results": {name: {task: {metric: value}}},
        "environment": {name: text}}``.
        """
        content = {
            "datasets": self._datasets,
            "results": self._results,
            "environment": self._environment,
        }
        return json.dumps(_plain(content), indent=1, allow_nan=False) + "\n"

    def write(self, folder: str | Path) -> None:
        """Write results.md and results.json into `folder`, which is created if necessary."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (("results.md", self.to_markdown()), ("results.json", self.to_json())):
            with atomic_write(folder / name, "w") as file:
                file.write(text)

    def _list(self) -> list[Mapping]:
        return list(self._results.values())


def _find(results: Mapping, column: tuple[str, str, str, str]) -> float | None:
    return results.get(column[1], {}).get(column[2])


def _cell(results: Mapping, column: tuple[str, str, str, str]) -> str:
    value = _find(results, column)
    return "–" if value is None or math.isnan(value) else format(value, column[3])


def _classes(results: Mapping) -> str:
    counts = results.get("classes")
    return f"{counts['present']}/{counts['all']}" if counts else "–"


def _conventions(name: str, results: Mapping) -> str:
    """Return mIoU by every convention; "" if all classes are present, where they agree."""
    counts = results.get("classes")
    if not counts or counts["present"] == counts["all"]:
        return ""
    values = {
        "present": results["sem_seg"]["mIoU"],
        "present_or_predicted": counts["mIoU_present_or_predicted"],
        "all": counts["mIoU_all"],
    }
    rows = [
        [f"IoU sum over the {counts[key]} {CONVENTIONS[key]}", _SOURCES[key], f"{value:.2f}"]
        for key, value in values.items()
    ]
    note = _CONVENTIONS_NOTE.format(name=name, **counts)
    return f"{note}\n{_table(rows, ['mIoU', 'as in', 'percent'])}\n"


def _table(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    # Without disable_numparse, tabulate would reformat text such as "1e-05".
    escaped = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    return tabulate(escaped, headings, tablefmt="github", disable_numparse=True)


def _plain(value: Any) -> Any:
    """Convert NumPy numbers to Python's, and NaN to None, for JSON."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
