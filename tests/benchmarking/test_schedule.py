"""The drawn learning rates are those of the training."""

import pytest
import torch
from torch import nn

from dcp_clip.benchmarking.schedule import describe_schedule, draw_schedule, relative_rates
from dcp_clip.engine import Trainer


@pytest.mark.parametrize("name", ["WarmupCosineLR", "WarmupMultiStepLR"])
def test_relative_rates_are_those_of_the_scheduler(make_cfg, name):
    options = {"SOLVER.LR_SCHEDULER_NAME": name, "SOLVER.MAX_ITER": 50, "SOLVER.WARMUP_ITERS": 10}
    cfg = make_cfg(opts={**options, "SOLVER.STEPS": (20, 40)})
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
    for rate in relative_rates(scheduler, range(50)):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * rate, abs=1e-9)
        scheduler.step()


def test_a_part_with_the_rate_0(make_cfg, tmp_path):
    """For example with SOLVER.IMAGE_LR_MULTIPLIER 0."""
    parameters = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.0, 0.5)]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scheduler = Trainer.build_lr_scheduler(make_cfg(opts={"SOLVER.MAX_ITER": 50}), optimizer)
    assert max(relative_rates(scheduler, range(50))) == pytest.approx(1, abs=0.1)
    draw_schedule(scheduler, 50, {"backbone": 0.0, "proposal": 0.5}, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size


@pytest.mark.parametrize(("period", "count"), [(0, "1"), (300, "4"), (500, "2"), (5000, "1")])
def test_the_evaluation_after_the_last_iteration_counts(make_cfg, period, count):
    opts = {"SOLVER.MAX_ITER": 1000, "SOLVER.CHECKPOINT_PERIOD": 1000, "DATASETS.TEST": ("a",)}
    opts |= {"TEST.EVAL_PERIOD": period}
    text = describe_schedule(make_cfg(opts=opts), 1, None)
    assert f"{count} evaluation{'s' * (count != '1')}, 2 checkpoints." in text
