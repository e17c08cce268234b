"""Images per second by a clock that the test turns."""

import pytest
import torch
from torch import nn

from dcp_clip.evaluation import SpeedEvaluator, speed


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    return clock


def loop(evaluator, model, clock, batches):
    """Three seconds of loading and one of scoring a batch."""
    evaluator.reset()
    for batch in batches:
        clock.now += 3
        model(torch.zeros(batch))
        clock.now += 1
        evaluator.process([{}] * batch, [{}] * batch)


def test_by_hand(clock):
    class Model(nn.Module):
        def forward(self, x):
            clock.now += 2 if calls else 100  # the first call is slow
            calls.append(len(x))

    calls, model = [], Model()
    with SpeedEvaluator(model) as evaluator:
        loop(evaluator, model, clock, [1] * 7)
        clock.now += 1000  # what other evaluators do at the end
        result = evaluator.evaluate()["speed"]
        assert result["images"] == 7
        assert result["images_per_second"] == pytest.approx(7 / (7 * 4 + 6 * 2 + 100))
        assert result["model_images_per_second"] == pytest.approx(1 / 2)
        loop(evaluator, model, clock, [3, 1])
        assert evaluator.evaluate()["speed"]["images_per_second"] == pytest.approx(4 / 12)
    calls.clear()
    model(torch.zeros(1))
    assert evaluator._calls == [2, 2]  # no longer watched


def test_processes_are_added_up(clock, monkeypatch):
    """Two images in 8 seconds here; another process had three in 10, 2.5 of them in the model."""
    gathered = []
    monkeypatch.setattr(
        speed.comm, "gather", lambda mine: gathered.append(mine) or [mine, (3, 10.0, 3, 2.5)]
    )
    model = nn.Identity()
    with SpeedEvaluator(model) as evaluator:
        loop(evaluator, model, clock, [1, 1])
        result = evaluator.evaluate()["speed"]
    assert gathered == [(2, 8.0, 1, 0.0)]
    assert result == {
        "images": 5,
        "images_per_second": 0.5,
        "model_images_per_second": pytest.approx(4 / 2.5),
    }


def test_no_image_is_no_division_by_zero(clock):
    with SpeedEvaluator(nn.Identity()) as evaluator:
        loop(evaluator, None, clock, [])
        assert evaluator.evaluate()["speed"]["images"] == 0
