"""Parallel work on files: order, errors, Ctrl-C, and processes that are killed."""

import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation import convert
from dcp_clip.data.preparation.convert import count_pixels, run_parallel
from dcp_clip.data.preparation.label_encoding import label_encoding, read_indices
from dcp_clip.utils.atomic_files import WriteError
from dcp_clip.vocabulary.categories import Category

STOPPING = multiprocessing.Event()


def double(x):
    return 2 * x


def fail_on_threes(x):
    if x % 3 == 0:
        raise DatasetError(f"bad {x}")
    return x


def interrupt(args):
    """At the tenth item, send the signals of Ctrl-C; later items wait until the pool is stopping.

    Both signals come: to the worker, and to its parent.
    """
    number, folder = args
    (folder / str(number)).touch()
    if number == 10:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getppid(), signal.SIGINT)
        # Python misses a signal that comes just before its main thread begins to wait for a lock,
        # until the next signal comes.
        while not STOPPING.wait(20):
            os.kill(os.getppid(), signal.SIGINT)
    if number >= 10:
        STOPPING.wait()


def kill_worker(number):
    if number == 10:
        os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(args):
    number, folder = args
    (folder / str(number)).touch()
    raise WriteError(28, "No space left on device", str(folder / str(number)))


# A program whose workers wait; its output ends when all of them have ended.
_WAITING = """
import os, time
from dcp_clip.data.preparation.convert import run_parallel

def wait(number):
    os.write(1, b"started\\n")
    time.sleep(3600)

run_parallel(wait, range(9), workers=2)
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_order_and_errors(workers):
    assert run_parallel(double, range(100), workers=workers) == list(range(0, 200, 2))
    with pytest.raises(DatasetError, match=r"^bad 0 \(33 more files failed\)$"):
        run_parallel(fail_on_threes, range(100), workers=workers)


def test_interrupt_ends_all_workers_soon(tmp_path, monkeypatch):
    """Ctrl-C finishes the items that have begun, and few others."""

    class Pool(ProcessPoolExecutor):
        """A pool that lets its workers continue when it has been told to stop."""

        def shutdown(self, wait=True, *, cancel_futures=False):
            manager = self._executor_manager_thread
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            STOPPING.set()
            if manager is not None:  # which waits for the workers
                manager.join()

    monkeypatch.setattr(convert, "ProcessPoolExecutor", Pool)
    STOPPING.clear()
    with pytest.raises(KeyboardInterrupt):
        run_parallel(interrupt, [(i, tmp_path) for i in range(2000)], workers=2)
    assert not multiprocessing.active_children()
    assert 10 < len(list(tmp_path.iterdir())) < 1000


def test_a_full_disk_ends_all_workers(tmp_path):
    with pytest.raises(WriteError, match="^'.*' cannot be written: No space left on device.$"):
        run_parallel(fill_disk, [(i, tmp_path) for i in range(2000)], workers=2)
    assert not multiprocessing.active_children()
    assert len(list(tmp_path.iterdir())) < 1000


def test_a_worker_that_is_killed_is_one_sentence():
    with pytest.raises(DatasetError, match="A worker process was killed.*fewer --workers"):
        run_parallel(kill_worker, range(50), workers=2)


def test_workers_end_when_the_program_is_killed():
    with subprocess.Popen([sys.executable, "-c", _WAITING], stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == program.stdout.readline() == b"started\n"
        program.kill()
        assert program.stdout.read() == b""  # the end of the last worker


def test_hidden_files_of_macos_are_not_counted(tmp_path):
    sky, tree = (Category(name, (), i, i, None, name) for i, name in enumerate(["sky", "tree"]))
    encoding = label_encoding([sky, tree], read_indices)
    Image.fromarray(np.array([[0, 1, 1, 255]], np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "._a.png").write_bytes(b"attributes")
    assert count_pixels(tmp_path, encoding).tolist() == [1, 2, 1]


def test_unexpected_label_is_named(tmp_path):
    sky, tree = (Category(name, (), i, i, None, name) for i, name in enumerate(["sky", "tree"]))
    encoding = label_encoding([sky, tree], read_indices)
    Image.fromarray(np.array([[0, 1, 3, 300]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="a.png holds the label 3, but there are 2 categories"):
        count_pixels(tmp_path, encoding)


def test_a_new_image_never_has_an_old_label_map(tmp_path, monkeypatch):
    """The disk is full between the two files of a changed pair."""
    categories = [Category(name, (), i, i, None, name) for i, name in enumerate(["sky", "tree"])]
    encoding = label_encoding(categories, read_indices)
    folders = {"image_dir": tmp_path / "images", "label_dir": tmp_path / "labels"}
    for folder in folders.values():
        folder.mkdir()
    pair = (tmp_path / "a.png", tmp_path / "a_label.png")

    def write(size, label):
        pair[0].unlink(missing_ok=True)  # the image of the data set is a link to it
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(pair[0])
        Image.fromarray(np.full(size, label, np.uint8)).save(pair[1])

    def prepare():
        return convert._convert_pair(pair, **folders, encoding=encoding, max_short_side=None)

    write((60, 80), 0)
    assert prepare() and not prepare()
    write((120, 160), 1)
    with monkeypatch.context() as patch:
        patch.setattr(convert, "write_png", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare()
    assert prepare()
    with Image.open(tmp_path / "labels" / "a.png") as label:
        assert label.size == (160, 120) and label.getextrema() == (1, 1)


def test_a_corrected_label_map_is_converted_again(tmp_path):
    categories = [Category(name, (), i, i, None, name) for i, name in enumerate(["sky", "tree"])]
    folders = {"image_dir": tmp_path / "images", "label_dir": tmp_path / "labels"}
    for folder in folders.values():
        folder.mkdir()
    image, label = pair = (tmp_path / "a.png", tmp_path / "a_label.png")
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(image)
    for value in (0, 1):
        Image.fromarray(np.full((6, 8), value, np.uint8)).save(label)
        time = 2_000_000_000 + value  # later than every preparation
        os.utime(label, (time, time))
        encoding = label_encoding(categories, read_indices)
        assert convert._convert_pair(pair, **folders, encoding=encoding, max_short_side=None)
        with Image.open(tmp_path / "labels" / "a.png") as prepared:
            assert prepared.getextrema() == (value, value)
