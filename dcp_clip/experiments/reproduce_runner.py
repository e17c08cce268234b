"""Runs steps, some at a time, so that a rerun goes on where the last one stopped."""

import contextlib
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from dcp_clip.experiments.reproduce_steps import ROOT, Step
from dcp_clip.utils.image_io import atomic_write

RECORD, LOG = "step.json", "step.log"
_POLL_SECONDS = 0.1
# How long a program may take to end after Ctrl-C, before it is killed.
_GRACE_SECONDS = 15


class StepError(RuntimeError):
    """A step failed, or belongs to another reproduction; the message is one sentence."""


@dataclass(frozen=True)
class Record:
    """What is known of a step's runs: kept in its folder.

    Attributes:
        command: of the step.
        seconds: that it took, all its runs together.
    """

    command: list[str]
    seconds: float = 0.0


def read_record(step: Step) -> Record | None:
    """The record of a step; None where it has never been run from here.

    Raises:
        StepError: if it is damaged.
    """
    path = step.folder / RECORD
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StepError(f"{path} is damaged: remove it.") from error


def check_record(step: Step) -> None:
    """Refuse to go on with, or to take for done, what another command made.

    Raises:
        StepError: naming the folder and what differs.
    """
    record = read_record(step)
    if record is None or record.command == list(step.command):
        return
    then = shlex.join(part for part in record.command if part not in step.command)
    now = shlex.join(part for part in step.command if part not in record.command)
    raise StepError(
        f"{step.folder} was made with other settings ({then or 'fewer'}; now {now or 'fewer'}): "
        "give another --output, or remove that folder."
    )


def command_line(step: Step) -> str:
    """The command as one would type it."""
    return f"python {shlex.join(step.command)}"


def format_seconds(seconds: float) -> str:
    """ "3 s", "2 min 05 s", "1 h 40 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[int]:
    """Within this context no other process may work in the folder.

    Yields:
        the lock's file descriptor: a child process that inherits it keeps the folder locked until
        it ends, should this process be killed before.

    Raises:
        StepError: if another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StepError(f"another run is at work in {folder}; wait for it.") from error
        yield file.fileno()


@dataclass
class _Job:
    """A step that is running."""

    step: Step
    process: subprocess.Popen
    log: IO[bytes]
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, step: Step, environment: dict[str, str], lock: int | None) -> "_Job":
        step.folder.mkdir(parents=True, exist_ok=True)
        _write_record(step, read_record(step) or Record(list(step.command)))
        log = open(step.folder / LOG, "ab")
        log.write(f"\n$ {command_line(step)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [sys.executable, *step.command],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=() if lock is None else (lock,),
            start_new_session=True,  # Ctrl-C is for us, and handed on by _stop, workers included
        )
        return cls(step, process, log)

    def close(self) -> float:
        """Note the time; the seconds of this run."""
        seconds = time.monotonic() - self.started
        self.log.close()
        before = read_record(self.step) or Record(list(self.step.command))
        _write_record(self.step, Record(before.command, before.seconds + seconds))
        return seconds

    def send(self, number: int) -> None:
        """Send a signal to the step and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def _stop(jobs: Sequence[_Job]) -> None:
    """End all jobs as Ctrl-C would, and what does not end then by force."""
    # In the background of a shell script Ctrl-C's signal is ignored, in the steps as well.
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    try:
        for job in jobs:
            job.send(signal.SIGTERM if ignored else signal.SIGINT)
        for job in jobs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                job.process.wait(_GRACE_SECONDS)
    finally:  # at once when Ctrl-C comes a second time
        for job in jobs:
            job.send(signal.SIGKILL)
            job.process.wait()
            job.close()


def run_steps(
    steps: Sequence[Step],
    *,
    jobs: int = 1,
    environment: dict[str, str] | None = None,
    lock: int | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Run what is not done yet, each step after those that it needs.

    Args:
        steps: in the order in which they start; every one that is needed is among them.
        jobs: how many run at a time.
        environment: variables of the steps' processes; None for this one's.
        lock: what :func:`only_one` gave, for the steps to hold as long as they run.
        tell: takes lines of progress.

    Raises:
        StepError: at the first step that fails or was made by another command. The others are
            stopped, to be gone on with.
        KeyboardInterrupt: after the same.
    """
    for step in steps:
        check_record(step)
    done = {step.name for step in steps if step.is_done()}
    waiting = [step for step in steps if step.name not in done]
    place = {step.name: f"[{i}/{len(waiting)}] {step.name}" for i, step in enumerate(waiting, 1)}
    if done:
        tell(f"{len(done)} of {len(steps)} steps are done already.")
    running: list[_Job] = []
    try:
        while waiting or running:
            ready = [step for step in waiting if done.issuperset(step.needs)]
            if not ready and not running:
                raise ValueError(f"'{waiting[0].name}' needs a step that is not among these.")
            for step in ready[: jobs - len(running)]:
                waiting.remove(step)
                tell(f"{place[step.name]}: log in {step.folder / LOG}")
                running.append(_Job.start(step, environment or dict(os.environ), lock))
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                spent = format_seconds(job.close())
                _check_end(job, spent)
                done.add(job.step.name)
                tell(f"{place[job.step.name]}: done in {spent}")
            time.sleep(_POLL_SECONDS)
    finally:
        _stop(running)


def _check_end(job: _Job, spent: str) -> None:
    step, status, log = job.step, job.process.returncode, job.step.folder / LOG
    if status:
        raise StepError(
            f"'{step.name}' failed after {spent} with status {status}: {_last_line(log)} (see "
            f"{log}); mend that, and the same command goes on from there."
        )
    if not step.is_done():
        raise StepError(f"'{step.name}' ended without leaving {step.leaves}; see {log}.")


def _last_line(log: Path) -> str:
    """The last line that says something; of a Python program's error, its message."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - 10_000))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _write_record(step: Step, record: Record) -> None:
    with atomic_write(step.folder / RECORD, "w") as file:
        json.dump({"command": record.command, "seconds": round(record.seconds, 1)}, file, indent=1)
