"""benchmark.py: its meters count what can be counted by hand; its report holds every row."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import benchmark  # noqa: E402
import benchmark_meters  # noqa: E402
import benchmark_profile  # noqa: E402
import benchmark_subject  # noqa: E402

CPU = torch.device("cpu")
TINY = str(ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml")
TRAINING_FREE = str(ROOT / "configs" / "emoji_scenes" / "training_free.yaml")
REFERENCE = ROOT / "configs" / "emoji_scenes" / "reference"
MIB = 2**20


def flops(module: nn.Module, *inputs: torch.Tensor, **options) -> int:
    with torch.no_grad():
        return benchmark_meters.count_flops(lambda: module.eval()(*inputs, **options))


def test_flops_of_convolution_and_linear_layer():
    image = torch.zeros(1, 3, 8, 8)
    assert flops(nn.Conv2d(3, 5, 3, padding=1), image) == 2 * 64 * 5 * 3 * 9
    assert flops(nn.Linear(7, 11), torch.zeros(4, 7)) == 2 * 4 * 7 * 11


def test_flops_of_attention_include_both_products():
    n, d = 10, 16
    x = torch.zeros(1, n, d)
    expected = 2 * 4 * n * d * d + 2 * 2 * n * n * d  # four projections; scores and values
    attention = nn.MultiheadAttention(d, 2, batch_first=True)
    assert flops(attention, x, x, x, need_weights=False) == expected
    query, key = torch.zeros(1, 2, 10, 8), torch.zeros(1, 2, 5, 8)
    with torch.no_grad():
        counted = benchmark_meters.count_flops(
            lambda: F.scaled_dot_product_attention(query, key, key, torch.zeros(10, 5))
        )
    assert counted == 2 * 2 * 2 * 10 * 5 * 8


def test_counting_flops_leaves_attention_as_it_was():
    assert torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError):
        benchmark_meters.count_flops(lambda: 1 / 0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_peak_memory_is_of_tensors_alive_at_one_time():
    before = torch.ones(8 * MIB, dtype=torch.uint8)

    def one_after_the_other():
        for _ in range(3):
            before.clone()
        return torch.ones(2 * MIB, dtype=torch.uint8)

    def both():
        first = before.clone()
        return first, before.clone()

    assert benchmark_meters.peak_bytes(one_after_the_other, CPU) == pytest.approx(8 * MIB, rel=0.01)
    assert benchmark_meters.peak_bytes(both, CPU) == pytest.approx(16 * MIB, rel=0.01)


def test_vocabularies_are_distinct_and_nested():
    small, large = benchmark_subject.make_vocabulary(100), benchmark_subject.make_vocabulary(6000)
    assert len(set(large.synonyms)) == 6000
    assert large.synonyms[:100] == small.synonyms


def test_random_text_has_the_form_of_text_features():
    text = benchmark_subject.RandomText(32, CPU)
    vocabulary = benchmark_subject.make_vocabulary(50)
    features = text.encode_vocabulary(vocabulary)
    assert features.num_categories == 50
    assert features.rows.flatten().tolist() == list(range(50))
    torch.testing.assert_close(features.embeddings.norm(dim=1), torch.ones(50))
    assert text.encode_vocabulary(benchmark_subject.make_vocabulary(50)) is features


@pytest.mark.parametrize("text", ["--random-text", "--no-random-text"])
def test_report_and_json(tmp_path, capsys, text):
    out = tmp_path / "figures.json"
    arguments = ["--config-file", TINY, "--size", "60", "70", "--output-size", "30", "40", text]
    arguments += ["--vocabulary-sizes", "6", "40", "60", "--repeats", "1", "--device", "cpu"]
    plot = tmp_path / "plot.png"
    trace = tmp_path / "profile.md"
    arguments += ["--json", str(out), "--profile", str(trace), "--plot", str(plot)]
    benchmark.main([*arguments, "--opts", "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS", "8"])
    report = capsys.readouterr().out
    content = json.loads(out.read_text())
    (result,) = content["results"]
    rows = result["rows"]
    assert [(r["vocabulary"], r["proposals"]) for r in rows] == [(6, 6), (40, 8), (60, 8)]
    for row in rows:
        assert f"| {row['vocabulary']} | {row['proposals']} |" in report
        assert row["ratio"] == row["whole_seconds"] / row["encoder_seconds"]
        assert f"| {1e3 * row['rest_seconds']:.1f} |" in report
        assert row["rest_flops"] > 0 and row["whole_peak_bytes"] > row["encoder_peak_bytes"] > 0
    # What is added to the vocabulary costs one similarity a name and position (2 x 3), no more.
    added = rows[2]["rest_flops"] - rows[1]["rest_flops"]
    assert 0 < added <= 2 * 20 * 192 * (2 * 3 + 1)
    parameters = result["parameters"]
    assert parameters["total"] >= parameters["trained"] > parameters["clip_image_tower"] > 0
    assert "random weights" in report and "| fine_decoder |" in report
    assert trace.read_text().partition("\n\n")[2].strip() in report
    stages = result["profile"]["stages"]
    # The fine maps and stage 4's alone: 6 or 8 categories at stride 4.
    assert stages["fine_decoder"]["bytes"] >= 4 * 8 * 15 * 17
    assert result["profile"]["operators"]["aten::empty"]["bytes"] > 0
    assert f"torch {torch.__version__.partition('+')[0]}" in report
    assert content["environment"]["torch"] in report
    with Image.open(plot) as picture:
        assert picture.format == "PNG" and picture.width > picture.height > 300


def test_a_training_step_is_measured_and_profiled_beside_the_encoder(tmp_path, capsys):
    out = tmp_path / "figures.json"
    arguments = ["--config-file", TINY, "--size", "64", "96", "--vocabulary-sizes", "10"]
    arguments += ["--train", "--batch", "3", "--repeats", "1", "--device", "cpu"]
    rows = []
    for policy in ("none", "all"):
        opts = ["--profile"] * (policy == "all")
        opts += ["--opts", "MODEL.CLIP.TRAIN_IMAGE", policy, "MODEL.CLIP.TRAIN_TEXT", "none"]
        benchmark.main([*arguments, "--json", str(out), *opts])
        (result,) = json.loads(out.read_text())["results"]
        rows.append(result["training"])
        report = capsys.readouterr().out
        assert "| 3 | 10 | 10 |" in report
    stages = result["profile"]["stages"]
    assert {*benchmark_profile.STAGES, "criterion", "backward", "optimiser"} < set(stages)
    assert all(stages[stage]["ms"] > 0 for stage in ("fine_decoder", "criterion", "backward"))
    assert "aten::convolution_backward" in result["profile"]["operators"]
    assert "| backward |" in report
    frozen, trained = rows
    assert (frozen["batch"], frozen["vocabulary"], frozen["proposals"]) == (3, 10, 10)
    assert frozen["step_flops"] > frozen["encoder_flops"] == trained["encoder_flops"] > 0
    # Where the encoder trains, its backward comes to the step: about twice its forward.
    backward = trained["step_flops"] - frozen["step_flops"]
    assert 1.5 < backward / frozen["encoder_flops"] < 2.1
    assert frozen["step_peak_bytes"] > frozen["encoder_peak_bytes"] > 0
    assert frozen["beyond_ratio"] == pytest.approx(
        frozen["step_seconds"] / frozen["encoder_seconds"] - 1
    )


def test_text_is_measured_with_its_second_start(tmp_path, capsys):
    out = tmp_path / "figures.json"
    arguments = ["--config-file", TINY, "--size", "64", "96", "--vocabulary-sizes", "40", "80"]
    benchmark.main([*arguments, "--text", "--device", "cpu", "--json", str(out)])
    (result,) = json.loads(out.read_text())["results"]
    small, large = result["text"]
    assert (small["vocabulary"], large["vocabulary"], small["templates"]) == (40, 80, 1)
    assert 0 < small["cached_seconds"] < small["first_seconds"]
    # Twice the names take the memory of their features more, not that of their encoding.
    assert 0 <= large["peak_bytes"] - small["peak_bytes"] < 0.1 * small["peak_bytes"]
    assert "| 80 | 1 |" in capsys.readouterr().out


def test_the_demo_is_measured_beside_its_model(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.new("RGB", (48, 32), (80 * i, 100, 0)).save(tmp_path / "in" / f"{i}.png")
    out = tmp_path / "figures.json"
    arguments = ["--config-file", TINY, "--demo", str(tmp_path / "in"), "--images", "5"]
    arguments += ["--vocabulary", "sky; tree", "--device", "cpu", "--json", str(out)]
    benchmark.main([*arguments, "--opts", "INPUT.MIN_SIZE_TEST", "32"])
    (result,) = json.loads(out.read_text())["results"]
    row = result["demo"]
    assert (row["images"], row["distinct"], row["vocabulary"]) == (5, 3, 2)
    assert row["share"] == row["model_seconds"] / row["demo_seconds"]
    assert set(row["step_seconds"]) == {
        "read",
        "resize, model, label map",
        "draw",
        "write overlay",
        "write labels",
    }
    report = capsys.readouterr().out
    assert "| 5 | 2 |" in report and "| draw |" in report
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["in"]


def test_an_image_that_the_demo_cannot_read_ends_the_measurement(tmp_path):
    (tmp_path / "damaged.png").write_text("no image")
    with pytest.raises(SystemExit, match="damaged.png"):
        benchmark.main(["--config-file", TINY, "--demo", str(tmp_path), "--device", "cpu"])


def test_what_is_replayed_has_the_size_of_what_is_asked(make_model):
    """Sliding windows were given the features of the whole image."""
    backbone, calls = make_model().backbone, []
    backbone.register_forward_hook(lambda _, inputs, __: calls.append(inputs[0].shape[-2:]))
    replay = benchmark_subject.Replay(backbone)
    sizes = [(64, 64), (64, 96), (64, 64), (64, 96)]
    with torch.no_grad():
        answers = [replay(torch.rand(1, 3, *size)) for size in sizes]
    assert calls == sizes[:2]
    assert answers[0] is answers[2] and answers[1] is answers[3]
    assert answers[1]["dense"].shape[-1] > answers[0]["dense"].shape[-1]


def test_models_stages_are_those_that_the_profile_names(make_model):
    model = make_model()
    assert all(isinstance(getattr(model, stage), nn.Module) for stage in benchmark_profile.STAGES)


@pytest.mark.parametrize("config", ["pixel_text", "cost_aggregation", "mask_queries"])
def test_a_head_without_the_stages_is_measured_and_profiled(tmp_path, config):
    out = tmp_path / "figures.json"
    arguments = ["--config-file", str(REFERENCE / f"{config}.yaml"), "--size", "64", "64"]
    arguments += ["--vocabulary-sizes", "10", "--repeats", "1", "--device", "cpu", "--profile"]
    benchmark.main([*arguments, "--json", str(out)])
    (result,) = json.loads(out.read_text())["results"]
    assert result["profile"]["stages"]["backbone"]["ms"] > 0
    assert "proposal" not in result["profile"]["stages"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config-file", "no/such.yaml"], "no/such.yaml"),
        (["--config-file", TINY, "--opts", "MODEL.CLIPP", "x"], "MODEL.CLIPP"),
        (["--config-file", TINY, "--opts", "MODEL.CLIP.NAME", "ViT-Z"], "'ViT-Z'"),
        (["--config-file", TINY, "--json", "no/such/folder/out.json"], "no/such/folder"),
        (["--config-file", TINY, "--plot", "no/such/plot.png"], "no/such"),
        (["--config-file", TINY, "--train", "--plot", "plot.png"], "--plot"),
        (["--config-file", TINY, "--text", "--profile"], "--profile"),
        (["--config-file", TINY, "--demo", "no/such/photos"], "no/such/photos"),
        (["--config-file", TINY, "--bf16", "no/such/photos"], "no/such/photos"),
        (["--config-file", TINY, "--bf16", "--plot", "plot.png"], "leave out --bf16"),
        (["--config-file", TINY, "--bf16", "--train"], "--train and --bf16"),
        (["--config-file", TRAINING_FREE, "--train", "--size", "64", "64"], "nothing"),
        (
            ["--config-file", TINY, "--demo", "datasets", "--opts", "MODEL.WEIGHTS", "no.pth"],
            "'no.pth'",
        ),
    ],
)
def test_bad_arguments_end_with_a_sentence(arguments, message):
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--device", "cpu", *arguments])
    assert message in str(stop.value)


def test_too_little_memory_ends_with_a_sentence(monkeypatch):
    def allocate(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    monkeypatch.setattr(benchmark, "measure", allocate)
    arguments = ["--config-file", TINY, "--device", "cpu", "--size", "64", "64"]
    with pytest.raises(SystemExit, match="64 x 64 pixels and up to 20,000 names need more memory"):
        benchmark.main(arguments)
