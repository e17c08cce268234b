"""Run programs in forked processes. A run can be disturbed at a given moment.

    python tests/helpers/forked_program.py MODULE ...

The modules are imported once, before the first run. Reads one request per line of standard input,
and answers each with a line: both are JSON. The client is `ForkServer`.
"""

import importlib
import json
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ERRORS = {"enospc": 28, "eacces": 13}
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")


class Disturbance:
    """Counts what a process and its workers do to the files in a folder, and acts at a moment.

    Attributes:
        action: "kill", "term" (the signals), a name of `ERRORS`, "size" or "none".
        at: number of the moment, from 1; for "size", the largest size of a file in bytes.
        count: number of moments of all processes until now.
    """

    def __init__(self, folder: str, action: str, at: int) -> None:
        self.folder, self.action, self.at = folder, action, at
        self.process, self.counter = os.getpid(), multiprocessing.Value("i", 0)
        self.write, self.fsync = os.write, os.fsync
        os.write, os.fsync = self.disturbed_write, self.disturbed_fsync
        sys.addaudithook(self.audit)
        if action == "size":
            resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))

    @property
    def count(self) -> int:
        return self.counter.value

    def disturbed_write(self, fd: int, data: bytes) -> int:
        """Write a line; if the disturbance comes now, only a part of it."""
        if self.action in ("kill", *ERRORS):
            self.moment("write", lambda: self.write(fd, data[: len(data) // 2]))
        else:
            self.moment("write")
        return self.write(fd, data)

    def disturbed_fsync(self, fd: int) -> None:
        """Sync a file; if a kill comes now, a temporary file is only half written."""

        def halve() -> None:
            if os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
                os.ftruncate(fd, os.fstat(fd).st_size // 2)

        self.moment("fsync", halve if self.action == "kill" else None)
        self.fsync(fd)

    def audit(self, event: str, arguments: tuple) -> None:
        if event == "open":
            if not arguments[2] & (os.O_WRONLY | os.O_RDWR):
                return
        elif event not in CHANGES:
            return
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(self.folder):
            self.moment(event)

    def moment(self, event: str, halve: Callable[[], Any] | None = None) -> None:
        """Count a moment. If the disturbance comes now, call `halve` before it."""
        with self.counter.get_lock():  # another process could take the moment
            self.counter.value += 1
            count = self.counter.value
            if count == self.at and halve is not None:
                halve()
        if self.action in ERRORS:
            # A full disk stays full, but files can be removed.
            lasting = event in ("open", "os.mkdir", "write", "fsync")
            if count == self.at or (count > self.at > 0 and lasting):
                number = ERRORS[self.action]
                raise OSError(number, os.strerror(number))
        elif count == self.at and self.action == "kill":
            os.kill(self.process, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)  # a worker; the others must end by themselves
        elif count == self.at and self.action == "term":
            os.kill(self.process, signal.SIGTERM)


def run_program(request: dict, folder: Path) -> None:
    """Run a program in this process, and write its output and the number of moments to files."""
    for fd, name in enumerate(("out", "err"), 1):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), fd)
    program, disturbance = request["program"], None
    if "folder" in request:
        disturbance = Disturbance(request["folder"], request["action"], request["at"])
    os.chdir(request.get("cwd", "."))
    sys.argv = [program, *request["arguments"]]
    sys.path[0] = str(Path(program).parent)
    status = 0
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as error:  # as Python itself reports it
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
    except BaseException:  # the program does not handle it
        status = 1
        sys.excepthook(*sys.exc_info())
    if disturbance is not None:
        (folder / "moments").write_text(str(disturbance.count))
    sys.exit(status)


def answer(request: dict) -> dict:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reader, writer = os.pipe()
        fork = multiprocessing.get_context("fork")
        child = fork.Process(target=run_program, args=(request, folder))
        child.start()
        os.close(writer)
        child.join()
        os.read(reader, 1)  # returns when the workers of the process have ended, too
        os.close(reader)
        out, err = ((folder / name).read_text() for name in ("out", "err"))
        moments = folder / "moments"
        count = int(moments.read_text()) if moments.exists() else 0
    return {"status": child.exitcode, "out": out, "err": err, "moments": count}


if __name__ == "__main__":
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(answer(json.loads(line))) + "\n")
        sys.stdout.flush()
