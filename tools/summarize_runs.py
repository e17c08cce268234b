#!/usr/bin/env python
"""Summarise evaluations as tables: mean and standard deviation over seeds.

    python tools/summarize_runs.py output/emoji_scenes/test
    python tools/summarize_runs.py output/emoji_scenes/test --metric mIoU_things \\
        --metric recall_things --milliseconds
    python tools/summarize_runs.py output/emoji_scenes/val --against default
    python tools/summarize_runs.py output/emoji_scenes/test --json > summary.json

Reads every results.json in the folders and their subfolders; evaluations write this file to
OUTPUT_DIR. Each table has one row for each run and one column for each data set. The name of a run
is its folder, <run>/results.json, or <run>/seed<N>/results.json for several seeds.

A cell is "mean ± standard deviation (number of seeds)". The standard deviation is that of the
sample, with n - 1 in the denominator. A dash means that no seed has a value. Metrics have the names
of results.json. They are in percent, except for milliseconds, the model's time for an image. The
last column is the mean over the data sets. It includes only the seeds that have all of them.

With --against RUN the cells are paired differences: RUN minus the other run, seed by seed, as "mean
± standard error (number of seeds)". A run without seeds is compared with every seed.
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tabulate import tabulate

MILLISECONDS = "milliseconds"
# {(run, data set, metric): {seed: value}}; the seed is None for a run without seeds.
Values = dict[tuple[str, str, str], dict[int | None, float]]


class SummaryError(ValueError):
    """The folders cannot be summarised; the message is one sentence."""


def read_values(folders: Sequence[Path]) -> Values:
    """Read all results.json files, sorted by run and seed.

    Args:
        folders: folders of evaluations. If there are several, their paths begin the runs' names.

    Raises:
        SummaryError: if a folder has no results, or a file is not a report of an evaluation.
    """
    found = []
    folders = list({folder.resolve(): folder for folder in folders}.values())  # each one once
    for folder in folders:
        paths = list(folder.rglob("results.json"))
        if not paths:
            raise SummaryError(
                f"{folder} contains no results.json; `train_net.py --eval-only` writes one to "
                "OUTPUT_DIR."
            )
        for path in paths:
            parts = path.parent.relative_to(folder).parts
            seed = re.fullmatch(r"seed(\d+)", parts[-1]) if parts else None
            run = "/".join(parts[:-1] if seed else parts) or folder.resolve().name
            run = f"{folder}/{run}" if len(folders) > 1 else run
            found.append((run, int(seed[1]) if seed else -1, path))
    values: Values = {}
    for run, seed, path in sorted(found):
        for dataset, metrics in read_metrics(path).items():
            for metric, value in metrics.items():
                cell = values.setdefault((run, dataset, metric), {})
                if None in cell:
                    raise SummaryError(
                        f"{run} has a results.json beside its seed folders: move or remove one of "
                        "them."
                    )
                cell[None if seed < 0 else seed] = value
    return values


def read_metrics(path: Path) -> dict[str, dict[str, float]]:
    """Read ``{data set: {metric: value}}`` from one results.json; null values are left out.

    Raises:
        SummaryError: if the file is not a report of an evaluation.
    """
    metrics = {}
    try:
        for dataset, tasks in json.loads(path.read_text(encoding="utf-8"))["results"].items():
            flat = {name: value for task in tasks.values() for name, value in task.items()}
            if rate := flat.get("model_images_per_second"):
                flat[MILLISECONDS] = 1000 / rate
            metrics[dataset] = {k: float(v) for k, v in flat.items() if v is not None}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SummaryError(
            f"{path} is not a report of an evaluation ({type(error).__name__}): remove it."
        ) from error
    return metrics


def select(values: Values, metrics: Sequence[str], runs: Sequence[str]) -> Values:
    """Keep some metrics, and some runs in this order.

    Raises:
        SummaryError: for a metric or a run that does not exist.
    """
    known = {metric for _, _, metric in values}
    for metric in metrics:
        if metric not in known:
            # The metrics of single categories ("IoU-cat") can be hundreds.
            names = ", ".join(sorted(name for name in known if "-" not in name)) or "none"
            raise SummaryError(f"no result has the metric '{metric}'; there are: {names}.")
    existing = _unique(run for run, _, _ in values)
    for run in runs:
        if run not in existing:
            raise SummaryError(f"there is no run '{run}'; there are: {', '.join(existing)}.")
    return {
        key: cell
        for run in runs
        for key, cell in values.items()
        if key[0] == run and key[2] in metrics
    }


def differences(values: Values, against: str) -> Values:
    """One run minus each other run, for each data set, metric and seed."""
    return {
        (run, dataset, metric): _subtract(values.get((against, dataset, metric), {}), cell)
        for (run, dataset, metric), cell in values.items()
        if run != against
    }


def _subtract(first: dict[int | None, float], second: dict[int | None, float]) -> dict:
    """Differences by seed; a value without a seed is used for every seed of the other run."""
    seeds = second if None in first else first
    pairs = [(s, first.get(s, first.get(None)), second.get(s, second.get(None))) for s in seeds]
    return {s: a - b for s, a, b in pairs if a is not None and b is not None}


def to_markdown(values: Values, against: str | None = None) -> str:
    """One table for each metric.

    Args:
        values: see :func:`select`, or :func:`differences` if `against` is given.
        against: the run that the others are subtracted from.
    """
    runs, datasets, metrics = (_unique(key[i] for key in values) for i in range(3))
    several = len(datasets) > 1
    title = f"{against} minus each run, " if against else ""
    title += "mean ± standard " + ("error (seeds)" if against else "deviation (seeds)")
    tables = []
    for metric in metrics:
        rows = []
        for run in runs:
            cells = [values.get((run, dataset, metric), {}) for dataset in datasets]
            if several:
                seeds = [s for s in cells[0] if all(s in cell for cell in cells)]
                cells.append({s: statistics.fmean(cell[s] for cell in cells) for s in seeds})
            rows.append([run, *(format_cell(cell, paired=bool(against)) for cell in cells)])
        headings = ["run", *short_names(datasets), *["mean"] * several]
        align = ["left", *["right"] * (len(headings) - 1)]
        table = tabulate(rows, headings, "pipe", colalign=align, disable_numparse=True)
        tables.append(f"{metric}, {title}:\n\n{table}\n")
    return "\n".join(tables)


def format_cell(cell: dict[int | None, float], paired: bool = False) -> str:
    """ "mean ± spread (n)". Paired differences have a sign and the standard error as spread."""
    if not cell:
        return "–"
    mean, n = statistics.fmean(cell.values()), len(cell)
    spread = ""
    if n > 1:
        spread = f" ± {statistics.stdev(cell.values()) / (n**0.5 if paired else 1):.1f}"
    return f"{mean:{'+' if paired else ''}.1f}{spread} ({n})"


def short_names(datasets: Sequence[str]) -> list[str]:
    """Remove the words that all names begin or end with: emoji_scenes_base_test and
    emoji_scenes_unseen_test become base and unseen."""
    words = [name.split("_") for name in datasets]
    start = end = 0
    if len(set(datasets)) > 1:
        shortest = min(map(len, words))
        while start < shortest - 1 and len({w[start] for w in words}) == 1:
            start += 1
        while start + end < shortest - 1 and len({w[-1 - end] for w in words}) == 1:
            end += 1
    return ["_".join(w[start : len(w) - end]) for w in words]


def to_json(values: Values) -> str:
    """``{run: {data set: {metric: {"mean", "sd", "n", "seeds": {seed: value}}}}}``."""
    content: dict = {}
    for (run, dataset, metric), cell in values.items():
        content.setdefault(run, {}).setdefault(dataset, {})[metric] = {
            "mean": statistics.fmean(cell.values()) if cell else None,
            "sd": statistics.stdev(cell.values()) if len(cell) > 1 else None,
            "n": len(cell),
            "seeds": {"none" if s is None else str(s): value for s, value in cell.items()},
        }
    return json.dumps(content, indent=1, ensure_ascii=False)


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(items))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER")
    add(
        "--metric",
        action="append",
        metavar="NAME",
        help="repeatable (default: mIoU_things, or mIoU)",
    )
    add("--milliseconds", action="store_true", help="also the model's milliseconds for an image")
    add("--runs", metavar="A,B", help="only these runs, in this order (default: all)")
    add("--against", metavar="RUN", help="subtract each other run from this run, seed by seed")
    add("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    if hasattr(sys.stdout, "reconfigure"):  # for terminals without "±"
        sys.stdout.reconfigure(errors="backslashreplace")
    args = get_parser().parse_args(argv)
    try:
        values = read_values(args.folders)
        default = "mIoU_things" if any(key[2] == "mIoU_things" for key in values) else "mIoU"
        metrics = _unique([*(args.metric or [default]), *[MILLISECONDS] * args.milliseconds])
        runs = args.runs.split(",") if args.runs else _unique(run for run, _, _ in values)
        values = select(values, metrics, _unique([*runs, *filter(None, [args.against])]))
    except SummaryError as error:
        sys.exit(f"error: {error}")
    if args.against:
        values = differences(values, args.against)
    print(to_json(values) if args.json else to_markdown(values, args.against))


if __name__ == "__main__":
    main()
