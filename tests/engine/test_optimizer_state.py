"""A training is resumed with other learning rates and weight decays, and so with other groups."""

import copy

import pytest
import torch
from torch import nn

from dcp_clip.engine.checkpoints.safe_checkpointer import WeightsError
from dcp_clip.engine.muon import Muon
from dcp_clip.engine.optimizer_state import keep_groups

SOLVER = {
    "SOLVER.IMAGE_LR_MULTIPLIER": 0.1,
    "SOLVER.TEXT_LR_MULTIPLIER": 1.0,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.MAX_ITER": 3,
}


def state_of(trainer):
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    return {names[p]: dict(state) for p, state in trainer.optimizer.state.items() if state}


def groups_of(trainer):
    """The settings of each group, and the names of its parameters."""
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    return [
        {**group, "params": [names[p] for p in group["params"]]}
        for group in trainer.optimizer.param_groups
    ]


@pytest.mark.parametrize(
    ("optimizer", "changed"),
    [
        ("MUON", {"SOLVER.IMAGE_LR_MULTIPLIER": 1.0}),  # merges groups
        ("MUON", {"SOLVER.WEIGHT_DECAY_NORM": 0.05}),
        ("ADAMW", {"SOLVER.WEIGHT_DECAY": 0.0}),
        ("ADAMW", {"SOLVER.TEXT_LR_MULTIPLIER": 0.3}),  # splits groups
        ("SGD", {"SOLVER.WEIGHT_DECAY_BIAS": 0.01, "SOLVER.MOMENTUM": 0.8}),
    ],
)
def test_merged_and_split_groups_are_resumed(config, run, optimizer, changed):
    """Each parameter keeps its state, and has the settings of the config."""
    before = {**SOLVER, "SOLVER.OPTIMIZER": optimizer}
    trained = run(config(**before))
    expected = state_of(trained)
    now = {**before, **changed, "SOLVER.MAX_ITER": 4}
    resumed = run(config(**now), resume=True, stop_at=3)
    assert len(resumed.optimizer.param_groups) != len(trained.optimizer.param_groups)
    state = state_of(resumed)
    assert state.keys() == expected.keys()
    for name, values in expected.items():
        assert state[name].keys() == values.keys(), name
        for key, value in values.items():
            assert torch.equal(state[name][key], value), (name, key)
    assert groups_of(resumed) == groups_of(run(config("new", **now), stop_at=3))
    run(config(**now), resume=True)
    run(config(**{**before, "SOLVER.MAX_ITER": 5}), resume=True)


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ("none", "[0-9]+ parameters that it trained are not trained now, first: backbone"),
        ("all", "it has no state of [0-9]+ parameters that are trained now, first: backbone"),
    ],
)
def test_other_trained_parameters_cannot_be_resumed(config, run, trained, message):
    run(config(), stop_at=4)
    with pytest.raises(WeightsError, match=f"{message}.*resume with the config"):
        run(config(**{"MODEL.CLIP.TRAIN_IMAGE": trained}), resume=True)


def test_checkpoints_without_names_are_resumed(config, tmp_path, run):
    """Those of earlier versions, if their groups have the same sizes."""
    expected = run(config("a")).model.state_dict()
    run(config("b"), stop_at=4)
    path = tmp_path / "b" / "model_0000002.pth"
    content = torch.load(path, weights_only=True)
    for group in content["trainer"]["_trainer"]["optimizer"]["param_groups"]:
        del group["param_names"]
    torch.save(content, path)
    with pytest.raises(WeightsError, match="the names of the parameters are unknown"):
        run(config("b", **{"SOLVER.IMAGE_LR_MULTIPLIER": 0.1}), resume=True)
    for name, value in run(config("b"), resume=True).model.state_dict().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("names", [("weight", "bias"), None])
def test_a_matrix_of_muon_cannot_be_resumed_with_adamw(names):
    """The two have different states."""
    layer = nn.Linear(6, 6)

    def optimizer(orthogonal):
        members = list(layer.parameters())
        members = list(zip(names, members, strict=True)) if names else members
        groups = [{"params": members[:1], "orthogonal": orthogonal}, {"params": members[1:]}]
        result = Muon(groups)
        result.register_load_state_dict_pre_hook(keep_groups)
        return result

    before, same, other = optimizer(True), optimizer(True), optimizer(False)
    layer(torch.ones(2, 6)).sum().backward()
    before.step()
    state = copy.deepcopy(before.state_dict())
    with pytest.raises(ValueError, match="Muon updates other matrices"):
        other.load_state_dict(state)
    same.load_state_dict(state)
    assert torch.equal(same.state[layer.weight]["momentum"], before.state[layer.weight]["momentum"])
