"""Bulk runs on a cluster of processes: equal to a single process, also after kills."""

import copy
import functools
import http.server
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.bulk_run import MODEL, label_map, rows, run

pa = pytest.importorskip("pyarrow")
ray = pytest.importorskip("ray")
from dcp_clip.bulk.inputs import find_inputs  # noqa: E402
from dcp_clip.bulk.partitions import BulkFolder  # noqa: E402
from dcp_clip.bulk.stages import (  # noqa: E402
    RunModel,
    _unpack,
    read_partition,
    write_partition,
)
from dcp_clip.data.augmentation import ResizeForTest  # noqa: E402
from dcp_clip.modeling.finite import NonFiniteError  # noqa: E402

ROOT = Path(__file__).parents[2]


@pytest.fixture
def server(photographs):
    """The address of an HTTP server of the photographs; it answers slowly."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            time.sleep(0.2)
            super().do_GET()

        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=photographs)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_equal_to_a_single_process(cluster, predictor, photographs, server, tmp_path, capsys):
    """Files, members of a shard and URLs; errors are rows; another model is refused."""
    urls = [f"{server}/photos/4.png", f"{server}/photos/none.png"]
    (tmp_path / "list.jsonl").write_text("".join(f'{{"file": "{url}"}}\n' for url in urls))
    inputs = [photographs / "photos", photographs / "shard.tar", tmp_path / "list.jsonl"]
    output = tmp_path / "rle"
    options = ["--partition-size", 4, "--actors", "1:2"]
    assert run(inputs, output, *options) == 1  # two images failed
    assert "15 images in 4 partitions, 2 errors" in capsys.readouterr().out
    found = rows(output)
    keys = [(row["file"], row["member"]) for row in found]
    assert keys == sorted(keys) and len(set(keys)) == 15
    good = [row for row in found if row["error"] is None]
    assert len(good) == 13
    for row in good:
        path = row["file"].replace(server, str(photographs))
        if row["member"]:
            with tarfile.open(path) as tar:
                path = tmp_path / row["member"]
                path.write_bytes(tar.extractfile(row["member"]).read())
        expected = predictor(str(path))
        np.testing.assert_array_equal(label_map(row), expected.label_map)
        assert row["categories"] == [vars(category) for category in expected.found]
    bad = {row["file"]: row for row in found if row["error"]}
    damaged = str(photographs / "photos" / "damaged.jpg")
    assert set(bad) == {damaged, urls[1]}
    assert bad[urls[1]]["error"] == f"cannot read {urls[1]}: no such file"
    assert bad[damaged]["error"].startswith(f"cannot read {damaged}: ")
    assert all(row["rle"] is None and row["height"] is None for row in bad.values())
    summary = json.loads((output / "_summary.json").read_text())
    assert summary == {"images": 15, "errors": 2, "partitions": 4}

    # Only a missing partition is segmented again.
    parts = sorted(output.glob("part-*.parquet"))
    before = {part: (part.read_bytes(), part.stat().st_mtime_ns) for part in parts}
    parts[2].unlink()
    assert run(inputs, output, *options) == 1
    assert "3 partitions skipped" in capsys.readouterr().out
    for part in parts:
        assert part.read_bytes() == before[part][0]
        assert (part.stat().st_mtime_ns == before[part][1]) == (part != parts[2])

    # Another vocabulary, or another list, is refused.
    with pytest.raises(SystemExit, match="other settings or images .*vocabulary"):
        run(inputs, output, *options, model=["--vocabulary", "cat; dog", *MODEL[2:]])
    with pytest.raises(SystemExit, match="images was 15 and is 13"):
        run(inputs[:2], output, *options)
    with pytest.raises(SystemExit, match="9 actors and a task that reads images need 10 CPU"):
        run(inputs, output, *options, "--actors", 9)
    with pytest.raises(SystemExit, match="need 1 GPUs, but the cluster has 0"):
        run(inputs, output, *options, "--gpus-per-actor", 1)
    assert {part: part.read_bytes() for part in parts} == {p: x for p, (x, _) in before.items()}


class Refusing(torch.nn.Module):
    """A model that computes NaN for black images."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        if any(not item["image"].any() for item in inputs):
            raise NonFiniteError("the logits are NaN")
        return self.model(inputs)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, RuntimeError])
def test_memory_error_of_the_upsampling(monkeypatch, predictor, photographs, kind):
    """On a GPU, the largest tensors are those of `make_prediction`. A CPU has another error."""
    image = torch.zeros(3, 40, 56, dtype=torch.uint8)
    inputs = [{"image": image, "height": 40, "width": 56, "vocabulary": predictor.vocabulary}] * 2
    stage = object.__new__(RunModel)
    stage.predictor = predictor

    def fail(*_):
        raise kind("out of memory")

    monkeypatch.setattr("dcp_clip.bulk.stages.make_prediction", fail)
    assert stage._segment(inputs) == [{"error": f"{kind.__name__}: out of memory"}] * 2


def test_batches_of_equal_size(cluster, predictor, tmp_path):
    """An image with an error fails alone; the others are nearly equal to those of batches of 1."""
    rng = np.random.default_rng(0)
    for i in range(9):
        size = ((40, 56, 3), (64, 64, 3))[i % 2]
        image = np.zeros(size, np.uint8) if i == 4 else rng.integers(0, 256, size, np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    folder = BulkFolder(str(tmp_path / "out"))
    folder.open(find_inputs([str(tmp_path)]), 9, {})
    batch = pa.table({"partition": [0]})
    images = read_partition(batch, folder, ResizeForTest(predictor.cfg), 16_000_000)
    tables = []
    for batch_size in (1, 3):
        wrapped = copy.copy(predictor)
        wrapped.model = Refusing(predictor.model)
        stage = RunModel(ray.put((predictor, None)), "cpu", 1, batch_size)
        stage.predictor = wrapped
        assert max(map(len, stage._batches(_unpack(images)[1]))) == batch_size
        write_partition(stage(images), folder, predictor.vocabulary, "png", {})
        tables.append(rows(tmp_path / "out"))
    for alone, together in zip(*tables, strict=True):
        if alone["file"].endswith("/4.png"):
            assert alone == together and alone["png"] is None
            assert alone["error"] == "NonFiniteError: the logits are NaN"
            continue
        assert np.mean(label_map(alone) == label_map(together)) > 0.99
        for one, other in zip(alone["categories"], together["categories"], strict=True):
            assert one == pytest.approx(other, abs=1e-2) and together["error"] is None


# The tests below kill processes of a run that takes some time. They need `pytest --kills 1`.


@pytest.fixture(scope="session")
def many(photographs, tmp_path_factory):
    """A list of 120 images, which are links to 12."""
    folder = tmp_path_factory.mktemp("many")
    sources = sorted(photographs.glob("photos/**/*.png"))
    for i in range(120):
        (folder / f"{i:03}.png").hardlink_to(sources[i % len(sources)])
    return folder


@pytest.fixture(scope="session")
def undisturbed(request, cluster, many, tmp_path_factory):
    """The files of a run without a kill."""
    if not request.config.getoption("--kills"):
        pytest.skip("give --kills 1")
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert run([many], output, "--partition-size", 4, "--actors", 2) == 0
    return {part.name: part.read_bytes() for part in output.glob("part-*")}


def contents(output):
    return {part.name: part.read_bytes() for part in output.glob("part-*")}


def after_parts(output, count, action):
    """Start a thread that acts when the output has some partitions."""

    def wait():
        while len(list(output.glob("part-*"))) < count:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def workers(cluster, name):
    """Return the process ids of the workers of the cluster with this text in their title."""
    raylets = {
        process.process.pid
        for node in cluster.list_all_nodes()
        for process in node.all_processes["raylet"]
    }
    found = []
    for entry in Path("/proc").iterdir():
        try:
            title = (entry / "cmdline").read_bytes().decode(errors="replace")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if parent in raylets and name in title:
            found.append(int(entry.name))
    return found


def test_killed_worker(cluster, many, undisturbed, tmp_path):
    killed = []

    def kill():
        killed.append(workers(cluster, "MapWorker(MapBatches(RunModel)")[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = after_parts(tmp_path / "out", 3, kill)
    assert run([many], tmp_path / "out", "--partition-size", 4, "--actors", 2) == 0
    thread.join()
    assert killed and contents(tmp_path / "out") == undisturbed


def test_killed_node(cluster, many, undisturbed, tmp_path):
    node = cluster.add_node(num_cpus=2)
    thread = after_parts(
        tmp_path / "out", 3, lambda: cluster.remove_node(node, allow_graceful=False)
    )
    assert run([many], tmp_path / "out", "--partition-size", 4, "--actors", 4) == 0
    thread.join()
    assert contents(tmp_path / "out") == undisturbed


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("own_ray", [False, True])
def test_killed_driver(cluster, many, undisturbed, tmp_path, sent, own_ray):
    output = tmp_path / "out"
    address = [] if own_ray else ["--address", cluster.address]
    options = ["--input", many, "--output", output, "--partition-size", 4, "--actors", 2, *address]
    command = [sys.executable, ROOT / "tools" / "segment_many.py", *options, *MODEL]
    process = subprocess.Popen(list(map(str, command)), start_new_session=True)
    after_parts(output, 3, lambda: process.send_signal(sent)).join()
    assert process.wait() == (130 if sent == signal.SIGINT else -signal.SIGKILL)
    # The workers of the killed driver may still write what they have begun.
    part = contents(output)
    assert 3 <= len(part) < 30 and part.items() <= undisturbed.items()
    assert run([many], output, "--partition-size", 4, "--actors", 2) == 0
    assert contents(output) == undisturbed


def test_full_disk(cluster, many, undisturbed, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(output)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        with pytest.raises(SystemExit, match="cannot be written: No space left on device"):
            run([many], output, "--partition-size", 4)
        part = contents(output)
        assert 0 < len(part) < 30 and part.items() <= undisturbed.items()
        assert not list(output.glob(".*.part"))
        subprocess.run(["mount", "-o", "remount,size=1m", str(output)], check=True)
        assert run([many], output, "--partition-size", 4) == 0
        assert contents(output) == undisturbed
    finally:
        subprocess.run(["umount", "-l", str(output)], check=True)
