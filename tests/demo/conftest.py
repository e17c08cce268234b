"""The demo with a model without weights, in an empty folder."""

import json
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dcp_clip.config import setup_cfg
from dcp_clip.predictor import Predictor
from dcp_clip.structures import SemSegProposals
from dcp_clip_cli import segment


class FakeModel(torch.nn.Module):
    """Red, green and blue pixels are the categories 0, 1 and 2."""

    interrupt_at = None
    interrupt_with = signal.SIGINT  # the same as Ctrl-C

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def set_vocabulary(self, vocabulary) -> None:
        self.count = len(vocabulary)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        (x,) = batched_inputs
        self.calls += 1
        if self.calls == self.interrupt_at:
            signal.raise_signal(self.interrupt_with)
        logits = F.interpolate(x["image"][None].float(), (x["height"], x["width"]))[0]
        ids = torch.arange(3)
        proposals = {"ids": ids, "scores": ids / 10}
        return [{"sem_seg": SemSegProposals(logits, ids, self.count), "proposals": proposals}]


@pytest.fixture(scope="module")
def demo():
    return segment


@pytest.fixture
def fake_model(monkeypatch, tmp_path) -> FakeModel:
    """Replace the model of the demo by one without weights, and change to an empty folder."""
    model = FakeModel()

    def from_config_file(config_file, weights, opts, vocabulary, imports=()):
        cfg = setup_cfg(opts=["INPUT.MIN_SIZE_TEST", "32", *opts])
        return Predictor(cfg, vocabulary or "red; green; blue", model=model)

    monkeypatch.setattr(Predictor, "from_config_file", from_config_file)
    monkeypatch.chdir(tmp_path)
    return model


@pytest.fixture
def save():
    """``save(path, color, size)``: write an image of one colour."""

    def write(path: str, color="red", size=(30, 20), **options) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color).save(path, **options)

    return write


@pytest.fixture
def read_results():
    """``read_results(folder)``: the lines of results.jsonl."""

    def read(output: str) -> list[dict]:
        text = Path(output, "results.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    return read


@pytest.fixture
def files_in():
    """``files_in(folder)``: the files below a folder except hidden ones and the manifest."""

    def find(folder: str) -> set[str]:
        names = (p.relative_to(folder) for p in Path(folder).rglob("*") if p.is_file())
        return {p.as_posix() for p in names if p.name != ".lock"} - {"run.json"}

    return find
