#!/usr/bin/env python
"""Train and evaluate the rows of the EmojiScenes tables (docs/emoji_scenes_results.md).

    python datasets/prepare_emoji_scenes.py
    python tools/reproduce_emoji_scenes.py --jobs 2
    python tools/reproduce_emoji_scenes.py --variants default,static_guidance --seeds 1 --split val
    python tools/reproduce_emoji_scenes.py --clip output/emoji_scenes/clip/clip.pth
    python tools/reproduce_emoji_scenes.py --iterations 500 --output out SOLVER.OPTIMIZER ADAMW

The rows are listed in configs/emoji_scenes/ablation.yaml. Each of them is trained and evaluated by
train_net.py, once for each seed:

    <output>/<row>/seed<N>/                   training
    <output>/{val,test}/<row>/seed<N>/        evaluation: results.md, results.json
    <output>/{val,test}/summary.md            the tables, also printed at the end

The program can be stopped at any time. The same command skips what is done and continues the
trainings from their last checkpoints. Folders of other settings are refused. Each folder has the
command in command.txt and its output in output.txt.
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import yaml
from tabulate import tabulate

from dcp_clip_cli.arguments import add_import, output_path, positive

ROOT = Path(__file__).resolve().parents[1]
PLAN = "configs/emoji_scenes/ablation.yaml"
SUBSETS = ("base", "unseen", "unseen_style", "all")
METRICS = ("mIoU_things", "mIoU_stuff", "recall_things", "milliseconds")


class ReproductionError(RuntimeError):
    """Something failed, or the arguments are wrong; the message is one sentence."""


@dataclass(frozen=True)
class Task:
    """One call of train_net.py.

    Attributes:
        folder: output folder.
        arguments: arguments of train_net.py.
        datasets: the data sets of an evaluation; empty for a training.
        weights: the file that is evaluated; None for a training or CLIP alone.
    """

    folder: Path
    arguments: list[str]
    datasets: tuple[str, ...] = ()
    weights: Path | None = None

    def is_done(self) -> bool:
        if not self.datasets:
            path = self.folder / "last_checkpoint"  # written after the checkpoint itself
            return path.is_file() and path.read_text().strip() == "model_final.pth"
        path, weights = self.folder / "results.json", self.weights
        if not path.is_file():
            return False
        if weights and weights.is_file() and weights.stat().st_mtime > path.stat().st_mtime:
            return False  # the weights were trained again
        # results.json grows with each data set.
        return set(self.datasets) <= set(json.loads(path.read_text(encoding="utf-8"))["results"])

    @property
    def command(self) -> str:
        return shlex.join(["python", "train_net.py", *self.arguments])

    def check(self) -> None:
        """Raise ReproductionError if the folder was made by another command."""
        path = self.folder / "command.txt"
        if path.is_file() and path.read_text().strip() != self.command:
            raise ReproductionError(
                f"{self.folder} was made with other settings (see command.txt): use another "
                "--output, or remove the folder."
            )


def load_rows(path: Path) -> tuple[dict[str, dict], list[int]]:
    """Read the rows by name, and the seeds.

    The "trained_row" of a row is the one whose trained weights it evaluates: itself, another row,
    or "" for CLIP alone, which has no seeds.
    """
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows: dict[str, dict] = {}
    for section in ("variants", "baselines", "evaluations", "training_free"):
        for entry in plan.get(section, ()):
            source = rows.get(entry.get("weights_of", ""), {})
            overrides = [str(part) for pair in entry.get("overrides", {}).items() for part in pair]
            rows[entry["name"]] = {
                "note": entry["note"],
                "config": source.get("config") or entry.get("config", plan["base"]),
                "overrides": [*source.get("overrides", ()), *overrides],
                "trained_row": entry.get("weights_of", entry["name"]),
                "on_request": entry.get("on_request", False),
            }
            if section == "training_free":
                rows[entry["name"]]["trained_row"] = ""
    return rows, plan["seeds"]


def select_rows(rows: dict[str, dict], names: str | None) -> list[str]:
    """Return names of rows in the order of the list; None selects all without `on_request`.

    Raises:
        ReproductionError: for an unknown name.
    """
    if names is None:
        return [name for name, row in rows.items() if not row["on_request"]]
    wanted = [name.strip() for name in names.split(",")]
    for name in wanted:
        if name not in rows:
            raise ReproductionError(f"there is no row '{name}'; there are: {', '.join(rows)}.")
    return [name for name in rows if name in wanted]


def make_tasks(
    args: argparse.Namespace, rows: dict[str, dict], seeds: Sequence[int]
) -> tuple[list[Task], list[Task]]:
    """Return the trainings that the selected rows need, and their evaluations.

    KEY VALUE replaces keys of the rows. The options of this program come last, so that KEY VALUE
    cannot change seeds, data or folders.
    """
    output = args.output.resolve()
    prefix = f"emoji_scenes_split{args.base_split}_" if args.base_split else "emoji_scenes_"
    datasets = tuple(f"{prefix}{subset}_{args.split}" for subset in SUBSETS)
    iterations = ["SOLVER.MAX_ITER", str(args.iterations)] if args.iterations else []
    trainings, evaluations = {}, []

    def arguments(name: str, mode: str, test: tuple[str, ...], folder: Path, *more: str) -> list:
        command = ["--config-file", rows[name]["config"], mode]
        command += [word for module in args.imports for word in ("--import", module)]
        command += [*rows[name]["overrides"], *args.opts]
        if args.clip:
            command += ["MODEL.CLIP.PRETRAINED", str(args.clip.resolve())]
        command += ["DATASETS.TRAIN", f"('{prefix}base_train',)", "DATASETS.TEST", str(test)]
        return [*command, "OUTPUT_DIR", str(folder), *more]

    for name in select_rows(rows, args.variants):
        source = rows[name]["trained_row"]
        for seed in [f"seed{n}" for n in seeds] if source else [""]:
            weights, options = None, []
            if source:
                folder = output / source / seed
                more = ["SEED", seed.removeprefix("seed"), *iterations]
                trainings[folder] = Task(folder, arguments(source, "--resume", (), folder, *more))
                weights = folder / "model_final.pth"
                options = ["MODEL.WEIGHTS", str(weights)]
            folder = output / args.split / name / seed
            command = arguments(name, "--eval-only", datasets, folder, *options)
            evaluations.append(Task(folder, command, datasets, weights))
    return list(trainings.values()), evaluations


def run_tasks(tasks: Sequence[Task], jobs: int) -> None:
    """Run the tasks that are not done yet, several at a time.

    The first error, Ctrl-C included, stops all of them.

    Raises:
        ReproductionError: if a task fails.
    """
    # train_net.py runs in another folder, but --import also searches this one.
    path = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*path, os.getcwd()])}
    if jobs > 1:
        environment["OMP_NUM_THREADS"] = "1"
    running: set[subprocess.Popen] = set()
    stopped = threading.Event()

    def run(task: Task) -> None:
        task.folder.mkdir(parents=True, exist_ok=True)
        (task.folder / "command.txt").write_text(task.command + "\n")
        start, path = time.monotonic(), task.folder / "output.txt"
        with open(path, "ab") as file:
            process = subprocess.Popen(
                [sys.executable, "train_net.py", *task.arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            running.add(process)
            if stopped.is_set():
                process.terminate()
            status = process.wait()
            running.discard(process)
        if status or not task.is_done():
            lines = path.read_text(errors="replace").strip().splitlines() or [""]
            raise ReproductionError(f"{task.folder} failed: {lines[-1][:300]} (see {path})")
        print(f"{task.folder}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            futures = [pool.submit(run, task) for task in tasks if not task.is_done()]
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.terminate()
            raise


def summarize(folder: Path, rows: dict[str, dict]) -> str:
    """The tables of all rows evaluated so far, and their differences from the first row."""
    evaluated = [name for name in rows if any((folder / name).rglob("results.json"))]
    command = [sys.executable, str(ROOT / "tools" / "summarize_runs.py"), str(folder)]
    command += ["--runs", ",".join(evaluated)]
    command += [word for metric in METRICS for word in ("--metric", metric)]
    tables = [subprocess.check_output(command, text=True)]
    first = next(iter(rows))
    if first in evaluated[:1] and len(evaluated) > 1:
        tables.append(subprocess.check_output([*command, "--against", first], text=True))
    notes = [(name, rows[name]["note"]) for name in evaluated]
    return "\n".join([*tables, tabulate(notes, ["run", "note"], tablefmt="pipe")]) + "\n"


def reproduce(args: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        ReproductionError: for wrong arguments, or if a task fails.
    """
    rows, seeds = load_rows(ROOT / PLAN)
    if args.clip and not args.clip.is_file():
        raise ReproductionError(f"--clip: the file {args.clip} does not exist.")
    trainings, evaluations = make_tasks(args, rows, args.seeds or seeds)
    for task in (*trainings, *evaluations):
        task.check()
    run_tasks(trainings, args.jobs)
    run_tasks(evaluations, args.jobs)
    folder = args.output / args.split
    tables = summarize(folder, rows)
    # Late, because it imports torch.
    from dcp_clip.utils.atomic_files import atomic_write

    with atomic_write(folder / "summary.md", "w") as file:
        file.write(tables)
    print(f"\n{tables}")


def seed_list(text: str) -> list[int]:
    """Parse "1,2,3"."""
    return [int(seed) for seed in text.split(",")]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=output_path, default=ROOT / "output" / "emoji_scenes", metavar="FOLDER")
    add("--variants", metavar="A,B", help="names of rows (default: all that do not take hours)")
    add("--seeds", type=seed_list, metavar="1,2", help="seeds of the trainings (default: 1,2,3)")
    add("--iterations", type=positive, metavar="N", help="of each training (default: the config's)")
    add("--clip", type=Path, metavar="FILE", help="weights of CLIP (default: the shipped ones)")
    add("--split", choices=("val", "test"), default="test", help="scenes for the evaluation")
    add("--base-split", type=int, choices=(0, 1), default=0, help="which names are base")
    add("--jobs", type=positive, default=1, metavar="N", help="processes, of one thread if above 1")
    add_import(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of all rows")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit status."""
    args = get_parser().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        reproduce(args)
    except (OSError, ReproductionError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. The same command continues with the rest.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
