"""Parallel work on files: order, errors, and Ctrl-C."""

import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.convert import count_pixels, run_parallel
from dcp_clip.data.preparation.label_encoding import label_encoding, read_indices
from dcp_clip.vocabulary.categories import Category


def double(x):
    return 2 * x


def fail_on_threes(x):
    if x % 3 == 0:
        raise DatasetError(f"bad {x}")
    return x


def interrupt(args):
    """At the tenth item, send the signals of Ctrl-C: to the worker and to its parent."""
    number, folder = args
    (folder / str(number)).touch()
    time.sleep(0.02 if number > 10 else 0)  # long enough for the parent to stop the pool
    if number == 10:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getppid(), signal.SIGINT)


@pytest.mark.parametrize("workers", [1, 3])
def test_order_and_errors(workers):
    assert run_parallel(double, range(100), workers=workers) == list(range(0, 200, 2))
    with pytest.raises(DatasetError, match=r"^bad 0 \(33 more files failed\)$"):
        run_parallel(fail_on_threes, range(100), workers=workers)


def test_interrupt_ends_all_workers_soon(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_parallel(interrupt, [(i, tmp_path) for i in range(2000)], workers=2)
    done = len(list(tmp_path.iterdir()))
    assert 10 < done < 1000
    time.sleep(0.1)
    assert len(list(tmp_path.iterdir())) == done


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
