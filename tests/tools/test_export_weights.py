"""tools/export_weights.py: size, content and errors."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine.checkpoints.calibration import write_temperature
from dcp_clip.engine.checkpoints.loading import load_weights
from dcp_clip.evaluation.environment import weights_fingerprint
from dcp_clip.modeling.clip.loading import load_clip
from dcp_clip.predictor import Predictor
from dcp_clip.utils.shipped_files import find_weights


@pytest.fixture(scope="module")
def tool(load_program):
    return load_program("tools/export_weights.py")


@pytest.fixture(scope="module")
def export(tool):
    """``export(source, target, *options)``: run the tool."""

    def run(*arguments):
        tool.export(tool.parse_args([str(argument) for argument in arguments]))

    return run


def make_model(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))


def test_weights_are_loaded_with_half_precision(export, tmp_path, capsys):
    model = make_model(0)
    model[1].running_var.fill_(1e6)  # too large for float16
    checkpoint = {"model": model.state_dict(), "optimizer": {"state": torch.zeros(10_000)}}
    torch.save(checkpoint, tmp_path / "model_final.pth")

    target = tmp_path / "out" / "weights.pth"
    export(tmp_path / "model_final.pth", target)
    values = sum(v.numel() for v in model.state_dict().values())
    assert f"{values:,} values" in capsys.readouterr().out
    assert target.stat().st_size < 10_000, "the state of the optimizer must not be included"
    other = make_model(1)
    load_weights(other, str(tmp_path / "out" / "weights.pth"))
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert other[0].weight.dtype == torch.float32


def test_a_file_that_would_be_lost_or_not_readable(export, tmp_path, capsys):
    source = tmp_path / "model_final.pth"
    torch.save({"model": make_model(0).state_dict(), "optimizer": {}}, source)
    before = source.read_bytes()
    same = f"{tmp_path}/../{tmp_path.name}/model_final.pth"
    for target, message in (
        (same, "is the checkpoint, which would lose the optimizer"),
        (tmp_path / "weights.safetensors", "must end in .pth or .pt or .bin"),
    ):
        with pytest.raises(SystemExit):
            export(source, target)
        assert message in capsys.readouterr().err
    assert source.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("content", [None, {"weights": torch.zeros(1)}, torch.zeros(1)])
def test_other_files_are_an_error(export, tmp_path, content):
    source = tmp_path / "wrong.pth"
    if content is not None:
        torch.save(content, source)
    with pytest.raises(SystemExit, match="wrong.pth"):
        export(source, tmp_path / "weights.pth")
    assert not (tmp_path / "weights.pth").exists()


def save_model(cfg, path: Path, hooks: dict | None = None) -> dict:
    state = build_model(cfg).state_dict()
    torch.save({"model": state, "trainer": {"hooks": hooks or {}}}, path)
    return state


@pytest.fixture
def config_file(make_cfg, tmp_path):
    """A config file with CLIP weights, and its config."""
    torch.manual_seed(0)
    torch.save(load_clip(make_cfg()).state_dict(), tmp_path / "clip.pt")
    cfg = make_cfg(opts={"MODEL.CLIP.PRETRAINED": str(tmp_path / "clip.pt")})
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path / "config.yaml", cfg


def test_image_tower_is_interpolated(export, config_file, make_cfg, tmp_path):
    path, cfg = config_file
    original = build_model(cfg).state_dict()
    torch.manual_seed(1)
    trained = save_model(make_cfg(), tmp_path / "model_final.pth")
    options = ["--wise-ft-alpha", "0.25", "--config-file", path]
    export(tmp_path / "model_final.pth", tmp_path / "mixed.pth", *options)
    mixed = torch.load(tmp_path / "mixed.pth", weights_only=True)["model"]
    assert mixed.keys() == trained.keys()
    for key, value in mixed.items():
        expected = trained[key]
        if key.startswith("backbone."):
            expected = 0.25 * original[key] + 0.75 * trained[key]
        torch.testing.assert_close(value.to(expected), expected, rtol=1e-3, atol=1e-4, msg=key)


def test_moving_average_is_interpolated(tool, export, config_file, make_cfg, tmp_path):
    path, _ = config_file
    original, _ = tool.read_original_tower(str(path))
    average = build_model(make_cfg()).state_dict()
    hooks = {"EMAHook": {"average": average}}
    save_model(make_cfg(), tmp_path / "model_0000002.pth", hooks)
    options = ["--wise-ft-alpha", "0.25", "--config-file", path]
    export(tmp_path / "model_0000002.pth", tmp_path / "mixed.pth", *options)
    mixed = torch.load(tmp_path / "mixed.pth", weights_only=True)["model"]
    for key, value in original.items():
        expected = 0.25 * value + 0.75 * average[f"backbone.{key}"]
        actual = mixed[f"backbone.{key}"].to(expected)
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4, msg=key)


def test_old_parameter_names_are_replaced(export, make_cfg, tmp_path):
    state = save_model(make_cfg(), tmp_path / "new.pth")
    new, old = "refinement.classifier.", "refinement.judge."
    content = {"model": {key.replace(new, old): value for key, value in state.items()}}
    assert content["model"].keys() != state.keys()
    torch.save(content, tmp_path / "old.pth")
    export(tmp_path / "old.pth", tmp_path / "out.pth")
    assert torch.load(tmp_path / "out.pth", weights_only=True)["model"].keys() == state.keys()


@pytest.mark.parametrize(
    "hooks", [{"WeightInterpolationHook": {"alpha": 0.4}}, {"CLIPShareHook": {"share": 0.4}}]
)
def test_second_interpolation_is_an_error(export, config_file, tmp_path, hooks):
    path, cfg = config_file
    save_model(cfg, tmp_path / "model_final.pth", hooks)
    files = [tmp_path / "model_final.pth", tmp_path / "out.pth"]
    with pytest.raises(SystemExit, match="model_final.pth is interpolated already, .* 0.4"):
        export(*files, "--wise-ft-alpha", "0.5", "--config-file", path)
    export(*files)
    assert files[1].is_file()


@pytest.mark.parametrize("during", [False, True])
def test_an_exported_file_records_its_interpolation(export, config_file, tmp_path, during):
    """Before the end of a training with SOLVER.WISE_FT_ALPHA, nothing is interpolated."""
    path, cfg = config_file
    cfg.SOLVER.WISE_FT_ALPHA = 0.4
    path.write_text(cfg.dump())
    options = ["--wise-ft-alpha", "0.5", "--config-file", path]
    names = ["model", "plain", "again", "mixed", "twice"]
    model, plain, again, mixed, twice = (tmp_path / f"{name}.pth" for name in names)
    hooks = {} if during else {"WeightInterpolationHook": {"alpha": 0.4}}
    save_model(cfg, model, hooks)
    export(model, plain)
    export(plain, again)
    if during:
        export(again, mixed, *options)
        with pytest.raises(SystemExit, match="mixed.pth is interpolated already, .* 0.5"):
            export(mixed, twice, *options)
    else:
        with pytest.raises(SystemExit, match="again.pth is interpolated already, .* 0.4"):
            export(again, twice, *options)
    assert not twice.exists()
    load_weights(build_model(cfg), str(again))


def test_weights_without_a_record_of_their_interpolation(export, config_file, tmp_path):
    path, cfg = config_file
    source, target = tmp_path / "old.pth", tmp_path / "out.pth"
    torch.save({"model": build_model(cfg).state_dict()}, source)
    options = ["--wise-ft-alpha", "0.5", "--config-file", path]
    export(source, target, *options)
    cfg.SOLVER.WISE_FT_ALPHA = 0.4
    path.write_text(cfg.dump())
    export(source, tmp_path / "copy.pth")
    for file in (source, tmp_path / "copy.pth"):
        match = f"{file.name} may already be interpolated.*SOLVER.WISE_FT_ALPHA 0.4"
        with pytest.raises(SystemExit, match=match):
            export(file, tmp_path / "twice.pth", *options)
    assert not (tmp_path / "twice.pth").exists()


def test_shipped_weights_are_not_interpolated_again(export, tmp_path):
    config = "emoji_scenes/dcp_clip_tiny.yaml"
    options = ["--wise-ft-alpha", "0.2", "--config-file", config]
    with pytest.raises(SystemExit, match="emoji_scenes_tiny.pth is interpolated already"):
        export(find_weights(config), tmp_path / "x.pth", *options)


def test_another_tower_or_no_clip_is_an_error(export, config_file, make_cfg, tmp_path):
    path, _ = config_file
    save_model(make_cfg("test-vit-16"), tmp_path / "vit.pth")
    files = [tmp_path / "vit.pth", tmp_path / "out.pth"]
    with pytest.raises(SystemExit, match=r"vit.pth has another image tower.*backbone\."):
        export(*files, "--wise-ft-alpha", "0.5", "--config-file", path)
    assert not files[1].exists()
    (tmp_path / "plain.yaml").write_text(make_cfg().dump())
    with pytest.raises(SystemExit, match="plain.yaml names no CLIP weights"):
        export(*files, "--wise-ft-alpha", "0.5", "--config-file", tmp_path / "plain.yaml")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--wise-ft-alpha", "0.5"], "--config-file is for --wise-ft-alpha and --output"),
        (["--config-file", "x.yaml"], "--config-file is for --wise-ft-alpha and --output"),
        (["--output", "out"], "give the file to write, or --output"),
        (["--results", "results.json"], "--results is for --output"),
        (["--wise-ft-alpha", "1", "--config-file", "x.yaml"], "1 is not between 0 and 1"),
    ],
)
def test_wrong_options(tool, options, message, capsys):
    with pytest.raises(SystemExit):
        tool.parse_args(["model_final.pth", "weights.pth", *options])
    assert message in capsys.readouterr().err


def test_model_folder(export, config_file, make_cfg, tmp_path, capsys, monkeypatch):
    """--output writes a folder for Predictor.from_pretrained, with the same half precision."""
    monkeypatch.chdir(tmp_path)
    path, cfg = config_file
    cfg.DATASETS.TRAIN = ("camvid_sem_seg_train",)
    cfg.MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR = ""
    path.write_text(cfg.dump())
    torch.manual_seed(1)
    save_model(make_cfg(), Path("model.pth"))
    model = build_model(make_cfg())
    load_weights(model, "model.pth")
    write_temperature("model.pth", model, 1.4, ["mini"])
    environment = {"weights fingerprint": weights_fingerprint(model)}
    scores = {"mini": {"sem_seg": {"mIoU": 12.5}}}
    content = {"datasets": ["mini"], "results": scores, "environment": environment}
    Path("results.json").write_text(json.dumps(content))
    options = ["--config-file", path, "--output"]
    export("model.pth", *options, "model", "--results", "results.json")
    assert "model: a model folder for Predictor.from_pretrained" in capsys.readouterr().out
    export("model.pth", "half.pth")
    predictor = Predictor.from_pretrained("model")
    load_weights(model, "half.pth")
    assert weights_fingerprint(predictor.model) == weights_fingerprint(model)
    assert predictor.vocabulary == dataset_vocabulary("camvid_sem_seg_train")
    assert predictor.model.temperature == 1.4
    calibration = json.loads(Path("model/model.calibration.json").read_text())
    assert calibration["fitted on"] == ["mini"]
    assert "12.50" in Path("model/README.md").read_text()

    with pytest.raises(SystemExit, match="model' cannot be written: it exists and is not an empty"):
        export("model.pth", *options, "model")
    export("model.pth", *options, "mixed", "--wise-ft-alpha", "0.25")
    mixed = Predictor.from_pretrained("mixed")
    assert mixed.model.temperature == 1 and not Path("mixed/model.calibration.json").exists()
    assert weights_fingerprint(mixed.model) != weights_fingerprint(model)
    save_model(make_cfg("test-vit-16"), Path("vit.pth"))
    with pytest.raises(SystemExit, match="vit.pth"):
        export("vit.pth", *options, "vit")
    with pytest.raises(SystemExit, match="is the evaluation of other weights"):
        content["environment"]["weights fingerprint"] = "0123"
        Path("results.json").write_text(json.dumps(content))
        export("model.pth", *options, "other", "--results", "results.json")
    assert not Path("vit").exists() and not Path("other").exists()
