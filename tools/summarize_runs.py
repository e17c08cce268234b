#!/usr/bin/env python
"""Summarise evaluations: one row a run, one column a data set, mean and spread over seeds.

    python tools/summarize_runs.py output/emoji_scenes/test
    python tools/summarize_runs.py output/emoji_scenes/test --metric mIoU_things \\
        --metric recall_things --milliseconds
    python tools/summarize_runs.py output/emoji_scenes/val --against default
    python tools/summarize_runs.py output/emoji_scenes/test --json > summary.json

Reads every results.json below the folders, as an evaluation leaves it in its OUTPUT_DIR. The run is
the folder's name, <run>/results.json; seeds of a run are in <run>/seed<N>/results.json.

A cell is "mean ± sd (n)": over the n seeds that have the figure, sd with n - 1 in its denominator,
none for one seed. A dash stands where no seed has it. Metrics are named as in results.json, and in
percent; with --milliseconds there is also the time an image in the model, batch as evaluated. The
last column is each seed's mean over the data sets, where there are several and it has all of them.

With --against RUN the cells are what that run has over each other one, seed by seed, as "mean ±
standard error (n)": what both owe to the seed cancels out. A run without seeds is compared with
every seed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from dcp_clip.experiments.run_results import MILLISECONDS, SummaryError, Values, summarize

METRIC = "mIoU_things"
_DASH = "–"
MEAN = "mean"


def short_names(datasets: Sequence[str]) -> dict[str, str]:
    """Data sets without the words at either end that all of them share: emoji_scenes_base_test
    among its sisters becomes base."""
    words = [name.split("_") for name in datasets]
    shortest = min(map(len, words), default=0)
    if len(set(datasets)) < 2:
        return {name: name for name in datasets}
    start = 0
    while start < shortest - 1 and len({w[start] for w in words}) == 1:
        start += 1
    end = 0
    while start + end < shortest - 1 and len({w[-1 - end] for w in words}) == 1:
        end += 1
    return {name: "_".join(w[start : len(w) - end]) for name, w in zip(datasets, words)}


def mean_and_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of the sample; None for fewer than two values."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), sd


def format_cell(values: Sequence[float], digits: int = 1, error_of_mean: bool = False) -> str:
    """ "mean ± spread (n)", a dash for no value; the spread is the standard deviation, or the
    standard error of the mean, and then the mean has a sign."""
    if not values:
        return _DASH
    mean, sd = mean_and_sd(values)
    if error_of_mean and sd is not None:
        sd /= len(values) ** 0.5
    spread = "" if sd is None else f" ± {sd:.{digits}f}"
    return f"{mean:{'+' if error_of_mean else ''}.{digits}f}{spread} ({len(values)})"


def mean_over_datasets(found: Mapping[str, Mapping[str, dict]], metric: str, n: int) -> list[float]:
    """Of one run, each seed's mean over its n data sets; seeds that lack one are left out."""
    cells = [dataset[metric] for dataset in found.values()]
    seeds = dict.fromkeys(seed for cell in cells for seed in cell)
    rows = [[cell[seed] for cell in cells if seed in cell] for seed in seeds]
    return [statistics.fmean(row) for row in rows if len(row) == n]


def to_markdown(values: Values, metrics: Sequence[str], against: str | None = None) -> str:
    """A table a metric, one row a run, one column a data set, and one of their mean.

    Args:
        values: see :func:`run_results.collect`, or :func:`differences` where `against` is given.
        metrics: one or more of the values'.
        against: the run that the differences are of.
    """
    datasets = list(dict.fromkeys(name for run in values.values() for name in run))
    names, paired = short_names(datasets), against is not None
    what = f"{against} less each, " if paired else ""
    spread = "standard error" if paired else "standard deviation"
    several = [MEAN] if len(datasets) > 1 else []
    tables = []
    for metric in metrics:
        rows = []
        for run, found in values.items():
            cells = [list(found.get(d, {}).get(metric, {}).values()) for d in datasets]
            if several:
                cells.append(mean_over_datasets(found, metric, len(datasets)))
            rows.append([run, *(format_cell(cell, error_of_mean=paired) for cell in cells)])
        text = tabulate(
            [[cell.replace("|", r"\|") for cell in row] for row in rows],
            ["run", *(names[d] for d in datasets), *several],
            tablefmt="pipe",
            colalign=["left", *["right"] * len(datasets + several)],
            disable_numparse=True,
        )
        tables.append(f"{metric}, {what}mean ± {spread} (seeds):\n\n{text}\n")
    return "\n".join(tables)


def differences(values: Values, against: str) -> Values:
    """What one run has over each other run, by data set, metric and seed.

    Raises:
        SummaryError: if there is no such run.
    """
    if against not in values:
        raise SummaryError(f"there is no run '{against}'; there are: {', '.join(values)}.")
    return {
        run: {
            dataset: {
                metric: _subtract(values[against].get(dataset, {}).get(metric, {}), cell)
                for metric, cell in cells.items()
            }
            for dataset, cells in found.items()
        }
        for run, found in values.items()
        if run != against
    }


def _subtract(ours: dict[int | None, float], theirs: dict[int | None, float]) -> dict:
    """By seed; what has none stands for every seed of the other."""
    if None in theirs:
        return {seed: value - theirs[None] for seed, value in ours.items()}
    if None in ours:
        return {seed: ours[None] - value for seed, value in theirs.items()}
    return {seed: ours[seed] - theirs[seed] for seed in theirs if seed in ours}


def to_json(values: Values) -> str:
    """``{run: {data set: {metric: {"mean", "sd", "n", "seeds": {seed: value}}}}}``; mean and sd are
    null where there are too few values."""
    content = {
        run: {
            dataset: {metric: _describe(seeds) for metric, seeds in cells.items()}
            for dataset, cells in found.items()
        }
        for run, found in values.items()
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)


def _describe(seeds: Mapping[int | None, float]) -> dict:
    mean, sd = mean_and_sd(list(seeds.values())) if seeds else (None, None)
    by_seed = {"none" if seed is None else str(seed): value for seed, value in seeds.items()}
    return {"mean": mean, "sd": sd, "n": len(seeds), "seeds": by_seed}


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER")
    add("--metric", action="append", metavar="NAME", help=f"repeatable (default: {METRIC})")
    add("--milliseconds", action="store_true", help="also the model's milliseconds an image")
    add("--against", metavar="RUN", help="what this run has over each other one")
    add("--json", action="store_true", help="print JSON instead of tables")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the summary; what cannot be summarised ends the program with one sentence."""
    args = get_parser().parse_args(argv)
    metrics = list(dict.fromkeys(args.metric or [METRIC]))
    if args.milliseconds and MILLISECONDS not in metrics:
        metrics.append(MILLISECONDS)
    try:
        values = summarize(args.folders, metrics)
        if args.against is not None:
            values = differences(values, args.against)
    except SummaryError as error:
        sys.exit(f"error: {error}")
    print(to_json(values) if args.json else to_markdown(values, metrics, args.against))


if __name__ == "__main__":
    main()
