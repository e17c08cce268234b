"""Calibration of a small model on a small data set."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.benchmarking import calibration_study
from dcp_clip.data.catalog import register_sem_seg
from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import Vocabulary

NAME = "test_calibrate_sem_seg_val"


@pytest.fixture(scope="module")
def program(load_program):
    return load_program("tools/calibrate.py")


@pytest.fixture
def arguments(tmp_path, write_stripes, make_cfg, make_model):
    """The config file and weights of a small model, and a registered data set."""
    write_stripes(tmp_path, 4)
    names = Vocabulary(["sky", "tree", "car", "a", "b", "c"])
    register_sem_seg(NAME, tmp_path / "images", tmp_path / "labels", names, ignore_label=255)
    opts = {"MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "", "DATALOADER.NUM_WORKERS": 0}
    opts["INPUT.MIN_SIZE_TEST"] = 64
    cfg = make_cfg(opts=opts)
    cfg.DATASETS.TRAIN, cfg.MODEL.WEIGHTS = (), str(tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": make_model(opts=opts).state_dict()}, tmp_path / "model.pth")
    yield ["--config-file", str(tmp_path / "config.yaml")]
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def test_fit_write_and_measure(program, arguments, tmp_path, capsys, monkeypatch):
    # The labels of the stripes: only "sky", "tree" and "car" occur, so a draw must contain one.
    monkeypatch.setattr(calibration_study, "removed_names", lambda count, draw: [0, 3, 4])
    files = ["--json", str(tmp_path / "x.json"), "--plot", str(tmp_path / "x.png")]
    assert program.main([*arguments, "--fit", NAME, "--write", "--unknown", "1", *files]) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "x.json").read_text())
    assert f"Temperature: {results['temperature']:.3f}" in printed
    values = results["calibration"][NAME]
    assert values["images"] == 4 and 0 <= values["ECE"] < values["ECE without calibration"] <= 100
    assert [row["signal"] for row in results["unknown"]][3] == "presence of stage 5"
    assert all(0 <= row["AUROC"] <= 100 for row in results["unknown"])
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"
    stored = json.loads((tmp_path / "model.calibration.json").read_text())
    assert stored["temperature"] == pytest.approx(results["temperature"], abs=1e-4)
    predictor = Predictor.from_config_file(arguments[1], vocabulary="sky; tree")
    assert predictor.model.temperature == stored["temperature"]
    # The stored temperature is used, and weights that changed can be calibrated again.
    assert program.main([*arguments, "--test", NAME, "--opts", "TEST.MAX_IMAGES", "2"]) == 0
    assert f"Temperature: {stored['temperature']:.3f}" in capsys.readouterr().out
    weights = torch.load(tmp_path / "model.pth")
    next(iter(weights["model"].values())).add_(1)
    torch.save(weights, tmp_path / "model.pth")
    with pytest.raises(SystemExit, match="belongs to other weights"):
        program.main([*arguments, "--test", NAME])
    assert program.main([*arguments, "--fit", NAME]) == 0


def test_a_temperature_that_cannot_be_written(program, arguments, monkeypatch):
    """It is refused before the evaluation."""
    monkeypatch.setattr(calibration_study.CalibrationStudy, "fit", None)
    options = ["--fit", NAME, "--write", "--opts", "MODEL.WEIGHTS"]
    monkeypatch.setattr(calibration_study, "has_weights", lambda cfg: True)
    for weights in ("", "https://host.invalid/model.pth"):
        with pytest.raises(SystemExit, match=f"MODEL.WEIGHTS is '{weights}', .* --write"):
            program.main([*arguments, *options, weights])


def test_the_fit_is_not_lost(program, arguments, monkeypatch, tmp_path, capsys):
    """Unknown detection comes last, and what it needs is checked first."""
    options = [*arguments, "--fit", NAME, "--write", "--json", str(tmp_path / "x.json")]
    with monkeypatch.context() as patch:
        patch.setattr(calibration_study.CalibrationStudy, "fit", None)
        for draws in ("2", "9"):
            with pytest.raises(SystemExit, match=f"too few for --unknown {draws}"):
                patch.setattr(calibration_study, "removed_names", lambda n, i: range((i == 1) * 6))
                program.main([*options, "--unknown", draws])
    monkeypatch.setattr(calibration_study, "removed_names", lambda count, draw: [3, 4, 5])
    with pytest.raises(SystemExit, match="half of the images"):
        program.main([*options, "--unknown", "1"])
    assert "Temperature" in capsys.readouterr().out and (tmp_path / "x.json").is_file()
    assert (tmp_path / "model.calibration.json").is_file()


def test_a_fit_needs_two_images(program, arguments):
    options = ["--fit", NAME, "--opts", "TEST.MAX_IMAGES"]
    assert program.main([*arguments, *options, "2"]) == 0
    with pytest.raises(SystemExit, match=f"{NAME} .* at least 2 images with labels"):
        program.main([*arguments, *options, "1"])


@pytest.mark.parametrize("removed", [[3, 4, 5], [0, 1, 2]])
@pytest.mark.parametrize("images", ["1", "4"])
def test_removed_names_that_separate_nothing(program, arguments, monkeypatch, removed, images):
    monkeypatch.setattr(calibration_study, "removed_names", lambda count, draw: removed)
    options = ["--test", NAME, "--unknown", "1", "--opts", "TEST.MAX_IMAGES", images]
    with pytest.raises(SystemExit, match=f"{NAME}: .*--unknown 1.* half of the images"):
        program.main([*arguments, *options])


def test_errors(program, arguments, capsys):
    for wrong, message in [
        ([], "give --fit or --test"),
        (["--test", NAME, "--write"], "--write needs --fit"),
        (["--test", NAME, "--unknown", "-1"], "at least 0"),
    ]:
        with pytest.raises(SystemExit):
            program.main([*arguments, *wrong])
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="absent_val"):
        program.main([*arguments, "--test", "absent_val"])
    windows = ["--opts", "MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE", "64"]
    with pytest.raises(SystemExit, match="whole images"):
        program.main([*arguments, "--test", NAME, *windows])
    labels = ["--opts", "MODEL.META_ARCHITECTURE", "SimilaritySegmentor"]
    with pytest.raises(SystemExit, match="labels without logits"):
        program.main([*arguments, "--test", NAME, *labels])
    with pytest.raises(SystemExit, match="too few for --unknown 3"):
        program.main([*arguments, "--test", NAME, "--unknown", "3"])
