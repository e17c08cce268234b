"""benchmark.py: the report and the files hold all figures; wrong arguments end with a sentence."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dcp_clip.predictor import Predictor

TINY = "configs/camvid/dcp_clip_tiny.yaml"
TRAINING_FREE = "configs/emoji_scenes/training_free.yaml"
BASELINES = "configs/emoji_scenes/baselines"


@pytest.fixture
def run(load_program, tmp_path, capsys, monkeypatch):
    """``run(*arguments)``: the result for one config, and the report."""
    program = load_program("tools/benchmark.py")
    monkeypatch.chdir(program.ROOT)

    def run(*arguments, config=TINY, opts=()):
        file = tmp_path / "figures.json"
        arguments = ["--config-file", config, *arguments, "--device", "cpu", "--json", str(file)]
        program.main([*arguments, "--opts", *opts])
        content = json.loads(file.read_text())
        assert content["environment"]["torch"]
        (result,) = content["results"]
        return result, capsys.readouterr().out

    return run


@pytest.fixture
def photographs(tmp_path):
    """A folder of three photographs of 32 x 48 pixels."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (48, 32), (80 * i, 100, 0)).save(folder / f"{i}.png")
    return str(folder)


def test_inference(run, tmp_path):
    plot, profile = tmp_path / "plot.png", tmp_path / "profile.md"
    arguments = ["--size", "60", "70", "--output-size", "30", "40", "--repeats", "1"]
    arguments += ["--vocabulary-sizes", "6", "40", "60"]
    arguments += ["--profile", str(profile), "--plot", str(plot)]
    result, report = run(*arguments, opts=["MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS", "8"])
    rows = result["rows"]
    assert [(r["categories"], r["proposals"]) for r in rows] == [(6, 6), (40, 8), (60, 8)]
    for row in rows:
        assert row["relative_time"] == row["whole_seconds"] / row["encoder_seconds"]
        assert f"{1e3 * row['added_seconds']:,.1f} |" in report
        assert row["added_flops"] > 0 and row["encoder_peak_bytes"] > 0
        assert row["added_peak_bytes"] > 0
    # Each further category costs one similarity for each position (4 x 5), and no more.
    added = rows[2]["added_flops"] - rows[1]["added_flops"]
    assert 0 < added <= 2 * 20 * 192 * (4 * 5 + 1)
    assert "random weights" in report and "| fine_decoder" in report
    assert profile.read_text().partition("\n\n")[2].strip() in report
    stages = {row["stage"]: row for row in result["stages"]}
    # The fine logits and those of stage 5: 8 categories at stride 4.
    assert stages["fine_decoder"]["memory_bytes"] >= 4 * 8 * 15 * 17
    assert any(row["operator"].startswith("aten::") for row in result["operators"])
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 300


def test_a_training_step(run):
    arguments = ["--size", "64", "96", "--vocabulary-sizes", "10"]
    arguments += ["--train", "--batch", "3", "--repeats", "1"]
    rows = []
    for policy in ("none", "all"):
        # Muon would add the orthogonalisation of the encoder's matrices.
        opts = ["MODEL.CLIP.TRAIN_IMAGE", policy, "SOLVER.OPTIMIZER", "ADAMW"]
        result, _ = run(*arguments, *["--profile"] * (policy == "all"), opts=opts)
        rows += result["rows"]
    stages = {row["stage"]: row["time_seconds"] for row in result["stages"]}
    assert {"backbone", "criterion", "backward", "optimizer"} < set(stages)
    assert all(stages[stage] > 0 for stage in ("fine_decoder", "criterion", "backward"))
    frozen, trained = rows
    assert (frozen["batch"], frozen["categories"], frozen["proposals"]) == (3, 10, 10)
    assert frozen["step_flops"] > frozen["encoder_flops"] == trained["encoder_flops"] > 0
    # An encoder that trains adds its backward pass: about twice its forward pass.
    backward = trained["step_flops"] - frozen["step_flops"]
    assert 1.5 < backward / frozen["encoder_flops"] < 2.1
    assert frozen["step_peak_bytes"] > frozen["encoder_peak_bytes"] > 0
    assert frozen["relative_time"] == frozen["step_seconds"] / frozen["encoder_seconds"]


def test_text(run):
    arguments = ["--size", "64", "96", "--vocabulary-sizes", "40", "80", "--text"]
    result, _ = run(*arguments, opts=["MODEL.DCP_CLIP.VOCABULARY.TEMPLATES", "single"])
    small, large = result["rows"]
    assert (small["categories"], large["categories"], small["templates"]) == (40, 80, 1)
    assert 0 < small["second_start_seconds"] < small["encoding_seconds"]
    # Twice the names add the memory of their features, but not of their encoding.
    assert 0 <= large["peak_bytes"] - small["peak_bytes"] < 0.1 * small["peak_bytes"]


def test_both_precisions(run):
    arguments = ["--size", "64", "96", "--vocabulary-sizes", "10", "20", "--repeats", "1"]
    result, report = run(*arguments, "--bf16")
    for row, count in zip(result["rows"], (10, 20), strict=True):
        assert row["categories"] == count and "equal_pixels" not in row
        assert row["speed_up"] == row["fp32_seconds"] / row["bf16_seconds"]
    assert "bf16 ms" in report


@pytest.mark.parametrize(("rows", "agreement"), [(0, 1.0), (8, 11 / 12)])
def test_equal_pixels_are_counted(run, photographs, monkeypatch, rows, agreement):
    """The first rows of one of three photographs of 32 rows get another category in bfloat16."""

    def predict(predictor, image, size):
        label_map = np.zeros(image.shape[:2], np.uint8)
        label_map[: rows * (predictor.model.bf16 and image[0, 0, 0] == 80)] = 1
        return SimpleNamespace(label_map=label_map, milliseconds=1.0)

    monkeypatch.setattr(Predictor, "__call__", predict)
    result, _ = run("--bf16", photographs, "--vocabulary", "sky; tree")
    (row,) = result["rows"]
    assert row["equal_pixels"] == pytest.approx(agreement)
    assert (row["images"], row["categories"], row["speed_up"]) == (3, 2, 1)


def test_the_demo(run, photographs, tmp_path):
    arguments = ["--demo", photographs, "--images", "5", "--vocabulary", "sky; tree"]
    result, _ = run(*arguments, opts=["INPUT.MIN_SIZE_TEST", "32"])
    (row,) = result["rows"]
    assert (row["images"], row["categories"]) == (5, 2)
    assert row["relative_time"] == row["demo_seconds"] / row["model_seconds"] > 0


def test_an_unreadable_image_ends_the_measurement(run, tmp_path):
    (tmp_path / "damaged.png").write_text("no image")
    with pytest.raises(SystemExit, match="damaged.png"):
        run("--demo", str(tmp_path))


@pytest.mark.parametrize("config", ["pixel_text", "cost_aggregation", "mask_queries"])
def test_baselines_are_measured_and_profiled(run, config):
    arguments = ["--size", "64", "64", "--vocabulary-sizes", "10", "--repeats", "1", "--profile"]
    result, _ = run(*arguments, config=f"{BASELINES}/{config}.yaml")
    stages = {row["stage"]: row["time_seconds"] for row in result["stages"]}
    assert stages["backbone"] > 0 and ("proposal" in stages) == (config == "cost_aggregation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "no/such.yaml"], "no/such.yaml"),
        (["--opts", "MODEL.CLIPP", "x"], "MODEL.CLIPP"),
        (["--opts", "MODEL.CLIP.NAME", "ViT-Z"], "'ViT-Z'"),
        (["--json", "no/such/folder/out.json"], "no/such/folder"),
        (["--plot", "no/such/plot.png"], "no/such"),
        (["--profile", "docs"], "--profile: docs is a folder"),
        (["--train", "--plot", "plot.png"], "--plot"),
        (["--text", "--profile"], "--profile"),
        (["--demo", "no/such/photos"], "no/such/photos"),
        (["--bf16", "no/such/photos"], "no/such/photos"),
        (["--bf16", "--plot", "plot.png"], "leave out --bf16"),
        (["--backends", "torch", "--output-size", "8", "8"], "leave out --output-size"),
        (["--bf16", "--train"], "--train and --bf16"),
        (["--config-file", TRAINING_FREE, "--train", "--size", "64", "64"], "no trainable"),
        (["--demo", "docs/images", "--opts", "MODEL.WEIGHTS", "no.pth"], "'no.pth'"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(load_program, monkeypatch, arguments, message):
    program = load_program("tools/benchmark.py")
    monkeypatch.chdir(program.ROOT)
    with pytest.raises(SystemExit) as stop:
        program.main(["--config-file", TINY, "--device", "cpu", *arguments])
    assert message in str(stop.value)
