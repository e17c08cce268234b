"""The memory of the driver does not grow with the number of images.

`pytest tests/bulk/test_driver_memory.py --rows 100000 -s` shows the figures of docs/bulk.md.
"""

import io
import re
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.bulk_run import run
from PIL import Image

pa = pytest.importorskip("pyarrow")
ray = pytest.importorskip("ray")
from ray.cloudpickle import register_pickle_by_value, unregister_pickle_by_value  # noqa: E402

from dcp_clip.bulk import stages  # noqa: E402

SIDE = 64
MODEL = ["--vocabulary", "sky; tree", "--opts", "INPUT.MIN_SIZE_TEST", "0"]
FEW = 1000
GROWTH = 40  # MB; the pixels of 5000 more images are 60 MB


class AtOnce(stages.RunModel):
    """Gives every image the same label map."""

    def __init__(self, **_):
        self.batch_size = 1

    def _input(self, table, i):
        return {}

    def _segment(self, inputs):
        sky = {"id": 0, "name": "sky", "share": 1.0, "score": 0.5}
        labels = pa.compress(np.zeros((SIDE, SIDE), np.uint8), "lz4", asbytes=True)
        return [{"categories": [sky], "labels": labels, "depth": 1}]


def write_shard(path, count):
    rng = np.random.default_rng(0)
    content = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(content, "JPEG")
    with tarfile.open(path, "w") as tar:
        for i in range(count):
            member = tarfile.TarInfo(f"{i:08}.jpg")
            member.size = len(content.getvalue())
            tar.addfile(member, io.BytesIO(content.getvalue()))
    return path


class Peak:
    """The largest private memory of this process while the context is open, in MB."""

    def __enter__(self):
        self.megabytes, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _watch(self):
        while not self._ended.wait(0.05):
            kilobytes = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]
            self.megabytes = max(self.megabytes, int(kilobytes) / 1000)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_driver_stays_small(cluster, request, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "RunModel", AtOnce)
    register_pickle_by_value(sys.modules[__name__])
    peaks = []
    try:
        # The first run loads modules, so it does not count.
        for count in (250, FEW, request.config.getoption("--rows")):
            shard, start = write_shard(tmp_path / f"{count}.tar", count), time.perf_counter()
            with Peak() as peak:
                status = run([shard], tmp_path / str(count), "--partition-size", 250, model=MODEL)
            assert status == 0
            peaks.append(peak.megabytes)
            seconds = time.perf_counter() - start
            sys.stdout.write(f"{count} images: {peak.megabytes:.0f} MB, {seconds:.0f} s\n")
    finally:
        unregister_pickle_by_value(sys.modules[__name__])
    assert peaks[2] - peaks[1] < GROWTH
