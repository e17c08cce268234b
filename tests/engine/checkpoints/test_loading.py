"""Loading MODEL.WEIGHTS: everything fits, or one sentence says why it does not."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from iopath.common.file_io import PathHandler
from torch import nn

from dcp_clip.config import setup_cfg
from dcp_clip.engine.checkpoints.file_format import trained_weights
from dcp_clip.engine.checkpoints.loading import (
    SafeCheckpointer,
    WeightsError,
    load_weights,
    shipped_weights,
    warn_if_untrained,
)


def small(width=3):
    return nn.ModuleDict({"a": nn.Linear(2, width), "b": nn.BatchNorm1d(width)})


def assert_same_weights(a, b):
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


def test_checkpoint_of_detectron2(tmp_path):
    source, target = small(), small()
    DetectionCheckpointer(source, str(tmp_path)).save("model_final", iteration=3)
    load_weights(target, str(tmp_path / "model_final.pth"))
    assert_same_weights(source, target)


def test_bare_state_dicts_and_half_precision(tmp_path):
    source, target = small(), small()
    state = {k: v.half() if v.is_floating_point() else v for k, v in source.state_dict().items()}
    torch.save(state, tmp_path / "half.pth")
    load_weights(target, str(tmp_path / "half.pth"))
    assert target["a"].weight.dtype == torch.float32
    torch.testing.assert_close(target["a"].weight, source["a"].weight, rtol=1e-3, atol=1e-3)


def test_loaded_model_gives_the_same_output(make_model, make_cfg, make_image, segment, tmp_path):
    source = make_model("test-convnext")
    DetectionCheckpointer(source, str(tmp_path)).save("model")
    target = build_model(make_cfg("test-convnext")).eval()
    load_weights(target, str(tmp_path / "model.pth"))
    x = (make_image(40, 56), source.vocabulary)
    a, b = (segment(model, *x)["sem_seg"] for model in (source, target))
    assert torch.equal(a.logits, b.logits) and torch.equal(a.category_ids, b.category_ids)


def test_empty_path_does_nothing():
    load_weights(small(), "")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("a.weight"), r"it lacks 1 parameters of the model.*a\.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "the model lacks 1 of its parameters.*extra"),
        (lambda s: s.update({"a.bias": torch.zeros(9)}), r"a\.bias has shape \(9,\)"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, change, message):
    state = small().state_dict()
    change(state)
    path = tmp_path / "other.pth"
    torch.save({"model": state}, path)
    with pytest.raises(WeightsError, match=f"{re.escape(str(path))}.*{message}") as error:
        load_weights(small(), str(path))
    assert "\n" not in str(error.value)


def test_weights_of_another_config(make_model, make_cfg, tmp_path):
    DetectionCheckpointer(make_model("test-convnext"), str(tmp_path)).save("model")
    with pytest.raises(WeightsError, match="model.pth.*belong to another model"):
        load_weights(build_model(make_cfg("test-vit-16")), str(tmp_path / "model.pth"))


def test_failed_loading_keeps_the_parameters(tmp_path):
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = {k: v + 1 for k, v in small().state_dict().items() if k != "a.bias"}
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(WeightsError):
        load_weights(model, str(tmp_path / "part.pth"))
    assert set(before) == set(model.state_dict())


def test_missing_file(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pth.*does not exist"):
        load_weights(small(), str(tmp_path / "absent.pth"))


@pytest.mark.parametrize("content", [b"", b"<html>", "list", "tensor", "text"])
def test_unreadable_files(tmp_path, content):
    path = tmp_path / "broken.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        value = {"list": [1, 2], "tensor": torch.zeros(2), "text": {"model": {"a.weight": "x"}}}
        torch.save(value[content], path)
    with pytest.raises(WeightsError, match=re.escape(str(path))) as error:
        load_weights(small(), str(path))
    assert "\n" not in str(error.value)


class Malicious:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".pyth"])
def test_files_cannot_run_code(tmp_path, suffix):
    """Detectron2 unpickles .pkl files, which can run any code."""
    path, target = tmp_path / f"bad{suffix}", tmp_path / "executed"
    content = {"model": Malicious(target), "__author__": "x"}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        load_weights(small(), str(path))
    assert not target.exists()


def test_loading_does_not_disable_the_log(tmp_path):
    logger = DetectionCheckpointer(small()).logger
    with pytest.raises(WeightsError):
        load_weights(small(), str(tmp_path / "absent.pth"))
    assert not logger.disabled


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("weights", ["", "model.pth"])
def test_warning_about_an_untrained_model(caplog, trains, weights):
    model = nn.Linear(2, 2).requires_grad_(trains)
    warn_if_untrained(model, weights)
    assert ("random values" in caplog.text) == (trains and not weights)


class Fetching(PathHandler):
    """Resolves test-weights:// to a local file, as Detectron2's handlers resolve https://."""

    def __init__(self, local):
        self.local = local

    def _get_supported_prefixes(self):
        return ["test-weights://"]

    def _get_local_path(self, path, force=False, **kwargs):
        if self.local is None:
            raise OSError("no route to host")
        return str(self.local)


@pytest.fixture
def serve():
    """``serve(file)``: resolve test-weights:// to this file; None: raise an error."""
    manager = DetectionCheckpointer(small()).path_manager

    def register(file):
        manager.register_handler(Fetching(file), allow_override=True)

    yield register
    manager._path_handlers.pop("test-weights://", None)


def test_weights_at_an_address(tmp_path, serve):
    source, target = small(), small()
    torch.save(source.state_dict(), tmp_path / "model.pth")
    serve(tmp_path / "model.pth")
    load_weights(target, "test-weights://a/model.pth")
    assert_same_weights(source, target)
    serve(None)
    with pytest.raises(WeightsError, match="test-weights://a/model.pth.*fetched: no route to host"):
        load_weights(target, "test-weights://a/model.pth")


def test_average_is_preferred_to_the_model():
    raw, average = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    assert trained_weights({"model": raw}) is raw
    assert trained_weights({"model": raw, "trainer": {"hooks": {"Other": {}}}}) is raw
    hooks = {"hooks": {"EMAHook": {"average": average, "n_averaged": 3}}}
    assert trained_weights({"model": raw, "trainer": hooks}) is average


def test_shipped_weights_belong_to_one_config(monkeypatch):
    root = Path(__file__).parents[3]
    monkeypatch.chdir(root / "configs")
    config = "emoji_scenes/dcp_clip_tiny.yaml"
    assert shipped_weights(config, []) == root / "dcp_clip" / "weights" / "emoji_scenes_tiny.pth"
    assert shipped_weights(config, ["OUTPUT_DIR", "MODEL.WEIGHTS"])  # a value, not a key
    for key in ("MODEL.WEIGHTS", "MODEL.CLIP.PRETRAINED"):
        assert shipped_weights(config, ["OUTPUT_DIR", "x", key, ""]) is None
    for other in ("camvid/fpn_tiny.yaml", "emoji_scenes/training_free.yaml", "absent.yaml", ""):
        assert shipped_weights(other, []) is None


def test_shipped_weights_exist():
    configs = Path(__file__).parents[3] / "configs"
    for data in ("camvid", "emoji_scenes"):
        config = configs / data / "dcp_clip_tiny.yaml"
        assert config.is_file() and shipped_weights(str(config), []).is_file()


def with_old_names(checkpoint):
    """Give a checkpoint the names of version 0.1."""
    state = {
        k.replace("refinement.classifier.", "refinement.judge."): v
        for k, v in checkpoint["model"].items()
    }
    assert any("refinement.judge." in name for name in state)
    hooks = checkpoint["trainer"]["hooks"]
    ema = hooks["EMAHook"]
    ema["average"] = {
        k.replace("refinement.classifier.", "refinement.judge."): v
        for k, v in ema["average"].items()
    }
    hooks["CLIPShareHook"] = {"share": hooks.pop("WeightInterpolationHook", {}).get("alpha", 0.4)}
    return {**checkpoint, "model": state}


def test_old_checkpoint_is_evaluated(config, run, tmp_path):
    trainer = run(config(), stop_at=4)
    path = tmp_path / "out" / "model_0000002.pth"
    checkpoint = torch.load(path, weights_only=True)
    average = checkpoint["trainer"]["hooks"]["EMAHook"]["average"]
    torch.save(with_old_names(torch.load(path, weights_only=True)), tmp_path / "old.pth")
    load_weights(trainer.model, str(tmp_path / "old.pth"))
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, average[name]), name


def test_training_resumes_from_an_old_checkpoint(config, run, tmp_path):
    whole = run(config("whole"))
    run(config(), stop_at=4)
    path = tmp_path / "out" / "model_0000002.pth"
    torch.save(with_old_names(torch.load(path, weights_only=True)), path)
    resumed = run(config(), resume=True)
    assert resumed.start_iter == 3
    expected = whole.model.state_dict()
    for key, value in resumed.model.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6, msg=key)


def test_old_names_of_hooks(tmp_path):
    content = {
        "model": small().state_dict(),
        "trainer": {"hooks": {"CLIPShareHook": {"share": 0.4}}},
    }
    torch.save(content, tmp_path / "old.pth")
    checkpoint = SafeCheckpointer(small()).load(str(tmp_path / "old.pth"))
    assert checkpoint["trainer"]["hooks"] == {"WeightInterpolationHook": {"alpha": 0.4}}


@pytest.mark.parametrize("name", ["camvid", "emoji_scenes"])
def test_shipped_weights_have_old_or_new_names_and_fit(name):
    root = Path(__file__).parents[3]
    cfg = setup_cfg(root / "configs" / name / "dcp_clip_tiny.yaml", ["MODEL.DEVICE", "cpu"])
    load_weights(build_model(cfg), str(root / "dcp_clip" / "weights" / f"{name}_tiny.pth"))
