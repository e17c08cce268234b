"""Parameter groups of the optimizer, gradient clipping, and the moving average."""

import logging
from types import SimpleNamespace

import pytest
import timm
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from dcp_clip.config import setup_cfg
from dcp_clip.engine.ema import EMAHook
from dcp_clip.engine.optimizer import (
    _decay_overrides,
    build_optimizer,
    learning_rates_by_part,
    part_of,
)

SOLVER = {
    "SOLVER.BASE_LR": 0.01,
    "SOLVER.WEIGHT_DECAY": 0.05,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.IMAGE_LR_MULTIPLIER": 0.1,
    "SOLVER.TEXT_LR_MULTIPLIER": 0.5,
    "MODEL.CLIP.TRAIN_IMAGE": "all",
    "MODEL.CLIP.TRAIN_TEXT": "all",
}


def build(make_cfg, **opts):
    cfg = make_cfg(opts={**SOLVER, **opts})
    model = build_model(cfg)
    return model, build_optimizer(cfg, model)


def settings_of(model, optimizer, key):
    names = {p: n for n, p in model.named_parameters()}
    return {names[p]: g[key] for g in optimizer.param_groups for p in g["params"]}


def test_learning_rates_by_part(make_cfg):
    model, optimizer = build(make_cfg)
    assert isinstance(optimizer, torch.optim.AdamW)
    rates = settings_of(model, optimizer, "lr")
    assert rates.keys() == dict(model.named_parameters()).keys()
    factor = {"backbone": 0.1, "text_encoder": 0.5}
    for name, rate in rates.items():
        assert rate == pytest.approx(0.01 * factor.get(part_of(name), 1.0)), name
    assert {part_of(n) for n in rates} >= {"backbone", "text_encoder", "coarse_decoder"}


def test_the_pyramid_of_a_baseline_learns_at_the_base_rate(make_cfg):
    """SOLVER.IMAGE_LR_MULTIPLIER is for CLIP's weights, not for new layers on top of them."""
    DatasetCatalog.register("test_rates_sem_seg", list)
    MetadataCatalog.get("test_rates_sem_seg").set(stuff_classes=["sky", "tree"])
    options = {
        **SOLVER,
        "MODEL.META_ARCHITECTURE": "FPNSegmentor",
        "DATASETS.TRAIN": ("test_rates_sem_seg",),
    }
    try:
        cfg = make_cfg("dcp-tiny-cnn", options)
        model = build_model(cfg)
    finally:
        DatasetCatalog.remove("test_rates_sem_seg")
        MetadataCatalog.pop("test_rates_sem_seg")
    rates = settings_of(model, build_optimizer(cfg, model), "lr")
    for name, rate in rates.items():
        factor = 0.1 if name.startswith("backbone.bottom_up.") else 1.0
        assert rate == pytest.approx(0.01 * factor), name
    assert learning_rates_by_part(cfg, model) == pytest.approx({"backbone": 0.01, "head": 0.01})


def test_norms_do_not_decay(make_cfg):
    model, optimizer = build(make_cfg)
    decay = settings_of(model, optimizer, "weight_decay")
    norms = [
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.GroupNorm)
        for name, _ in module.named_parameters(recurse=False)
    ]
    assert norms and all(decay[name] == 0 for name in norms)
    assert decay["fine_decoder.visual.weight"] == 0.05


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-16"])
def test_scales_gates_and_positions_do_not_decay(make_cfg, clip):
    """Weight decay would pull them to zero, which is not a neutral value for them."""
    cfg = make_cfg(clip, {**SOLVER, "SOLVER.WEIGHT_DECAY_BIAS": 0.01})
    model = build_model(cfg)
    decay = settings_of(model, build_optimizer(cfg, model), "weight_decay")
    by_leaf = {}
    for name, value in decay.items():
        by_leaf.setdefault(name.rsplit(".", 1)[-1], set()).add(value)
    for leaf in ("scale", "gate", "bias_weight", "positional_embedding"):
        assert by_leaf[leaf] == {0.0}, leaf
    assert decay["text_encoder.text.transformer.resblocks.0.attn.in_proj_bias"] == 0.01
    assert decay["text_encoder.text.transformer.resblocks.0.attn.in_proj_weight"] == 0.05
    if clip == "test-vit-16":
        assert by_leaf["class_embedding"] == {0.0}
    else:
        assert by_leaf["gamma"] == {0.0}  # ConvNeXt's layer scale


@pytest.mark.parametrize(
    ("name", "leaf"),
    [("vit_tiny_patch16_224", "pos_embed"), ("fastvit_t8", "gamma")],
)
def test_timm_positions_and_scales_do_not_decay(name, leaf):
    """A layer scale can have the shape (C, 1, 1)."""
    cfg = setup_cfg(opts=["SOLVER.WEIGHT_DECAY_NORM", "0.0"])
    overrides = _decay_overrides(cfg, timm.create_model(name))
    assert overrides[leaf] == {"weight_decay": 0.0}


def test_frozen_parameters_are_left_out(make_cfg):
    model, optimizer = build(make_cfg, **{"MODEL.CLIP.TRAIN_IMAGE": "none"})
    names = settings_of(model, optimizer, "lr")
    assert names and not [n for n in names if n.startswith("backbone")]


def test_gradients_are_clipped_over_the_whole_model(make_cfg):
    clip = {
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
        "SOLVER.OPTIMIZER": "SGD",
        "SOLVER.MOMENTUM": 0.0,
        "SOLVER.WEIGHT_DECAY": 0.0,
        "SOLVER.IMAGE_LR_MULTIPLIER": 1.0,
        "SOLVER.TEXT_LR_MULTIPLIER": 1.0,
    }
    model, optimizer = build(make_cfg, **clip)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.full_like(p, 3.0)
    optimizer.step()
    moved = sum((p - before[n]).square().sum() for n, p in model.named_parameters())
    assert float(moved.detach().sqrt()) == pytest.approx(0.01, rel=1e-2)


def test_clipping_follows_the_unscaling_of_amp(make_cfg):
    """AMP scales the loss. Clipping the scaled gradients would make all updates tiny.

    With a fused AdamW, GradScaler leaves the unscaling to the kernel, which runs after clipping.
    """
    options = {
        "SOLVER.AMP.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.ENABLED": True,
        "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 1.0,
    }
    model, optimizer = build(make_cfg, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = sum((1e-6 * p).sum() for p in parameters)  # its norm is far below the threshold
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    for p in parameters:
        torch.testing.assert_close(p.grad, torch.full_like(p, 1e-6), rtol=1e-3, atol=0)


def test_sgd_and_unknown_optimizers(make_cfg):
    _, optimizer = build(make_cfg, **{"SOLVER.OPTIMIZER": "SGD", "SOLVER.MOMENTUM": 0.8})
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.8
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is 'LION'"):
        build(make_cfg, **{"SOLVER.OPTIMIZER": "LION"})


def test_nothing_to_train(make_cfg):
    cfg = make_cfg()
    model = build_model(cfg).requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameters.*--eval-only"):
        build_optimizer(cfg, model)


def test_table_is_logged(make_cfg, caplog):
    with caplog.at_level(logging.INFO, logger="dcp_clip"):
        build(make_cfg)
    assert (
        "coarse_decoder" in caplog.text and "0.005" in caplog.text
    )  # the learning rate of the text encoder


# ---- moving average


def run_steps(model, hook, steps, start=0, max_iter=100):
    """Set the model's parameter to 1, 2, 3 ... and call the hook after each step."""
    hook.trainer = SimpleNamespace(iter=start, max_iter=max_iter)
    for step in range(start, start + steps):
        with torch.no_grad():
            model.weight.fill_(step + 1.0)
        hook.trainer.iter = step
        hook.after_step()


def averages(decay, steps):
    """The definition, with a smaller decay in the first steps."""
    value = 1.0
    for step in range(2, steps + 1):
        d = min(decay, (1 + step) / (10 + step))
        value = d * value + (1 - d) * step
    return value


@pytest.mark.parametrize("decay", [0.3, 0.998])
def test_average_by_definition(decay):
    model = nn.Linear(1, 1, bias=False)
    hook = EMAHook(model, decay)
    run_steps(model, hook, 7)
    assert float(model.weight) == 7
    with hook.averaged():
        assert float(model.weight) == pytest.approx(averages(decay, 7), rel=1e-5)
    assert float(model.weight) == 7


def test_weights_are_restored_after_an_error():
    model = nn.Linear(1, 1, bias=False)
    hook = EMAHook(model, 0.5)
    run_steps(model, hook, 4)
    with pytest.raises(KeyboardInterrupt), hook.averaged():
        raise KeyboardInterrupt
    assert float(model.weight) == 4


def test_average_is_resumed(tmp_path):
    model = nn.Linear(1, 1, bias=False)
    hook = EMAHook(model, 0.9)
    run_steps(model, hook, 4)
    torch.save(hook.state_dict(), tmp_path / "ema.pth")
    resumed_model = nn.Linear(1, 1, bias=False)
    resumed = EMAHook(resumed_model, 0.9)
    resumed.load_state_dict(torch.load(tmp_path / "ema.pth", weights_only=True))
    run_steps(resumed_model, resumed, 5, start=4)
    with resumed.averaged():
        assert float(resumed_model.weight) == pytest.approx(averages(0.9, 9), rel=1e-5)


def test_the_average_is_the_final_model():
    model = nn.Linear(1, 1, bias=False)
    run_steps(model, EMAHook(model, 0.9), 6, max_iter=6)
    assert float(model.weight) == pytest.approx(averages(0.9, 6), rel=1e-5)


def test_batch_norm_statistics_are_copied():
    model = nn.BatchNorm1d(2)
    hook = EMAHook(model, 0.9)
    hook.trainer = SimpleNamespace(iter=0, max_iter=9)
    for i in range(3):
        model(torch.randn(4, 2) + i)
        hook.after_step()
    average = hook.state_dict()["average"]
    torch.testing.assert_close(average["running_mean"], model.running_mean)
    assert average["num_batches_tracked"] == 3


def test_learning_rates_by_part_with_muon(make_cfg):
    opts = {**SOLVER, "SOLVER.OPTIMIZER": "MUON", "SOLVER.MUON_LR_MULTIPLIER": 5.0}
    opts |= {"MODEL.CLIP.TRAIN_TEXT": "none"}
    cfg = make_cfg(opts=opts)
    model = build_model(cfg)
    rates = learning_rates_by_part(cfg, model)
    highest: dict[str, float] = {}
    for name, rate in settings_of(model, build_optimizer(cfg, model), "lr").items():
        highest[part_of(name)] = max(rate, highest.get(part_of(name), 0.0))
    assert max(highest.values()) == pytest.approx(0.05)
    assert {part: rates[part] for part in highest} == pytest.approx(highest)
    assert rates["text_encoder"] == pytest.approx(0.01 * 0.5)  # frozen


def test_clipping_uses_the_norm_of_the_config(make_cfg):
    clip = {"ENABLED": True, "CLIP_TYPE": "full_model", "CLIP_VALUE": 1.0, "NORM_TYPE": 1.0}
    model, optimizer = build(
        make_cfg,
        **{f"SOLVER.CLIP_GRADIENTS.{key}": value for key, value in clip.items()},
        **{"SOLVER.OPTIMIZER": "SGD"},
    )
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    total = sum(p.grad.abs().sum() for p in model.parameters())
    assert total == pytest.approx(1.0, rel=1e-3)


def test_bias_lr_factor_is_an_error(make_cfg):
    with pytest.raises(ValueError, match="BIAS_LR_FACTOR is 2.0"):
        build(make_cfg, **{"SOLVER.BIAS_LR_FACTOR": 2.0})
