"""Steps are run once, in order, side by side if asked to, and can be stopped at any time."""

import contextlib
import fcntl
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from dcp_clip.experiments import reproduce_runner as reproduce_runner
from dcp_clip.experiments.reproduce_runner import StepError, run_steps
from dcp_clip.experiments.reproduce_steps import Step

# Before the code of every step: its folder, and a function to wait for a file.
PRELUDE = """
import os, pathlib, signal, sys, time
here = pathlib.Path(sys.argv[1])
def wait_for(path):
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.01)
with open(here.parent / "order", "a") as file:
    file.write(here.name + " ")
"""
LEAVE = "(here / 'final').touch()"


def wait_for_lock(file):
    """BlockingIOError if it is still held after some seconds: signals need a moment."""
    for _ in range(1000):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.01)
    return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reproduce_runner, "_POLL_SECONDS", 0.01)


@pytest.fixture
def make(tmp_path):
    """``make(name, code, needs)``: a step that runs the code, and should leave the file "final"."""

    def step(name, code=LEAVE, needs=()):
        folder = tmp_path / name
        command = ("-c", PRELUDE + code, str(folder))
        return Step(name, folder, command, "final", (folder / "final").exists, needs)

    return step


@pytest.fixture
def run(tmp_path):
    """``run(*steps)``: the names of those that were started, and the lines told."""

    def start(*steps, **options):
        (tmp_path / "order").write_text("")
        lines = []
        run_steps(steps, tell=lines.append, **options)
        return (tmp_path / "order").read_text().split(), "\n".join(lines)

    return start


def test_each_after_what_it_needs_and_only_once(make, run):
    steps = [make("c", needs=("b",)), make("a"), make("b", needs=("a",))]
    order, told = run(*steps)
    assert order == ["a", "b", "c"]
    assert "[1/3] c: done in" in told and "[2/3] a: log in " in told
    assert run(*steps) == ([], "3 of 3 steps are done already.")
    (steps[2].folder / "final").unlink()
    order, told = run(*steps)
    assert order == ["b"] and told.startswith("2 of 3 steps")


def test_what_it_prints_is_in_its_log(make, run):
    step = make("a", "print('hello'); sys.stderr.write('there\\n');" + LEAVE)
    run(step)
    log = (step.folder / "step.log").read_text()
    assert log.startswith("\n$ python -c ") and "hello" in log and "there" in log


def test_failure_is_one_sentence_and_the_rerun_goes_on(make, run, tmp_path):
    code = f"if not (here / 'mended').exists(): raise ValueError('no such thing')\n{LEAVE}"
    steps = [make("a"), make("b", code, ("a",)), make("c", needs=("b",))]
    with pytest.raises(StepError, match=r"'b' failed .* 1: ValueError: no such thing \(see .*log"):
        run(*steps)
    assert (tmp_path / "order").read_text().split() == ["a", "b"]
    (steps[1].folder / "mended").touch()
    assert run(*steps)[0] == ["b", "c"]
    assert (steps[1].folder / "step.log").read_text().count("$ python") == 2


def test_a_step_that_leaves_nothing_has_failed(make, run):
    with pytest.raises(StepError, match="'a' ended without leaving final"):
        run(make("a", "print('all well')"))


def test_what_other_settings_made_is_refused_before_anything_runs(make, run, tmp_path):
    run(make("b"))
    for done in (True, False):
        if not done:
            (tmp_path / "b" / "final").unlink()  # begun, as well as done
        with pytest.raises(StepError, match=r"(?s)/b was made with other settings .*remove that"):
            run(make("a"), make("b", "7;" + LEAVE))
        assert not (tmp_path / "a").exists()


def test_what_was_there_before_counts(make, run):
    step = make("a")
    step.folder.mkdir()
    (step.folder / "final").touch()
    assert run(step)[0] == []
    assert reproduce_runner.read_record(step) is None


def test_time_is_that_of_all_runs(make, run):
    step = make("a")
    run(step)
    first = reproduce_runner.read_record(step)
    (step.folder / "final").unlink()
    run(step)
    second = reproduce_runner.read_record(step)
    assert second.command == first.command == list(step.command)
    assert second.seconds >= first.seconds


def test_damaged_record(make):
    step = make("a")
    step.folder.mkdir()
    (step.folder / "step.json").write_text("{")
    with pytest.raises(StepError, match=r"step\.json is damaged: remove it"):
        reproduce_runner.read_record(step)


def test_two_at_a_time(make, run, tmp_path):
    """Each waits for the other, which would never come one after the other."""
    meet = "(here / 'here').touch(); wait_for(here.parent / '{}' / 'here');" + LEAVE
    run(make("a", meet.format("b")), make("b", meet.format("a")), jobs=2)
    assert (tmp_path / "a" / "final").exists() and (tmp_path / "b" / "final").exists()


@pytest.mark.parametrize("jobs", [1, 2])
def test_not_more_at_a_time(make, run, jobs):
    """Each counts those that have started and not ended."""
    code = f"""
(here / 'began').touch()
time.sleep(0.1)
began, ended = (len(list(here.parent.glob(f"*/{{n}}"))) for n in ("began", "final"))
assert began - ended <= {jobs}, (began, ended)
{LEAVE}"""
    run(*(make(name, code) for name in "abcd"), jobs=jobs)


def test_a_failure_stops_the_others(make, run, tmp_path):
    waiting = """
(here / 'here').touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    (here / 'stopped').touch()
"""
    failing = "wait_for(here.parent / 'a' / 'here'); sys.exit(3)"
    with pytest.raises(StepError, match="'b' failed after .* status 3"):
        run(make("a", waiting), make("b", failing), jobs=2)
    assert (tmp_path / "a" / "stopped").exists()


def test_interrupted(make, run, tmp_path):
    """Ctrl-C reaches the step and its children, which end; the next run goes on. A child holds a
    lock as long as it lives."""
    code = f"""
if (here / 'child').exists():
    {LEAVE}
    sys.exit()
try:
    if os.fork() == 0:
        import fcntl
        lock = open(here / 'lock', 'w')
        fcntl.flock(lock, fcntl.LOCK_EX)
        (here / 'child').touch()
    else:
        wait_for(here / 'child')
        os.kill(os.getppid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    (here / 'stopped').touch()
"""
    steps = [make("a"), make("b", code, ("a",))]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(*steps)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "b" / "stopped").exists()
    with open(tmp_path / "b" / "lock") as lock:
        wait_for_lock(lock)
    assert run(*steps)[0] == ["b"]


def test_a_need_that_is_not_there(make, run):
    with pytest.raises(ValueError, match="'a' needs a step that is not among these"):
        run(make("a", needs=("b",)))


def test_environment(make, run, tmp_path):
    code = "(here / 'final').write_text(os.environ['OMP_NUM_THREADS'])"
    run(make("a", code), environment={"OMP_NUM_THREADS": "3"})
    assert (tmp_path / "a" / "final").read_text() == "3"


def test_only_one_run_in_a_folder(tmp_path):
    with reproduce_runner.only_one(tmp_path / "out"):
        with pytest.raises(StepError, match="another run is at work in .*out"):
            with reproduce_runner.only_one(tmp_path / "out"):
                pass
    with reproduce_runner.only_one(tmp_path / "out"):
        pass


def test_steps_that_outlive_a_killed_run_keep_the_folder(make, run, tmp_path):
    with reproduce_runner.only_one(tmp_path) as lock:
        # A step inherits the lock: it finds it open.
        run(make("a", f"os.fstat({lock}); {LEAVE}"), lock=lock)
        code = "print('up', flush=True); import time; time.sleep(60)"
        orphan = subprocess.Popen(
            [sys.executable, "-c", code], pass_fds=(lock,), stdout=subprocess.PIPE
        )
        orphan.stdout.readline()
    try:
        with pytest.raises(StepError, match="another run is at work"):
            with reproduce_runner.only_one(tmp_path):
                pass
    finally:
        orphan.kill()
        orphan.communicate()
    with reproduce_runner.only_one(tmp_path):
        pass


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (125, "2 min 05 s"), (6000, "1 h 40 min")],
)
def test_seconds_in_words(seconds, text):
    assert reproduce_runner.format_seconds(seconds) == text
