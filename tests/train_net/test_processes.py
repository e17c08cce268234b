"""train_net.py with two processes."""

import json

import pytest
from helpers.training_program import (
    mean_iou,
    train_net,
    two_processes,
)


def test_several_data_sets_with_one_and_two_processes(workspace, trained):
    """Two processes give exactly the same scores as one."""
    names = ("mini_sem_seg_val", "mini_16_sem_seg_val")
    options = {"MODEL.WEIGHTS": "out/model_final.pth", "DATASETS.TEST": names}
    log = train_net(workspace, "eval1", "--eval-only", **options)
    assert mean_iou(log) == pytest.approx(mean_iou(trained[1]), abs=1e-3)
    table = (workspace / "eval1" / "results.md").read_text()
    assert table in log and all(f"| {name}" in table for name in names)
    assert "**mini_16_sem_seg_val: 3/300 classes present.**" in table
    train_net(workspace, "eval2", "--eval-only", *two_processes(), **options)
    alone, shared = (
        json.loads((workspace / x / "results.json").read_text()) for x in ("eval1", "eval2")
    )
    assert list(alone["results"]) == list(names)
    for results in (*alone["results"].values(), *shared["results"].values()):
        assert results.pop("speed")["images"] == 5
    assert shared["results"] == alone["results"]
    assert shared["environment"]["device"] == "cpu, processes: 2"
    key = "weights fingerprint"
    assert shared["environment"][key] == alone["environment"][key]


PARAMETERS = """
def _check_parameters(trainer):
    import torch
    mine = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    others = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(others, mine)
    assert len(others) == 2 and torch.equal(*others)
    print("The parameters are equal", flush=True)

from dcp_clip_cli import training

def _train(args, Trainer=training.Trainer, train=training.main):
    Trainer.after_train = lambda self: _check_parameters(self) or super(Trainer, self).after_train()
    return train(args)

training.main = _train

if __name__ == "__main__":
"""


def test_two_processes_train_and_evaluate(workspace):
    """The gradients are averaged over the processes, so their parameters stay equal."""
    text = (workspace / "program.py").read_text()
    head, _, tail = text.rpartition('if __name__ == "__main__":\n')
    program = workspace / "equal.py"
    program.write_text(head + PARAMETERS + tail)
    options = {"SOLVER.MAX_ITER": 3, "TEST.EVAL_PERIOD": 2, "SOLVER.EMA_DECAY": 0.9}
    log = train_net(workspace, "two", *two_processes(), program=program.name, **options)
    assert log.count("The parameters are equal") == 2
    assert (workspace / "two" / "model_final.pth").is_file()
    weights = {"MODEL.WEIGHTS": "two/model_final.pth"}
    alone = mean_iou(train_net(workspace, "two_eval", "--eval-only", **weights))
    last = log[log.rindex("copypaste: Task: sem_seg") :]
    assert mean_iou(last) == pytest.approx(alone, abs=1e-3)
