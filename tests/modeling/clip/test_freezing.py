"""The weights that train are those that the policy selects."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from dcp_clip.modeling.clip.freezing import POLICIES, freeze_tower

IMAGE, TEXT = "MODEL.CLIP.TRAIN_IMAGE", "MODEL.CLIP.TRAIN_TEXT"


def trained(model, part):
    """Names of the parameters of a submodule that train."""
    return {n for n, p in getattr(model, part).named_parameters() if p.requires_grad}


@pytest.fixture
def build(make_cfg):
    def build(clip, opts=None):
        return build_model(make_cfg(clip, opts))

    return build


def test_towers_are_frozen_by_default(build):
    model = build("test-convnext")
    assert not trained(model, "backbone") and not trained(model, "text_encoder")
    for part in ("guidance", "coarse_decoder", "fine_decoder", "refinement"):
        assert len(trained(model, part)) == len(list(getattr(model, part).parameters())) > 0


def test_all_trains_every_parameter(build):
    model = build("test-convnext", {IMAGE: "all", TEXT: "all"})
    for part in ("backbone", "text_encoder"):
        assert len(trained(model, part)) == len(list(getattr(model, part).parameters()))


def test_attention_trains_projections_and_position_embeddings(build):
    model = build("test-vit-16", {IMAGE: "attention", TEXT: "attention"})
    names = trained(model, "backbone")
    assert "visual.positional_embedding" in names
    assert len([n for n in names if "attn.in_proj" in n]) == 2 * 3
    assert not [n for n in names if "mlp" in n or "ln_" in n or "conv1" in n]
    assert "text.positional_embedding" in trained(model, "text_encoder")


@pytest.mark.parametrize("clip", ["test-convnext", "test-convnext-mlp", "dcp-tiny-cnn"])
def test_late_is_the_last_stage_and_the_projection(build, clip):
    names = trained(build(clip, {IMAGE: "late"}), "backbone")
    assert all("stages.3." in n or ".head." in n for n in names)
    assert any("stages.3." in n for n in names) and any(n.startswith("visual.head") for n in names)


def test_late_is_the_last_third_of_the_blocks_and_the_projection():
    for depth, first in ((24, 16), (12, 8), (3, 2), (1, 0)):
        tower = nn.ModuleDict(
            {
                "resblocks": nn.ModuleList(nn.Linear(1, 1) for _ in range(depth)),
                "ln_final": nn.LayerNorm(1),
            }
        )
        tower.text_projection = nn.Parameter(torch.ones(1))
        freeze_tower(CfgNode({"MODEL": {"CLIP": {"TRAIN_TEXT": "late"}}}), "TRAIN_TEXT", tower)
        names = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
        blocks = {int(name.split(".")[1]) for name in names if name.startswith("resblocks")}
        assert blocks == set(range(first, depth))
        assert "text_projection" in names and "ln_final.weight" not in names


@pytest.mark.parametrize(
    "clip, policies, message",
    [
        ("test-convnext", {IMAGE: "some"}, "TRAIN_IMAGE is 'some'; known are none, all"),
        ("test-convnext", {TEXT: "some"}, "TRAIN_TEXT is 'some'"),
        ("test-convnext", {IMAGE: "attention"}, "'attention', which matches no parameter"),
    ],
)
def test_wrong_policies_are_refused(build, clip, policies, message):
    with pytest.raises(ValueError, match=message):
        build(clip, policies)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_step_changes_only_the_weights_that_train(make_model, make_image, policy):
    model = make_model("test-vit-16", {IMAGE: policy, TEXT: "none"}).train()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    labels = torch.arange(32).expand(32, -1) // 8
    sum(model([{"image": make_image(32, 32), "sem_seg": labels}]).values()).backward()
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed <= {n for n, p in model.named_parameters() if p.requires_grad}
    tower = {n for n in changed if n.startswith("backbone.")}
    assert bool(tower) == (policy != "none")
