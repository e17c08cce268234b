"""Read the results.json of evaluations, and sort their figures by run, data set, metric and seed.

The run is the folder's name, <run>/results.json; seeds of a run are in <run>/seed<N>/results.json.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MILLISECONDS = "milliseconds"
# The task and metric that milliseconds come from, images a second.
_SPEED = ("speed", "model_images_per_second")
_SEED = re.compile(r"seed(\d+)")
# Run, data set, metric: a value for each seed, None for a run without seeds.
Values = dict[str, dict[str, dict[str, dict[int | None, float]]]]


class SummaryError(RuntimeError):
    """There is nothing to summarise, or a file is no report; the message is one sentence."""


@dataclass(frozen=True)
class Result:
    """One results.json.

    Attributes:
        run: name of the run, the path from the folder that was searched.
        seed: None for a run without seeds.
        path: the file.
        metrics: data set to metric to value; NaN (null in the file) is left out.
    """

    run: str
    seed: int | None
    path: Path
    metrics: dict[str, dict[str, float]]


def find_results(folder: Path, prefix: str = "") -> list[Result]:
    """All results below a folder, by path.

    Args:
        folder: where to search.
        prefix: what the runs' names start with, to tell several folders apart.

    Raises:
        SummaryError: if there is no such folder, no results in it, or a file that is no report.
    """
    if not folder.is_dir():
        raise SummaryError(f"{folder} is no folder; give one that evaluations wrote into.")
    paths = sorted(folder.rglob("results.json"))
    if not paths:
        raise SummaryError(
            f"{folder} holds no results.json; `train_net.py --eval-only` leaves one in OUTPUT_DIR."
        )
    return [_read(path, folder, prefix) for path in paths]


def _read(path: Path, folder: Path, prefix: str) -> Result:
    parts, seed = list(path.parent.relative_to(folder).parts), None
    if parts and (match := _SEED.fullmatch(parts[-1])):
        seed = int(match[1])
        parts.pop()
    # Results that lie in the folder itself are its own.
    run = prefix + ("/".join(parts) or folder.resolve().name)
    return Result(run, seed, path, read_metrics(path))


def read_metrics(path: Path) -> dict[str, dict[str, float]]:
    """Data set to metric to value of one results.json, milliseconds among them.

    Raises:
        SummaryError: if the file is no report of an evaluation.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results = {name: _flatten(tasks) for name, tasks in content["results"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SummaryError(
            f"{path} is no report of an evaluation ({type(error).__name__}); remove or replace it."
        ) from error
    return results


def _flatten(tasks: Mapping[str, Mapping[str, float | None]]) -> dict[str, float]:
    task, metric = _SPEED
    rate = tasks.get(task, {}).get(metric)
    found = {MILLISECONDS: 1000 / rate} if rate else {}
    for values in tasks.values():
        found |= {name: float(value) for name, value in values.items() if value is not None}
    return found


def collect(results: Iterable[Result], metrics: Sequence[str]) -> Values:
    """Sort the values by run, data set, metric and seed; runs and data sets as they come.

    Raises:
        SummaryError: for a metric that no result has, or a run that has results both with and
            without seeds, which would count twice.
    """
    results, values = list(results), {}
    for run in {r.run for r in results if r.seed is None} & {
        r.run for r in results if r.seed is not None
    }:
        raise SummaryError(
            f"{run} has a results.json beside its seed folders; move or remove one or the other."
        )
    known = {name for r in results for found in r.metrics.values() for name in found}
    for metric in metrics:
        if metric not in known:
            # The figures of single categories are hundreds.
            names = ", ".join(sorted(name for name in known if "-" not in name)) or "none"
            raise SummaryError(f"no result has the metric '{metric}'; there are: {names}.")
    for result in results:
        run = values.setdefault(result.run, {})
        for dataset, found in result.metrics.items():
            cells = run.setdefault(dataset, {metric: {} for metric in metrics})
            for metric in metrics:
                if metric in found:
                    cells[metric][result.seed] = found[metric]
    return values


def summarize(folders: Sequence[Path], metrics: Sequence[str], order: Sequence[str] = ()) -> Values:
    """Read and sort the results of several folders.

    Args:
        folders: see :func:`find_results`; where there are several, their paths are part of the
            runs' names.
        metrics: names as in results.json, or :data:`MILLISECONDS`.
        order: runs that come first, in this order; the others follow by name.

    Raises:
        SummaryError: see :func:`find_results` and :func:`collect`.
    """
    several = len(folders) > 1
    results = [r for f in folders for r in find_results(f, f"{f}/" if several else "")]
    rank = {run: place for place, run in enumerate(order)}
    results.sort(key=lambda r: (rank.get(r.run, math.inf), r.run, -1 if r.seed is None else r.seed))
    return collect(results, metrics)
