#!/usr/bin/env python
"""Reproduce the EmojiScenes tables of the README from nothing, by one command that can be resumed.

    python tools/reproduce_emoji_scenes.py --list                   # every command, nothing is run
    python tools/reproduce_emoji_scenes.py
    python tools/reproduce_emoji_scenes.py --variants default,static_guidance --seeds 1 --split val
    python tools/reproduce_emoji_scenes.py --clip dcp_clip/weights/clip_tiny_emoji.pth
    python tools/reproduce_emoji_scenes.py --iterations 500 --output output/quick --jobs 2
    python tools/reproduce_emoji_scenes.py --output output/adamw SOLVER.OPTIMIZER ADAMW

Prepares the data, pre-trains the tiny CLIP (or takes that of --clip), trains every row of
configs/emoji_scenes/ablation.yaml with every seed, and evaluates it:

    <output>/clip/                            the CLIP
    <output>/<row>/seed<N>/                   a training
    <output>/{val,test}/<row>/seed<N>/        an evaluation: results.md, results.json
    <output>/{val,test}/summary.md            the tables, also printed at the end

Each step leaves step.log and step.json in its folder. What is done is skipped, a training that was
stopped goes on from its last checkpoint: after Ctrl-C, or after a failure, give the same command
again. A folder that was made with other settings is refused. Evaluations are steps of their own, so
that the same weights are chosen on validation and reported on test.

The data are in $DETECTRON2_DATASETS. With --jobs above 1, steps share the cores: milliseconds
compare only within one setting of it, and are best taken with 1.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from summarize_runs import METRIC, differences, to_markdown
from tabulate import tabulate

from dcp_clip.data.catalog import datasets_root
from dcp_clip.data.preparation.program import available_cpus
from dcp_clip.emoji_scenes.subsets import SPLITS as BASE_SPLITS
from dcp_clip.experiments.reproduce_plan import SPLITS, PlanError, Row, load_plan
from dcp_clip.experiments.reproduce_runner import (
    StepError,
    check_record,
    command_line,
    format_seconds,
    only_one,
    read_record,
    run_steps,
)
from dcp_clip.experiments.reproduce_steps import ROOT, Planner, Step
from dcp_clip.experiments.run_results import MILLISECONDS, SummaryError, summarize
from dcp_clip.utils.arguments import positive
from dcp_clip.utils.image_io import atomic_write

METRICS = (METRIC, "mIoU_stuff", "recall_things", MILLISECONDS)


def describe_steps(steps: Sequence[Step]) -> str:
    """All steps with their state and command, for --list."""
    lines = []
    for step in steps:
        check_record(step)
        state = "done" if step.is_done() else "begun" if read_record(step) else "to do"
        lines.append(f"# {step.name}: {state}\n{command_line(step)}")
    return "\n".join(lines)


def describe_times(steps: Sequence[Step]) -> str:
    """How long each step took, as a table; a dash for what was there before."""
    records = [(step.name, read_record(step)) for step in steps]
    rows = [(name, format_seconds(record.seconds) if record else "–") for name, record in records]
    total = sum(record.seconds for _, record in records if record)
    rows.append(("all, one after the other", format_seconds(total)))
    return tabulate(rows, ["step", "time"], tablefmt="github", disable_numparse=True)


def describe_results(folder: Path, rows: Sequence[Row]) -> str:
    """The tables of everything evaluated so far, with the rows' notes, and seed by seed what the
    first row of the plan has over the others.

    Raises:
        SummaryError: if nothing is.
    """
    values = summarize([folder], METRICS, [row.name for row in rows])
    notes = [(row.name, row.note) for row in rows if row.name in values]
    legend = tabulate(notes, ["run", "what it is"], tablefmt="github", disable_numparse=True)
    tables, first = [to_markdown(values, METRICS)], rows[0].name
    if first in values and len(values) > 1:
        tables.append(to_markdown(differences(values, first), METRICS, first))
    return "\n".join((*tables, legend)) + "\n"


def step_environment(jobs: int, data: Path) -> dict[str, str]:
    """Variables of the steps' processes: where the data are, and their share of the cores."""
    environment = os.environ | {"DETECTRON2_DATASETS": str(data), "PYTHONUNBUFFERED": "1"}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, available_cpus() // jobs))
    return environment


def reproduce(args: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        PlanError, StepError, SummaryError: with one sentence each.
    """
    plan, data = load_plan(args.plan), datasets_root().resolve()
    rows = plan.choose(args.variants)
    planner = Planner(
        plan,
        args.output.resolve(),
        data,
        split=args.split,
        iterations=args.iterations,
        clip=args.clip,
        base_split=args.base_split,
        overrides=tuple(args.opts),
    )
    planner.check_overrides(rows)
    steps = planner.steps(rows, args.seeds or plan.seeds)
    if args.list:
        print(describe_steps(steps))
        return
    with only_one(args.output) as lock:
        environment = step_environment(args.jobs, data)
        run_steps(steps, jobs=args.jobs, environment=environment, lock=lock, tell=_print_now)
        tables = describe_results(planner.results, plan.rows)
        with atomic_write(planner.results / "summary.md", "w") as file:
            file.write(tables)
    print(f"\n{tables}\n{describe_times(steps)}")


def _print_now(line: str) -> None:
    print(line, flush=True)


def names(text: str) -> list[str]:
    """Words between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """Whole numbers between commas, each once."""
    return list(dict.fromkeys(int(number) for number in names(text)))


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=Path, default=ROOT / "output" / "emoji_scenes", metavar="FOLDER")
    add("--plan", type=Path, default=ROOT / "configs" / "emoji_scenes" / "ablation.yaml")
    add("--variants", type=names, metavar="A,B", help="rows by name (default: all of the plan)")
    add("--seeds", type=numbers, metavar="1,2", help="of the trainings (default: the plan's)")
    add("--iterations", type=positive, metavar="N", help="of a training (default: its config's)")
    add("--clip", type=Path, metavar="FILE", help="weights of CLIP (default: pre-train one)")
    add("--split", choices=SPLITS, default="test", help="scenes to evaluate (default: test)")
    add("--base-split", type=int, choices=BASE_SPLITS, default=0, help="which names are base")
    add("--jobs", type=positive, default=1, metavar="N", help="steps at a time (default: 1)")
    add("--list", "--dry-run", action="store_true", help="print the commands; run nothing")
    add(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="of all rows, over their configs",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = get_parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # nohup has the second ignored
            signal.signal(number, signal.default_int_handler)
    try:
        reproduce(args)
    except (PlanError, StepError, SummaryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command goes on with what is left.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
