"""Fixtures for tests with hostile files, and with disks that refuse changes."""

import builtins
import io
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

# Functions that need room or permission, with the index of the path that they create.
CREATING = {"mkdir": 0, "replace": 1, "rename": 1, "link": 1, "symlink": 1}


class Disk:
    """Counts the changes of the files in a folder, and refuses them from a given one on.

    Changes are calls that open a file for writing, write to it, sync it, or create a path. Removing
    stays possible, as on a full disk. A write that is refused writes the first half.

    Args:
        folder: the folder; other folders are not disturbed.
        number: `errno` of the errors.
        at: number of the first change that is refused, from 1.
    """

    def __init__(self, folder: Path, number: int, at: int) -> None:
        self.folder, self.number, self.at, self.count = str(folder), number, at, 0
        self._descriptors: set[int] = set()

    @property
    def refused(self) -> bool:
        """Whether a change was refused."""
        return self.count >= self.at

    def check(self, path: Any) -> None:
        """Count a change, and raise the error if it is refused."""
        self.count += 1
        if self.refused:
            raise OSError(self.number, os.strerror(self.number), path and os.fspath(path))

    def covers(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    @contextmanager
    def connected(self) -> Iterator["Disk"]:
        """Replace the functions of Python that change files, in this process."""
        true = {name: getattr(os, name) for name in (*CREATING, "open", "write", "fsync", "close")}
        disk, true_open = self, builtins.open

        class File(io.FileIO):
            def write(self, data: Any) -> int:
                data = memoryview(data).cast("B")
                if disk.count + 1 >= disk.at and len(data) > 1:
                    super().write(data[: len(data) // 2])
                disk.check(None)
                return super().write(data)

        def open_file(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if not disk.covers(path) or not set(mode) & set("wax+"):
                return true_open(path, mode, *args, **kwargs)
            disk.check(path)
            assert "+" not in mode and not args, "the disk has no such file"
            file = File(path, mode.replace("b", "").replace("t", ""))
            disk._descriptors.add(file.fileno())
            buffered = io.BufferedWriter(file)
            options = {k: v for k, v in kwargs.items() if v is not None and k != "buffering"}
            return buffered if "b" in mode else io.TextIOWrapper(buffered, **options)

        def open_descriptor(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            changes = disk.covers(path) and flags & (os.O_WRONLY | os.O_RDWR)
            if changes:
                disk.check(path)
            descriptor = true["open"](path, flags, *args, **kwargs)
            if changes:
                disk._descriptors.add(descriptor)
            return descriptor

        def close(descriptor: int) -> None:
            disk._descriptors.discard(descriptor)
            true["close"](descriptor)

        def write(descriptor: int, data: bytes) -> int:
            if descriptor in disk._descriptors:
                if disk.count + 1 >= disk.at:
                    true["write"](descriptor, data[: len(data) // 2])
                disk.check(None)
            return true["write"](descriptor, data)

        def fsync(descriptor: int) -> None:
            if descriptor in disk._descriptors:
                disk.check(None)
            true["fsync"](descriptor)

        def create(name: str) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                if disk.covers(path := args[CREATING[name]]) and not os.path.isdir(path):
                    disk.check(args[0])  # errors name the source first
                return true[name](*args, **kwargs)

            return call

        replaced = {"open": open_descriptor, "write": write, "fsync": fsync, "close": close}
        replaced |= {name: create(name) for name in CREATING}
        with ExitStack() as stack:
            for name, function in replaced.items():
                stack.enter_context(mock.patch.object(os, name, function))
            for module in (builtins, io):
                stack.enter_context(mock.patch.object(module, "open", open_file))
            yield disk


@pytest.fixture(scope="session")
def refusing_disk():
    """The class `Disk`."""
    return Disk


@pytest.fixture
def message_of(capsys):
    """``message_of(function, *arguments)``: the error that a program ends with, or ""."""

    def run(function, *arguments):
        capsys.readouterr()
        try:
            status = function(*arguments)
        except SystemExit as error:
            status = error.code
        except OSError as error:  # what every program turns into its message
            return str(error)
        if isinstance(status, int) and status:
            return capsys.readouterr().err.strip().splitlines()[-1]
        return status if isinstance(status, str) else ""

    return run


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """The file that exists if a hostile file ran code; the test fails if it does."""
    path = tmp_path / "marker"
    monkeypatch.setenv("HOSTILE_MARKER", str(path))
    os.system('touch "$HOSTILE_MARKER"')
    assert path.exists(), "the hostile files of these tests have no effect here"
    path.unlink()
    # A module in Python's path, as the name in imports.yaml; no program may import it.
    code = "import os\nopen(os.environ['HOSTILE_MARKER'], 'w')\n"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hostile_module.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    yield path
    assert not path.exists(), "a file ran code"
