"""The drawn learning rates are those of the training."""

import pytest
import torch
from torch import nn

from dcp_clip.benchmarking.schedule import relative_rates
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
