"""tools/export_weights.py: small, complete, and loading back to the same answer."""

import importlib.util
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from dcp_clip.engine.checkpoint import load_weights
from dcp_clip.modeling.clip.loading import load_clip

TOOL = Path(__file__).parents[2] / "tools" / "export_weights.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("export_weights", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))


def test_weights_load_back_within_half_precision(tool, tmp_path):
    model = make_model(0)
    model[1].running_var.fill_(1e6)  # beyond float16: statistics must stay in full precision
    checkpoint = {"model": model.state_dict(), "optimizer": {"state": torch.zeros(10_000)}}
    torch.save(checkpoint, tmp_path / "model_final.pth")

    values, size = tool.export(tmp_path / "model_final.pth", tmp_path / "out" / "weights.pth")

    assert values == sum(v.numel() for v in model.state_dict().values())
    assert size < 10_000, "the optimiser's state is not part of the weights"
    other = make_model(1)
    load_weights(other, str(tmp_path / "out" / "weights.pth"))
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert other[0].weight.dtype == torch.float32


@pytest.mark.parametrize("content", [None, {"weights": torch.zeros(1)}])
def test_what_is_no_checkpoint_is_refused_by_name(tool, tmp_path, content):
    source = tmp_path / "wrong.pth"
    if content is not None:
        torch.save(content, source)
    with pytest.raises(SystemExit, match="wrong.pth"):
        tool.export(source, tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()


def save_model(cfg, path: Path, hooks: dict | None = None) -> dict:
    state = build_model(cfg).state_dict()
    torch.save({"model": state, "trainer": {"hooks": hooks or {}}}, path)
    return state


@pytest.fixture
def config_file(make_cfg, tmp_path):
    """Of a model whose CLIP's weights are in a file; returns it and the config."""
    torch.manual_seed(0)
    torch.save(load_clip(make_cfg()).state_dict(), tmp_path / "clip.pt")
    cfg = make_cfg(opts={"MODEL.CLIP.PRETRAINED": str(tmp_path / "clip.pt")})
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path / "config.yaml", cfg


def test_the_image_tower_gets_a_share_of_clips_weights(
    tool, config_file, make_cfg, tmp_path, monkeypatch
):
    path, cfg = config_file
    own = build_model(cfg).state_dict()
    torch.manual_seed(1)
    trained = save_model(make_cfg(), tmp_path / "model_final.pth")
    arguments = ["", str(tmp_path / "model_final.pth"), str(tmp_path / "mixed.pth")]
    arguments += ["--clip-share", "0.25", "--config-file", str(path)]
    monkeypatch.setattr("sys.argv", arguments)
    tool.main()
    mixed = torch.load(tmp_path / "mixed.pth", weights_only=True)["model"]
    assert mixed.keys() == trained.keys()
    for key, value in mixed.items():
        expected = trained[key]
        if key.startswith("backbone."):
            expected = 0.25 * own[key] + 0.75 * trained[key]
        torch.testing.assert_close(value.to(expected), expected, rtol=1e-3, atol=1e-4, msg=key)


def test_of_an_averaging_training_the_average_is_mixed(tool, config_file, make_cfg, tmp_path):
    path, _ = config_file
    own = tool.read_tower(str(path))
    average = build_model(make_cfg()).state_dict()
    hooks = {"EMAHook": {"average": average}}
    save_model(make_cfg(), tmp_path / "model_0000002.pth", hooks)
    tool.export(tmp_path / "model_0000002.pth", tmp_path / "mixed.pth", own, 0.25)
    mixed = torch.load(tmp_path / "mixed.pth", weights_only=True)["model"]
    for key, value in own.items():
        expected = 0.25 * value + 0.75 * average[f"backbone.{key}"]
        actual = mixed[f"backbone.{key}"].to(expected)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4, msg=key)


def test_a_second_share_is_refused(tool, config_file, tmp_path):
    path, cfg = config_file
    save_model(cfg, tmp_path / "model_final.pth", {"WeightInterpolationHook": {"share": 0.4}})
    with pytest.raises(SystemExit, match="model_final.pth has a share .*already, 0.4"):
        tool.export(tmp_path / "model_final.pth", tmp_path / "o.pth", tool.read_tower(path), 0.5)
    values, _ = tool.export(tmp_path / "model_final.pth", tmp_path / "o.pth")
    assert values


def test_another_tower_or_no_clip_is_refused_by_name(tool, config_file, make_cfg, tmp_path):
    path, _ = config_file
    save_model(make_cfg("test-vit-16"), tmp_path / "vit.pth")
    with pytest.raises(SystemExit, match=r"vit.pth holds another image tower.*backbone\."):
        tool.export(tmp_path / "vit.pth", tmp_path / "out.pth", tool.read_tower(str(path)), 0.5)
    assert not (tmp_path / "out.pth").exists()
    (tmp_path / "plain.yaml").write_text(make_cfg().dump())
    with pytest.raises(SystemExit, match="plain.yaml names no weights of CLIP"):
        tool.read_tower(str(tmp_path / "plain.yaml"))


@pytest.mark.parametrize(
    "options, message",
    [
        (["--clip-share", "0.5"], "go together"),
        (["--config-file", "x.yaml"], "go together"),
        (["--clip-share", "1", "--config-file", "x.yaml"], "1 is not between 0 and 1"),
    ],
)
def test_a_share_needs_a_config_and_is_below_one(tool, options, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["", "model_final.pth", "weights.pth", *options])
    with pytest.raises(SystemExit):
        tool.main()
    assert message in capsys.readouterr().err
