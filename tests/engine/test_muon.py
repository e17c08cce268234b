"""Orthogonal updates for matrices, AdamW's updates for the other parameters."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dcp_clip.engine.muon import Muon, hidden_matrices, orthogonalize
from dcp_clip.engine.optimizer import build_optimizer


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_singular_values_are_close_to_one(rows, columns, seed, size):
    generator = torch.Generator().manual_seed(seed)
    matrix = size * torch.randn(rows, columns, generator=generator)
    before, after = torch.linalg.svd(matrix, full_matrices=False), orthogonalize(matrix)
    assert after.shape == matrix.shape
    # Very small singular values stay small after five iterations; none exceeds the bound.
    values = torch.linalg.svdvals(after)
    assert values.max() < 1.3
    large_enough = before.S > 0.01 * before.S.norm()
    assert (
        torch.linalg.svdvals(before.U.T @ after @ before.Vh.T)[: int(large_enough.sum())].min()
        > 0.5
    )
    # The singular vectors do not change.
    rotated = before.U.T @ after @ before.Vh.T
    torch.testing.assert_close(rotated, rotated.diag().diag(), atol=2e-3, rtol=0)


def groups_of(model, lr=0.01, decay=0.1):
    matrices = hidden_matrices(model)
    chosen = [p for p in model.parameters() if p in matrices]
    rest = [p for p in model.parameters() if p not in matrices]
    return [
        {"params": chosen, "lr": lr, "weight_decay": decay, "orthogonal": True},
        {"params": rest, "lr": lr, "weight_decay": decay},
    ]


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Flatten(),
        nn.Linear(64, 5),
    )


def backward(model, seed=0):
    x = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return loss.item()


def test_other_parameters_are_updated_as_by_adamw():
    ours, theirs = net(), net()
    muon, adamw = Muon(groups_of(ours)), torch.optim.AdamW(groups_of(theirs))
    matrices = hidden_matrices(ours)
    for model, optimizer in ((ours, muon), (theirs, adamw)):
        backward(model)
        optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) == (a not in matrices)


def test_first_step_of_a_matrix():
    """Weight decay, then a step along the orthogonalized gradient, of the size of AdamW's."""
    model = net()
    optimizer = Muon(groups_of(model, lr=0.01, decay=0.1))
    before = model[1].weight.detach().clone()
    backward(model)
    gradient = model[1].weight.grad.clone()
    optimizer.step()
    assert torch.equal(model[1].weight.grad, gradient)  # the optimizer restores it
    step = (model[1].weight.detach() - before * (1 - 0.01 * 0.1)).flatten(1)
    direction = orthogonalize(gradient.flatten(1))
    torch.testing.assert_close(step, -0.01 * 0.2 * 72**0.5 * direction, atol=1e-6, rtol=1e-3)
    assert step.square().mean().sqrt().item() == pytest.approx(0.01 * 0.2, rel=0.3)


def test_resuming_from_a_state_dict():
    straight, resumed = net(), net()
    optimizer = Muon(groups_of(straight))
    first = backward(straight)
    for i in range(4):
        if i == 2:
            resumed.load_state_dict(copy.deepcopy(straight.state_dict()))
            state = copy.deepcopy(optimizer.state_dict())
        backward(straight)
        optimizer.step()
    again = Muon(groups_of(resumed))
    again.load_state_dict(state)
    for _ in range(2):
        backward(resumed)
        again.step()
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
    assert backward(straight) < first


def test_learning_rate_of_matrices(make_cfg):
    cfg = make_cfg(
        opts={
            "SOLVER.OPTIMIZER": "MUON",
            "SOLVER.MUON_LR_MULTIPLIER": 3.0,
            "SOLVER.BASE_LR": 0.01,
            "SOLVER.TEXT_LR_MULTIPLIER": 0.5,
            "MODEL.CLIP.TRAIN_IMAGE": "all",
            "MODEL.CLIP.TRAIN_TEXT": "all",
        }
    )
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    group_of = {p: g for g in optimizer.param_groups for p in g["params"]}
    assert group_of.keys() == {p for p in model.parameters() if p.requires_grad}
    named = dict(model.named_parameters())
    text = "text_encoder.text."
    block = f"{text}transformer.resblocks.0."
    assert group_of[named[f"{block}attn.in_proj_weight"]]["lr"] == pytest.approx(0.015)
    for name in (
        f"{text}token_embedding.weight",
        f"{text}positional_embedding",
        f"{block}ln_1.weight",
    ):
        assert "orthogonal" not in group_of[named[name]] or not group_of[named[name]]["orthogonal"]
        assert group_of[named[name]]["lr"] == pytest.approx(0.005)
    matrices = [p for p, g in group_of.items() if g.get("orthogonal")]
    assert all(p.ndim >= 2 and min(p.shape[:2]) > 4 for p in matrices)
    assert named["fine_decoder.visual.weight"] in set(matrices)
