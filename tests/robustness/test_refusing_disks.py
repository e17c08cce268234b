"""A full disk and a folder without permission, at every single change that a program makes.

Each case runs a program until it makes no change that is refused. After each error, old files are
whole, no file is incomplete, and the same command gives the same files as an undisturbed run.
"""

import errno
import logging
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from dcp_clip.benchmarking.schedule import draw_schedule
from dcp_clip.config import setup_cfg
from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.data.label_maps import IGNORE_LABEL_16
from dcp_clip.data.preparation.label_encoding import label_encoding, read_indices
from dcp_clip.data.preparation.program import prepare_dataset, run_program
from dcp_clip.engine.checkpoints.safe_checkpointer import SafeCheckpointer
from dcp_clip.evaluation import MeanIoUEvaluator
from dcp_clip.evaluation.report import EvaluationReport
from dcp_clip.experiments import vocabulary_study
from dcp_clip.modeling.clip import text_cache
from dcp_clip.predictor import Predictor
from dcp_clip.structures import SemSegProposals, TextFeatures
from dcp_clip.vocabulary.categories import Category

ERRORS = (errno.ENOSPC, errno.EACCES)


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder, without the times in results and the lock of a run."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            data = re.sub(rb'"milliseconds": [0-9.]+', b"", path.read_bytes())
            files[path.relative_to(folder).as_posix()] = data
    return files


@pytest.fixture
def sweep(refusing_disk, tmp_path, monkeypatch):
    """``sweep(start, before)``: refuse each change of ``start(folder)``; the number of refusals.

    `start` runs a program, and returns the message of its error, or "". `before` are the files in
    the folder, by default an old version of each file that the program writes.
    """

    def run(start, before=None):
        folder = tmp_path / "out"
        folder.mkdir()
        assert start(folder) == ""
        new, count = contents(folder), 0
        before = dict.fromkeys(new, b"an old file") if before is None else before
        for number in ERRORS:
            for at in range(1, 1000):
                shutil.rmtree(folder)
                folder.mkdir()
                for name, data in before.items():
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (folder / name).write_bytes(data)
                with refusing_disk(folder, number, at).connected() as disk:
                    message = start(folder)
                if not disk.refused:
                    assert message == ""
                    break
                count += 1
                assert os.strerror(number) in message and str(folder) in message, (at, message)
                assert "\n" not in message
                found = contents(folder)
                for name, data in found.items():
                    lines = name.endswith(".jsonl") and new[name].startswith(data)
                    assert data in (before.get(name), new.get(name)) or lines, (number, at, name)
                assert found.keys() >= before.keys()
                assert start(folder) == ""
                assert contents(folder) == {**before, **new}, (number, at)
        assert count >= 2 * 4  # at least to open, write, sync and rename a file
        return count

    return run


@pytest.fixture
def photographs(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, color in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (20, 16), color).save(folder / f"{name}.png")
    return folder


class FakeModel(torch.nn.Module):
    """Red, green and blue pixels are the categories 0, 1 and 2."""

    def set_vocabulary(self, vocabulary):
        pass

    def forward(self, batched_inputs):
        (x,) = batched_inputs
        logits = F.interpolate(x["image"][None].float(), (x["height"], x["width"]))[0]
        proposals = {"ids": torch.arange(3), "scores": torch.zeros(3)}
        return [{"sem_seg": SemSegProposals(logits, torch.arange(3), 3), "proposals": proposals}]


@pytest.fixture
def demo(load_program, monkeypatch, photographs):
    """``demo(folder)``: run the demo with a model without weights."""
    program = load_program("demo/demo.py")
    cfg = setup_cfg(opts=["INPUT.MIN_SIZE_TEST", "16", "MODEL.DEVICE", "cpu"])
    predictor = Predictor(cfg, "red; green; blue", model=FakeModel())
    monkeypatch.setattr(Predictor, "from_config_file", lambda *args, **kwargs: predictor)
    arguments = ["--input", str(photographs), "--vocabulary", "red; green; blue", "--output"]
    return lambda folder: program.main([*arguments, str(folder)])


def test_folder_run(sweep, message_of, demo):
    assert sweep(lambda folder: message_of(demo, folder), before={}) > 50


def test_montage(sweep, message_of, demo, load_program, tmp_path):
    results = tmp_path / "results"
    assert demo(results) == 0
    program = load_program("tools/montage.py")
    sweep(
        lambda folder: message_of(program.main, [str(results), "--output", str(folder / "a.png")])
    )


@pytest.mark.parametrize("categories", [3, 300])
def test_preparation(sweep, tmp_path, photographs, caplog, categories):
    """JPEG with PNG or TIFF, and the file of the settings; then linked photographs."""
    labels = tmp_path / "labels"
    labels.mkdir()
    for path in photographs.iterdir():
        Image.fromarray(np.eye(16, 20, dtype=np.uint8)).save(labels / path.name)
    names = [Category(f"name{i}", (), i, i, None, f"name{i}") for i in range(categories)]
    encoding = label_encoding(
        names, read_indices, ignore_label=255 if categories < 255 else IGNORE_LABEL_16
    )
    pairs = [(path, labels / path.name) for path in sorted(photographs.iterdir())]

    def start(folder, shrink=8):
        def prepare(root, workers):
            settings = {"short_side": "8"} if shrink else None
            prepare_dataset(
                root,
                {"val": pairs},
                encoding,
                workers=workers,
                max_short_side=shrink,
                settings=settings,
            )

        caplog.clear()
        status = run_program(prepare, root=folder, workers=1)
        return caplog.messages[-1] if status else ""

    assert sweep(start, before={}) > 30
    shutil.rmtree(tmp_path / "out")
    assert sweep(lambda folder: start(folder, shrink=None), before={}) > 15


def test_export_weights(sweep, message_of, load_program, tmp_path):
    program = load_program("tools/export_weights.py")
    torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "model.pth")

    def start(folder):
        arguments = [str(tmp_path / "model.pth"), str(folder / "weights.pth")]
        return message_of(program.export, program.parse_args(arguments))

    sweep(start)


def test_checkpoints(sweep, message_of, tmp_path):
    """A checkpoint can always be resumed: the new one, or the one before."""

    def save(folder, iteration):
        torch.manual_seed(iteration)
        checkpointer = SafeCheckpointer(torch.nn.Linear(2, 2), str(folder))
        return message_of(lambda: checkpointer.save(f"model_{iteration:07d}", iteration=iteration))

    def start(folder):
        message = save(folder, 3)
        if (folder / "model_0000001.pth").exists():
            assert SafeCheckpointer(torch.nn.Linear(2, 2), str(folder)).get_checkpoint_file()
        return message

    first = tmp_path / "first"
    first.mkdir()
    assert save(first, 1) == ""
    assert sweep(start, before=contents(first)) == 2 * 2 * 4


def test_text_cache(sweep, caplog):
    """The cache is optional: there is one warning, and the next program writes the file."""
    features = TextFeatures(F.normalize(torch.ones(3, 8), dim=-1), torch.arange(3)[:, None])

    def start(folder):
        text_cache._warn_once.cache_clear()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            for name in "ab":
                path = folder / "text" / f"{name * 64}.pt"
                text_cache.write_features(path, features)
        assert len(caplog.records) <= 1
        return caplog.messages[0] if caplog.messages else ""

    sweep(start, before={})


def test_reports(sweep, message_of, load_program, monkeypatch, tmp_path):
    """The files of the programs that measure. Measuring and drawing take long and are replaced."""
    monkeypatch.setattr(Figure, "savefig", lambda self, file, **options: file.write(b"a plot"))
    benchmark = load_program("tools/benchmark.py")
    row = {"categories": 9, "encoder_seconds": 1.0, "added_seconds": 0.5, "relative_time": 1.5}
    parts = {"rows": [row], "stages": [{"a": 1}], "operators": [{"a": 1}], "clip": "tiny"}
    monkeypatch.setattr(benchmark, "benchmark", lambda args, file: {"weights": "w", **parts})
    arguments = ["--config-file", "a.yaml", "--device", "cpu"]

    def start_benchmark(folder):
        files = [f"--{name}={folder / name}" for name in ("json", "plot", "profile")]
        return message_of(benchmark.main, [*arguments, *files])

    assert sweep(start_benchmark) > 20
    shutil.rmtree(tmp_path / "out")

    study = load_program("tools/vocabulary_study.py")
    row = {"special": "", "names": 9, "milliseconds": 1.0, "mIoU_things": None, "mIoU": 1.0}
    result = {"rows": [{**row, "recall": 1.0}], "own_names": 9}
    monkeypatch.setattr(vocabulary_study, "run_study", lambda *args, **kwargs: result)
    monkeypatch.setattr(study, "format_report", lambda args, result: "")

    def start_study(folder):
        files = [f"--{name}={folder / name}" for name in ("json", "plot")]
        arguments = ["--config-file", "a.yaml", "--dataset", "a", "--sizes", "9", *files]
        return message_of(study.main, arguments)

    sweep(start_study)
    shutil.rmtree(tmp_path / "out")

    dry_run = load_program("tools/dry_run.py")
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def report(cfg, args):
        draw_schedule(scheduler, 10, {"all": 1.0}, args.output / "schedule.png")
        return "the report"

    monkeypatch.setattr(dry_run, "load_config", lambda args: None)
    monkeypatch.setattr(dry_run, "report", report)
    arguments = ["--config-file", "a.yaml", "--output"]
    sweep(lambda folder: message_of(dry_run.main, [*arguments, str(folder / "dry")]))


@pytest.fixture
def evaluator(photographs, tmp_path):
    """``evaluator(folder)``: an evaluator that has seen its images."""
    name = "test_refusing_disks_sem_seg"
    (tmp_path / "labels").mkdir()
    for path in photographs.iterdir():
        Image.fromarray(np.eye(16, 20, dtype=np.uint8)).save(tmp_path / "labels" / path.name)
    register_sem_seg(name, photographs, tmp_path / "labels", ["sky", "tree"], expected_count=2)

    def make(folder):
        evaluator = MeanIoUEvaluator(name, output_dir=str(folder))
        evaluator.reset()
        logits = torch.eye(16, 20)[None].repeat(2, 1, 1)
        for record in DatasetCatalog.get(name):
            evaluator.process([record], [{"sem_seg": logits}])
        return evaluator

    yield make
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


def test_evaluation(sweep, message_of, evaluator):
    def start(folder):
        def evaluate():
            results = evaluator(folder / "inference").evaluate()
            report = EvaluationReport(["a"], {"torch": "2"})
            report.add("a", results)
            report.write(folder)

        return message_of(evaluate)

    assert sweep(start) == 2 * 4 * 4
