"""Errors in config files and options, and how their values are read."""

from pathlib import Path

import pytest
import torch

from dcp_clip.config import setup_cfg

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("key", ["MODEL.CLIP.PRETRANED", "MODEL.DCP_CLIP.PROPOSALS.NAME"])
def test_misspelt_key_on_the_command_line(key):
    with pytest.raises(KeyError, match=key):
        setup_cfg("", [key, "x"])


def test_misspelt_key_in_a_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("VERSION: 2\nMODEL:\n  DCP_CLIP:\n    PROPOSAL:\n      NUM_PROPOSAL: 3\n")
    with pytest.raises(KeyError, match=r"MODEL\.DCP_CLIP\.PROPOSAL\.NUM_PROPOSAL\b"):
        setup_cfg(path)


def test_value_of_another_type():
    with pytest.raises(ValueError, match="NUM_PROPOSALS"):
        setup_cfg("", ["MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS", "many"])


def test_missing_config_file():
    with pytest.raises(FileNotFoundError, match="absent.yaml"):
        setup_cfg("absent.yaml")


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "is empty"),
        ("# a comment\n", "is empty"),
        ("- MODEL\n", "contains a list, but it must contain config keys"),
        ("MODEL.WEIGHTS\n", "contains a text"),
        (
            "MODEL:\n  WEIGHTS: a\nMODEL:\n  MASK_ON: True\n",
            "the key 'MODEL' is given twice.*line 3",
        ),
        ("MODEL:\n", "MODEL is a group of keys, but has the value None"),
        ("MODEL: 3\n", "MODEL is a group of keys, but has the value 3"),
        ("MODEL:\n  WEIGHTS:\n    A: 1\n", "MODEL.WEIGHTS is a text, not a group of keys"),
        ("MODEL: &a\n  - *a\n", "an alias contains itself"),
        ("VERSION: 1\n", "VERSION is 1, but must be 2"),
        ("_BASE_: 3\n", "_BASE_ is 3, but it must be the path"),
        ("_BASE_: config.yaml\n", "_BASE_ forms a loop of config files: .*config.yaml"),
        ("_BASE_: https://host.invalid/a.yaml\n", "_BASE_ 'https.*cannot be fetched"),
        ("SEED: 2024-99-99\n", "cannot be read as YAML: month must be"),
        ("A: " + "[" * 5000, "nested too deeply"),
        ("A: \x00\n", "cannot be read as YAML: .*not allowed"),
    ],
)
def test_files_that_are_no_configs(tmp_path, text, reason):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason) as raised:
        setup_cfg(path)
    assert "config.yaml" in str(raised.value) and "\n" not in str(raised.value)


def test_loop_of_base_files(tmp_path):
    for name, base in ("ab", "bc", "ca"):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml\n")
    with pytest.raises(
        ValueError, match="loop of config files: .*a.yaml' -> .*c.yaml' -> .*a.yaml"
    ):
        setup_cfg(tmp_path / "a.yaml")


def test_base_in_the_home_of_nobody(tmp_path):
    (tmp_path / "config.yaml").write_text("_BASE_: ~nobody-here/base.yaml\n")
    with pytest.raises(FileNotFoundError, match="there is no file '.*~nobody-here/base.yaml'"):
        setup_cfg(tmp_path / "config.yaml")


def test_one_base_of_two_files_is_no_loop(tmp_path):
    (tmp_path / "base.yaml").write_text("SEED: 1\n")
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: base.yaml\nOUTPUT_DIR: {name}\n")
    (tmp_path / "c.yaml").write_text("_BASE_: [a.yaml, b.yaml]\n")
    cfg = setup_cfg(tmp_path / "c.yaml")
    assert (cfg.SEED, cfg.OUTPUT_DIR) == (1, "b")


def test_missing_base_names_both_files(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: sub/absent.yaml\n")
    with pytest.raises(FileNotFoundError, match="a.yaml' names 'sub/absent.yaml' as its _BASE_"):
        setup_cfg(tmp_path / "a.yaml")


def test_templates_beside_the_config_file(tmp_path, monkeypatch):
    (tmp_path / "base").mkdir()
    (tmp_path / "here").mkdir()
    text = "MODEL:\n  DCP_CLIP:\n    VOCABULARY:\n      TEMPLATES: "
    for name, templates in (("mine", "mine.txt"), ("here", "here.txt"), ("set", "single")):
        (tmp_path / "base" / f"{name}.yaml").write_text(f"{text}{templates}\n")
    for file in ("base/mine.txt", "base/single", "here/mine.txt", "here/here.txt"):
        (tmp_path / file).write_text("a {}\n")
    monkeypatch.chdir(tmp_path / "here")
    Path("child.yaml").write_text("_BASE_: ../base/mine.yaml\n")
    key = "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES"
    for arguments, expected in (
        (["../base/mine.yaml"], "../base/mine.txt"),
        (["child.yaml"], "../base/mine.txt"),
        (["../base/here.yaml"], "here.txt"),  # relative to the current folder
        (["../base/set.yaml"], "single"),
        (["../base/set.yaml", [key, "mine.txt"]], "mine.txt"),
    ):
        assert Path(setup_cfg(*arguments).MODEL.DCP_CLIP.VOCABULARY.TEMPLATES) == Path(expected)


def test_files_that_grow_without_bound(tmp_path):
    """A few lines of YAML can stand for billions of values, and a few files for as many files."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "laughs.yaml").write_text("\n".join(lines))
    with pytest.raises(ValueError, match="aliases stand for more than"):
        setup_cfg(tmp_path / "laughs.yaml")
    (tmp_path / "0.yaml").write_text("SEED: 1\n")
    for i in range(1, 40):
        (tmp_path / f"{i}.yaml").write_text(f"_BASE_: [{i - 1}.yaml, {i - 1}.yaml]\n")
    with pytest.raises(ValueError, match="inherits from more than 100 files"):
        setup_cfg(tmp_path / "39.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        setup_cfg(tmp_path / "large.yaml")


@pytest.mark.parametrize(
    "key, suggestion",
    [
        ("MODEL.CLIP.PRETRANED", "MODEL.CLIP.PRETRAINED"),
        ("MODEL.DCP_CLIP.PROPOSALS.NAME", "MODEL.DCP_CLIP.PROPOSAL.NAME"),
        ("MODEL.BASE_LR", "SOLVER.BASE_LR"),
        ("solver.max_iter", "SOLVER.MAX_ITER"),
        ("SOLVER.MAX_ITERS", "SOLVER.MAX_ITER"),
        ("OUTPUT", None),
        ("MODEL.WEIGHTS.X", None),
    ],
)
@pytest.mark.parametrize("in_file", [True, False])
def test_unknown_keys_suggest_close_ones(tmp_path, key, suggestion, in_file):
    path = tmp_path / "config.yaml"
    if in_file:
        *nodes, last = key.split(".")
        if nodes == ["MODEL", "WEIGHTS"]:
            return  # a value in the place of a group, tested above
        lines = [f"{'  ' * i}{node}:" for i, node in enumerate(nodes)]
        path.write_text("\n".join([*lines, f"{'  ' * len(nodes)}{last}: 1", "BAD: 2", ""]))
    with pytest.raises(KeyError) as raised:
        setup_cfg(path if in_file else "", [] if in_file else [key, "1", "BAD", "2"])
    message = raised.value.args[0]
    if in_file and suggestion and suggestion.count(".") == 3:  # the unknown group is named
        key, suggestion = "MODEL.DCP_CLIP.PROPOSALS", "MODEL.DCP_CLIP.PROPOSAL"
    if in_file and key.islower():
        key, suggestion = "solver", "SOLVER"
    assert "2 config keys do not exist" in message and key in message and "BAD" in message
    assert (f"{key} (did you mean {suggestion}" in message) == bool(suggestion)
    assert message.count("(if your own module adds keys, name the module with --import or ") == 1
    assert ("config.yaml" in message) == in_file


@pytest.mark.parametrize(
    "opts, message",
    [
        (["MODEL.WEIGHTS"], "'MODEL.WEIGHTS' has no value: add it"),
        (["MODEL.WEIGHTS=a.pth"], "has no value: write MODEL.WEIGHTS a.pth"),
        (["SEED", "1", "--eval-only"], "contain '--eval-only', which must come before them"),
        (["SEED", "1", "--import", "my_heads"], "contain '--import', which must come before them"),
        (["--resume", "SEED", "1", "--eval-only"], "contain '--resume', which must come before"),
        (["DATASETS.TEST", "ade"], r"DATASETS.TEST must be a tuple.*'ade'.*write \"\('ade',\)\""),
        (["DATASETS.TEST", "a,b"], r"write \"\('a', 'b'\)\""),
        (["DATASETS.TEST", "(a, b)"], r"write \"\('a', 'b'\)\""),
        (["INPUT.MIN_SIZE_TRAIN", "480"], r"but is 480: write \"\(480,\)\""),
        (["INPUT.MIN_SIZE_TRAIN", "('x',)"], "must contain numbers only, but contains 'x'"),
        (["SOLVER.BASE_LR", "fast"], "SOLVER.BASE_LR must be a number, but is the text 'fast'"),
        (["SOLVER.BASE_LR", "nan"], "SOLVER.BASE_LR must be a number"),
        (["SOLVER.BASE_LR", "None"], "SOLVER.BASE_LR must be a number, but is empty"),
        (["SOLVER.MAX_ITER", "2.5"], "SOLVER.MAX_ITER must be a whole number, but is"),
        (["SOLVER.MAX_ITER", "True"], "SOLVER.MAX_ITER must be a whole number"),
        (["SOLVER.MAX_ITER", "0"], "SOLVER.MAX_ITER is 0, but must be at least 1"),
        (
            ["SOLVER.EMA_DECAY", "1.5"],
            "SOLVER.EMA_DECAY is 1.5, but must be at least 0 and below 1",
        ),
        (["MODEL.DCP_CLIP.COARSE_DECODER.NUM_LAYERS", "-3"], "NUM_LAYERS is -3, but must be at"),
        (["SOLVER.IMS_PER_BATCH", "-2"], "SOLVER.IMS_PER_BATCH is -2, but must be at least 1"),
        (["SOLVER.CHECKPOINT_PERIOD", "0"], "SOLVER.CHECKPOINT_PERIOD is 0"),
        (["MODEL.DEVICE", "gpu"], "MODEL.DEVICE is 'gpu', which PyTorch does not know: set it to"),
        (["INPUT.MIN_SIZE_TEST", "-5"], "INPUT.MIN_SIZE_TEST is -5, but must be at least 0"),
        (["INPUT.MAX_SIZE_TEST", "-1"], "INPUT.MAX_SIZE_TEST is -1, but must be at least 0"),
        (["TEST.MAX_IMAGES", "-1"], "TEST.MAX_IMAGES is -1, but must be at least 0"),
        (["MODEL.DCP_CLIP.LOSS.DICE_WEIGHT", "-1.0"], "DICE_WEIGHT is -1.0, but must be at least"),
        (["OUTPUT_DIR", ""], r"OUTPUT_DIR is '', but must be a folder: .* \. for the current one"),
        (["MODEL.MASK_ON", "1"], "MODEL.MASK_ON must be True or False"),
        (["MODEL.WEIGHTS", 3], "MODEL.WEIGHTS must be a text, but is 3: write it in quotation"),
        (["MODEL.WEIGHTS", {"a": 1}], "MODEL.WEIGHTS is a text, not a group of keys"),
        ("SEED 1", r"opts is 'SEED 1', but must be a list of keys and values, such as \["),
        ({"SEED": 1, "VIS_PERIOD": 2}, r"opts is \{.*, but must be a list of keys and values"),
    ],
)
def test_wrong_options_are_one_sentence(opts, message):
    with pytest.raises(ValueError, match=message) as raised:
        setup_cfg(opts=opts)
    assert "\n" not in str(raised.value)


def test_imports_are_a_list():
    with pytest.raises(ValueError, match=r"imports is 'my_heads', .* write \[\"my_heads\"\]"):
        setup_cfg(imports="my_heads")


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_asked_for_must_exist(monkeypatch, tmp_path, device):
    """The default, and the config of a training on another machine, use the CPU instead."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"MODEL.DEVICE is '{device}', but PyTorch finds no GPU"):
        setup_cfg(opts=["SEED", "1", "MODEL.DEVICE", device])
    (tmp_path / "config.yaml").write_text("MODEL:\n  DEVICE: cuda\n")
    assert setup_cfg(tmp_path / "config.yaml").MODEL.DEVICE == setup_cfg().MODEL.DEVICE == "cpu"


@pytest.mark.parametrize("opts", [["_BASE_", "x.yaml"], ["MODEL.WEIGHTS=a", "SEED"]])
def test_options_that_are_no_keys(opts):
    with pytest.raises(KeyError, match="for files only|without '='"):
        setup_cfg(opts=opts)


def test_values_are_read_as_their_keys_need_them(tmp_path):
    """YAML reads 1e-4 as a text, and a command line has texts only."""
    path = tmp_path / "config.yaml"
    path.write_text(
        "SOLVER:\n  BASE_LR: 1e-4\n  WEIGHT_DECAY: '5e-2'\n  MAX_ITER: 4e4\n  STEPS: [2e4, 3e4]\n"
        "  MOMENTUM: 1\nOUTPUT_DIR: '2024'\nDATASETS:\n  TEST: ('a', 'b')\n  TRAIN: [c]\n"
    )
    cfg = setup_cfg(path, ["MODEL.WEIGHTS", Path("a.pth"), "MODEL.MASK_ON", "true", "SEED", "3.0"])
    values = [cfg.SOLVER[k] for k in ("BASE_LR", "WEIGHT_DECAY", "MAX_ITER", "STEPS", "MOMENTUM")]
    assert values == [1e-4, 0.05, 40_000, (20_000, 30_000), 1.0]
    assert [type(v) for v in values[2:]] == [int, tuple, float]
    assert all(type(step) is int for step in cfg.SOLVER.STEPS)
    assert (cfg.OUTPUT_DIR, cfg.DATASETS.TEST, cfg.DATASETS.TRAIN) == ("2024", ("a", "b"), ("c",))
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.MASK_ON, cfg.SEED) == ("a.pth", True, 3)
    assert setup_cfg(opts=["OUTPUT_DIR", "2024"]).OUTPUT_DIR == "2024"


@pytest.mark.parametrize("text", ["MODEL: [1, 2", "A: 1\n  B: 2", "A: \tx: y"])
def test_invalid_yaml(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.yaml' cannot be read as YAML: .*line") as raised:
        setup_cfg(path)
    assert "\n" not in str(raised.value)


def test_bgr_is_an_error():
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'BGR'"):
        setup_cfg(opts=["INPUT.FORMAT", "BGR"])


def test_options_override_the_file():
    path = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml"
    assert setup_cfg(path, ["MODEL.DCP_CLIP.DIM", "64"]).MODEL.DCP_CLIP.DIM == 64


def test_home_folder_in_the_output_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("OUTPUT_DIR: ~/out\nSOLVER:\n  CHECKPOINT_COPY: ~/copy\n")
    cfg = setup_cfg(tmp_path / "a.yaml")
    assert cfg.OUTPUT_DIR == str(tmp_path / "out")
    assert cfg.SOLVER.CHECKPOINT_COPY == str(tmp_path / "copy")


@pytest.mark.parametrize(
    ("key", "value"), [("MODEL.PIXEL_MEAN", "[1.0, 2.0, 3.0]"), ("SOLVER.BASE_LR", "0.0")]
)
def test_values_that_cannot_be_used(key, value):
    with pytest.raises(ValueError, match=f"^{key} is "):
        setup_cfg("", [key, value])


def test_base_can_name_a_shipped_config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "_BASE_: camvid/dcp_clip_tiny.yaml\nSOLVER:\n  MAX_ITER: 7\n"
    Path("mine.yaml").write_text(text)
    expected = setup_cfg("camvid/dcp_clip_tiny.yaml", ["SOLVER.MAX_ITER", "7"])
    assert setup_cfg("mine.yaml") == expected
    Path("camvid").mkdir()
    Path("camvid/dcp_clip_tiny.yaml").write_text("SEED: 77\n")  # a file has priority
    assert setup_cfg("mine.yaml").SEED == 77
