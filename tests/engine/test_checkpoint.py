"""MODEL.WEIGHTS are loaded whole, or one sentence says why not."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from iopath.common.file_io import PathHandler
from torch import nn

from dcp_clip.engine.checkpoint import (
    WeightsError,
    load_weights,
    shipped_weights,
    trained_weights,
    warn_if_untrained,
)


def small(width=3):
    return nn.ModuleDict({"a": nn.Linear(2, width), "b": nn.BatchNorm1d(width)})


def assert_same_weights(a, b):
    for key, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[key]), key


def test_what_the_checkpointer_writes(tmp_path):
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


def test_the_model_comes_back_whole(make_model, make_cfg, make_image, segment, tmp_path):
    source = make_model("test-convnext")
    DetectionCheckpointer(source, str(tmp_path)).save("model")
    target = build_model(make_cfg("test-convnext")).eval()
    load_weights(target, str(tmp_path / "model.pth"))
    x = (make_image(40, 56), source.vocabulary)
    a, b = (segment(model, *x)["sem_seg"] for model in (source, target))
    assert torch.equal(a.logits, b.logits) and torch.equal(a.category_ids, b.category_ids)


def test_no_path_is_nothing_to_do():
    load_weights(small(), "")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("a.weight"), r"1 parameters are missing.*a\.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 are not in the model.*extra"),
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


def test_a_model_that_does_not_fit_is_left_as_it_was(tmp_path):
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
    """Detectron2 unpickles .pkl files: whoever shares weights could run anything here."""
    path, target = tmp_path / f"bad{suffix}", tmp_path / "was here"
    content = {"model": Malicious(target), "__author__": "x"}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=re.escape(str(path))):
        load_weights(small(), str(path))
    assert not target.exists()


def test_logging_is_as_before(tmp_path):
    logger = DetectionCheckpointer(small()).logger
    with pytest.raises(WeightsError):
        load_weights(small(), str(tmp_path / "absent.pth"))
    assert not logger.disabled


@pytest.mark.parametrize("learns", [True, False])
@pytest.mark.parametrize("weights", ["", "model.pth"])
def test_an_untrained_model_is_warned_of(caplog, learns, weights):
    model = nn.Linear(2, 2).requires_grad_(learns)
    warn_if_untrained(model, weights)
    assert ("before training" in caplog.text) == (learns and not weights)


class Fetching(PathHandler):
    """Addresses whose files are elsewhere, as Detectron2's own handlers of https:// have them."""

    def __init__(self, local):
        self.local = local

    def _get_supported_prefixes(self):
        return ["test-weights://"]

    def _get_local_path(self, path, force=False, **kwargs):
        if self.local is None:
            raise OSError("no route to it")
        return str(self.local)


@pytest.fixture
def serve():
    """``serve(file)``: what test-weights:// leads to from now on; None: nowhere."""
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
    with pytest.raises(WeightsError, match="test-weights://a/model.pth.*fetched: no route to it"):
        load_weights(target, "test-weights://a/model.pth")


def test_the_average_of_a_checkpoint_is_what_counts():
    raw, average = {"a": torch.zeros(1)}, {"a": torch.ones(1)}
    assert trained_weights({"model": raw}) is raw
    assert trained_weights({"model": raw, "trainer": {"hooks": {"Other": {}}}}) is raw
    hooks = {"hooks": {"EMAHook": {"average": average, "n_averaged": 3}}}
    assert trained_weights({"model": raw, "trainer": hooks}) is average


def test_shipped_weights_belong_to_their_config_alone(monkeypatch):
    root = Path(__file__).parents[1]
    monkeypatch.chdir(root / "configs")
    config = "emoji_scenes/dcp_clip_tiny.yaml"
    assert shipped_weights(config, []) == root / "dcp_clip" / "weights" / "emoji_scenes_tiny.pth"
    assert shipped_weights(config, ["OUTPUT_DIR", "MODEL.WEIGHTS"])  # a value, not a key
    for key in ("MODEL.WEIGHTS", "MODEL.CLIP.PRETRAINED"):
        assert shipped_weights(config, ["OUTPUT_DIR", "x", key, ""]) is None
    for other in ("camvid/fpn_tiny.yaml", "emoji_scenes/training_free.yaml", "absent.yaml", ""):
        assert shipped_weights(other, []) is None


def test_shipped_weights_are_there():
    configs = Path(__file__).parents[1] / "configs"
    for data in ("camvid", "emoji_scenes"):
        config = configs / data / "dcp_clip_tiny.yaml"
        assert config.is_file() and shipped_weights(str(config), []).is_file()
