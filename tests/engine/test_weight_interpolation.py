"""At the end of training the image tower is interpolated with CLIP's original weights."""

import pytest
import torch
from detectron2.modeling import build_model

from dcp_clip.engine import Trainer
from dcp_clip.engine.checkpoints.loading import load_weights
from dcp_clip.engine.weight_interpolation import WeightInterpolationHook
from dcp_clip.modeling.clip.loading import load_clip

ALPHA = 0.25
TOWER = "backbone."


@pytest.fixture
def clip(make_cfg, randomize, tmp_path):
    """A file of CLIP's weights."""
    path = tmp_path / "clip.pt"
    torch.save(randomize(load_clip(make_cfg("test-vit-16"))).state_dict(), path)
    return str(path)


def mixture(trained: dict, original: dict) -> dict:
    """The expected state, from that of the same training without interpolation."""
    return {
        key: ALPHA * original[key] + (1 - ALPHA) * value if key.startswith(TOWER) else value
        for key, value in trained.items()
    }


def assert_same(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    for key, value in state.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("stop_at", [None, 4])
def test_final_weights_are_interpolated(config, clip, decay, stop_at, run, caplog):
    """With and without interruption, with and without a moving average.

    The weights in the final checkpoint are the same.
    """
    opts = {"MODEL.CLIP.PRETRAINED": clip, "SOLVER.EMA_DECAY": decay}
    caplog.set_level("INFO", "dcp_clip")
    plain = run(config("plain", **opts))
    assert "WISE_FT_ALPHA" not in caplog.text
    own = Trainer(config("own", **opts)).model.state_dict()
    expected = mixture(plain.model.state_dict(), own)
    with pytest.raises(AssertionError, match="backbone"):
        assert_same(plain.model.state_dict(), expected)

    opts["SOLVER.WISE_FT_ALPHA"] = ALPHA
    if stop_at is not None:
        run(config("mixed", **opts), stop_at=stop_at)
    cfg = config("mixed", **opts)
    mixed = run(cfg, resume=stop_at is not None)
    assert_same(mixed.model.state_dict(), expected)
    # Configs inherit the value, so the log shows it at the start and at the end.
    messages = [m for m in caplog.messages if f"WISE_FT_ALPHA is {ALPHA}" in m]
    assert len(messages) == (1 if stop_at is None else 2)
    assert [m for m in caplog.messages if "Interpolated the image tower" in m]
    reader = Trainer(config("reader", **opts)).model
    load_weights(reader, f"{cfg.OUTPUT_DIR}/model_final.pth")
    assert_same(reader.state_dict(), expected)


def test_final_evaluation_uses_the_interpolated_weights(config, clip, monkeypatch, repeating, run):
    seen = []

    def test(cls, cfg, model, evaluators=None):
        seen.append({key: value.clone() for key, value in model.state_dict().items()})
        return {}

    monkeypatch.setattr(repeating, "test", classmethod(test))
    opts = {"MODEL.CLIP.PRETRAINED": clip, "TEST.EVAL_PERIOD": 2, "SOLVER.MAX_ITER": 4}
    plain = run(config("plain", **opts))
    run(config("mixed", **opts, **{"SOLVER.WISE_FT_ALPHA": ALPHA}))
    own = Trainer(config("own", **opts)).model.state_dict()
    half, _, mixed_half, mixed = seen
    assert_same(mixed_half, half)
    assert_same(mixed, mixture(plain.model.state_dict(), own))


def test_batch_norm_statistics_are_interpolated(config, clip, make_cfg, randomize, tmp_path):
    """Integer counters keep their value."""
    path = tmp_path / "cnn.pt"
    name = "dcp-tiny-cnn-s16"
    torch.save(randomize(load_clip(make_cfg(name))).state_dict(), path)
    opts = {"MODEL.CLIP.NAME": name, "MODEL.CLIP.PRETRAINED": str(path), "SOLVER.EMA_DECAY": 0.0}
    opts |= {"MODEL.CLIP.TRAIN_IMAGE": "all", "SOLVER.WISE_FT_ALPHA": ALPHA}
    trainer = Trainer(config(**opts))
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    for key, value in trainer.model.backbone.state_dict().items():
        if "running" in key or key.endswith("num_batches_tracked"):
            value.add_(4)
    (hook,) = [hook for hook in trainer._hooks if isinstance(hook, WeightInterpolationHook)]
    trainer.iter = trainer.max_iter - 1
    hook.after_step()
    after = trainer.model.state_dict()
    checked = [key for key in after if key.startswith(TOWER) and "running" in key]
    assert checked
    for key in checked:
        torch.testing.assert_close(after[key], before[key] + 4 * (1 - ALPHA))
    (counter, *_) = [key for key in after if key.endswith("num_batches_tracked")]
    assert after[counter] == before[counter] + 4


def test_frozen_tower_is_not_interpolated(config, run):
    opts = {"MODEL.CLIP.TRAIN_IMAGE": "none", "SOLVER.WISE_FT_ALPHA": ALPHA}
    cfg = config(**opts)
    torch.manual_seed(0)
    start = {key: value.clone() for key, value in Trainer(cfg).model.backbone.state_dict().items()}
    end = run(cfg).model.backbone.state_dict()
    for key, value in start.items():
        assert torch.equal(end[key], value), key
    assert not [hook for hook in Trainer(cfg)._hooks if isinstance(hook, WeightInterpolationHook)]


def test_finished_training_is_interpolated_once(config, clip, tmp_path, run):
    """For example, if it was stopped before it wrote model_final.pth."""
    cfg = config(**{"MODEL.CLIP.PRETRAINED": clip, "SOLVER.WISE_FT_ALPHA": ALPHA})
    mixed = run(cfg).model.state_dict()
    (tmp_path / "out" / "model_final.pth").unlink()
    (tmp_path / "out" / "last_checkpoint").write_text("model_0000005.pth")
    assert_same(run(cfg, resume=True).model.state_dict(), mixed)
    for name in ("model_0000005", "model_final"):
        checkpoint = torch.load(tmp_path / "out" / f"{name}.pth", weights_only=True)
        assert checkpoint["trainer"]["hooks"]["WeightInterpolationHook"] == {"alpha": ALPHA}
    before = torch.load(tmp_path / "out" / "model_0000002.pth", weights_only=True)
    assert "WeightInterpolationHook" not in before["trainer"]["hooks"]


def test_max_iter_of_the_last_checkpoint_ends_with_an_interpolation(config, clip, tmp_path, run):
    options = {"MODEL.CLIP.PRETRAINED": clip, "SOLVER.WISE_FT_ALPHA": ALPHA}
    run(config(**options), stop_at=4)
    run(config(**options, **{"SOLVER.MAX_ITER": 3}), resume=True)
    checkpoint = torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)
    assert checkpoint["trainer"]["hooks"]["WeightInterpolationHook"] == {"alpha": ALPHA}


def test_warning_if_a_finished_training_was_not_interpolated(config, clip, caplog, run):
    opts = {"MODEL.CLIP.PRETRAINED": clip, "SOLVER.MAX_ITER": 2}
    run(config(**opts))
    with caplog.at_level("WARNING", logger="dcp_clip.engine.weight_interpolation"):
        run(config(**opts, **{"SOLVER.WISE_FT_ALPHA": ALPHA}), resume=True)
    assert "export_weights.py" in caplog.text


def test_the_recorded_alpha_is_the_one_that_was_applied(config, clip, caplog, tmp_path, run):
    opts = {"MODEL.CLIP.PRETRAINED": clip, "SOLVER.MAX_ITER": 3, "SOLVER.WISE_FT_ALPHA": ALPHA}
    run(config(**opts))
    with caplog.at_level("WARNING", logger="dcp_clip.engine.weight_interpolation"):
        finished = run(config(**{**opts, "SOLVER.WISE_FT_ALPHA": 0.1}), resume=True)
    assert f"finished with SOLVER.WISE_FT_ALPHA {ALPHA}" in caplog.text
    (hook,) = [hook for hook in finished._hooks if isinstance(hook, WeightInterpolationHook)]
    assert hook.state_dict() == {"alpha": ALPHA}
    run(config(**{**opts, "SOLVER.MAX_ITER": 7}), resume=True)
    for name, expected in (("model_0000005", None), ("model_final", {"alpha": ALPHA})):
        checkpoint = torch.load(tmp_path / "out" / f"{name}.pth", weights_only=True)
        hooks = checkpoint["trainer"]["hooks"]
        assert hooks.get("WeightInterpolationHook") == expected, name


@pytest.mark.parametrize(
    "alpha, message",
    [(1.0, "below 1"), (-0.1, "at least 0"), (0.5, "MODEL.CLIP.PRETRAINED")],
)
def test_invalid_alpha_is_an_error(config, alpha, message):
    with pytest.raises(ValueError, match=message):
        Trainer(config(**{"SOLVER.WISE_FT_ALPHA": alpha}))


def test_other_backbones_are_an_error(config, clip):
    cfg = config(**{"MODEL.CLIP.PRETRAINED": clip, "SOLVER.WISE_FT_ALPHA": ALPHA})
    model = build_model(cfg)
    model.backbone = torch.nn.Sequential(model.backbone)
    with pytest.raises(ValueError, match="not CLIP's image tower alone"):
        WeightInterpolationHook.from_config(cfg, model)
