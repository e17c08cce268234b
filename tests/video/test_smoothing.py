"""Averages over time, also in a resumed run."""

import json

import pytest
import torch
from torch import nn

from dcp_clip.modeling import DCPCLIP
from dcp_clip.structures import SemSegProposals
from dcp_clip.video.smoothing import SmoothedModel
from dcp_clip.vocabulary import Vocabulary

COUNT = 7  # frames of the clip


def test_a_resumed_run_with_smoothing_starts_with_the_frames_before(run, tmp_path):
    out = tmp_path / "out"
    assert run("--smoothing", "0.3", "--only", "labels") == (0, COUNT)
    before = [path.read_bytes() for path in sorted((out / "clip").iterdir())]
    text = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(text[:5]))
    assert run("--smoothing", "0.3", "--only", "labels") == (0, COUNT)  # five again, then two
    assert [path.read_bytes() for path in sorted((out / "clip").iterdir())] == before
    assert not (out / "clip_overlay.mp4").exists()
    with pytest.raises(SystemExit, match="--smoothing is 1.5"):
        run("--smoothing", "1.5", "--overwrite")
    assert [path.read_bytes() for path in sorted((out / "clip").iterdir())] == before


def test_a_model_without_logits_is_refused_before_results_are_removed(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run("--only", "labels") == (0, COUNT)
    before = sorted(path.read_bytes() for path in (out / "clip").iterdir())
    monkeypatch.setattr(DCPCLIP, "gives_logits", False, raising=False)
    with pytest.raises(SystemExit, match="'DCPCLIP' gives labels without logits"):
        run("--smoothing", "0.3", "--only", "labels", "--overwrite")
    assert sorted(path.read_bytes() for path in (out / "clip").iterdir()) == before


@pytest.mark.parametrize(("weight", "calls"), [("0", 2), ("0.02", 5), ("0.5", 6)])
def test_each_gap_in_the_results_is_smoothed_with_the_frames_before(run, tmp_path, weight, calls):
    """The average needs 0, 2 or all frames before the missing frames 1 and 5."""
    out = tmp_path / "out"
    assert run("--smoothing", weight, "--only", "labels") == (0, COUNT)
    before = [path.read_bytes() for path in sorted((out / "clip").iterdir())]
    text = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(text[:1] + text[2:5] + text[6:]))
    assert run("--smoothing", weight, "--only", "labels") == (0, calls)
    records = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    assert sorted(record["frame"] for record in records) == [*range(COUNT)]
    assert [path.read_bytes() for path in sorted((out / "clip").iterdir())] == before


class Frames(nn.Module):
    """Gives the logits of prepared frames: maps (K, 1, 1) by category."""

    def __init__(self, *frames):
        super().__init__()
        self.frames = iter(frames)

    def forward(self, inputs):
        frame = next(self.frames)
        ids, maps = torch.tensor([*frame]), torch.tensor([*frame.values()]).view(-1, 1, 1)
        proposals = {"ids": ids, "scores": ids / 10}
        return [{"sem_seg": SemSegProposals(maps, ids, 9), "proposals": proposals}]


def test_the_average_is_of_each_category():
    frames = {3: 4.0, 5: 2.0}, {5: 6.0, 7: 1.0}, {1: 0.0, 2: 1.0}
    model = SmoothedModel(Frames(*frames), 0.5)
    (first,), (second,), (third,) = (model([{}]) for _ in frames)
    assert first["sem_seg"].category_ids.tolist() == [3, 5]
    # 3 is missing in the second frame (lowest: 1), and 7 in the first (lowest: 2).
    means = dict(zip(second["sem_seg"].category_ids.tolist(), second["sem_seg"].maps.flatten()))
    assert means == {5: 4.0, 7: 1.5, 3: 2.5}
    assert second["proposals"]["scores"].tolist() == pytest.approx([0.5, 0.7, 0.3])
    assert third["sem_seg"].category_ids.tolist() == [1, 2, 5, 7]  # at most twice K
    assert SmoothedModel(Frames(), 0.6).memory == 14 and SmoothedModel(Frames(), 0).memory == 0


def test_another_vocabulary_starts_a_new_average():
    frames = {0: 4.0, 1: 2.0}, {0: 0.0, 1: 6.0}
    first, second = Vocabulary(["cat", "dog"]), Vocabulary(["wall", "sky"])
    model = SmoothedModel(Frames(*frames), 0.5)
    model([{"vocabulary": first}])
    (found,) = model([{"vocabulary": second}])
    assert found["sem_seg"].maps.flatten().tolist() == [0.0, 6.0]
    with pytest.raises(ValueError, match="keeps no images"):
        model.encode_image(None)
