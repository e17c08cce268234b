"""Images per second, with a clock that the test controls."""

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


class Answer:
    """A prediction whose argmax takes some time."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def argmax(self, dim):
        assert dim == 0
        self.clock.now += self.seconds


class Model(nn.Module):
    """Takes 100 seconds for the first batch and `seconds` for each other."""

    def __init__(self, clock, seconds=0, to_decide=0):
        super().__init__()
        self.clock, self.seconds, self.to_decide, self.calls = clock, seconds, to_decide, 0

    def forward(self, x):
        self.calls += 1
        self.clock.now += self.seconds if self.calls > 1 else 100
        return [{"sem_seg": Answer(self.clock, self.to_decide)} for _ in x]


def loop(evaluator, model, clock, batches):
    """Loading a batch takes three seconds, evaluating it takes one."""
    evaluator.reset()
    for batch in batches:
        clock.now += 3
        model(torch.zeros(batch))
        clock.now += 1
        evaluator.process([{}] * batch, [{}] * batch)


def test_by_hand(clock):
    model = Model(clock, seconds=2)
    with SpeedEvaluator(model) as evaluator:
        loop(evaluator, model, clock, [1] * 7)
        clock.now += 1000  # what other evaluators do at the end
        result = evaluator.evaluate()["speed"]
        assert result["images"] == 7
        assert result["images_per_second"] == pytest.approx(7 / (7 * 4 + 6 * 2 + 100))
        assert result["model_images_per_second"] == pytest.approx(1 / 2)
        loop(evaluator, model, clock, [3, 1])
        assert evaluator.evaluate()["speed"]["images_per_second"] == pytest.approx(4 / 12)
    model(torch.zeros(1))
    assert evaluator._calls == [2, 2]  # no longer measured


def test_argmax_is_part_of_the_model_time(clock):
    model = Model(clock, seconds=2, to_decide=3)
    with SpeedEvaluator(model) as evaluator:
        loop(evaluator, model, clock, [1] * 7)
        result = evaluator.evaluate()["speed"]
    assert result["model_images_per_second"] == pytest.approx(1 / 5)
    assert result["images_per_second"] == pytest.approx(7 / (7 * 4 + 6 * 2 + 100 + 7 * 3))


def test_output_without_segmentation(clock):
    class Other(Model):
        def forward(self, x):
            self.clock.now += 2
            return [{"proposals": None} for _ in x]

    model = Other(clock)
    with SpeedEvaluator(model) as evaluator:
        loop(evaluator, model, clock, [1, 1])
        assert evaluator.evaluate()["speed"]["model_images_per_second"] == pytest.approx(1 / 2)


def test_processes_are_added_up(clock, monkeypatch):
    """Two images in 108 seconds here; another process had three in 10, 2.5 of them in the model."""
    gathered = []
    monkeypatch.setattr(
        speed.comm, "gather", lambda mine: gathered.append(mine) or [mine, (3, 10.0, 3, 2.5)]
    )
    model = Model(clock)
    with SpeedEvaluator(model) as evaluator:
        loop(evaluator, model, clock, [1, 1])
        result = evaluator.evaluate()["speed"]
    assert gathered == [(2, 108.0, 1, 0.0)]
    assert result == {
        "images": 5,
        "images_per_second": pytest.approx(5 / 108),
        "model_images_per_second": pytest.approx(4 / 2.5),
    }


def test_no_images(clock):
    with SpeedEvaluator(Model(clock)) as evaluator:
        loop(evaluator, None, clock, [])
        assert evaluator.evaluate()["speed"]["images"] == 0
