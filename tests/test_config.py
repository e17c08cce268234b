"""The config: keys, comments, errors of the user, and a training step with every file."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from dcp_clip import config
from dcp_clip.config import add_dcp_clip_config, setup_cfg
from dcp_clip.config.old_keys import OLD_KEYS
from dcp_clip.engine import Trainer
from dcp_clip.vocabulary import Vocabulary

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "dcp_clip" / "config" / "keys.py"
# Rows of a table, and the config of tools/pretrain_clip.py.
OTHERS = ("ablation", "clip_tiny")
FILES = sorted(
    p for p in (ROOT / "configs").rglob("*.yaml") if p.stem not in ("ablation", "clip_tiny")
)
NAMES = ["sky", "road", "tree", "car"]
# Training-free configs have nothing to train.
MODELS = [
    path
    for path in FILES
    if not path.name.startswith("Base") and "training_free" not in (path.stem, path.parent.name)
]


def leaves(node: CfgNode, prefix: str = "") -> set[str]:
    """Return the dotted names of all keys that are not nodes."""
    found: set[str] = set()
    for key, value in node.items():
        name = f"{prefix}{key}"
        found |= leaves(value, f"{name}.") if isinstance(value, CfgNode) else {name}
    return found


def own_keys() -> list[str]:
    cfg = get_cfg()
    upstream = leaves(cfg)
    add_dcp_clip_config(cfg)
    return sorted(leaves(cfg) - upstream)


def test_own_keys():
    assert "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS" in own_keys()


@pytest.mark.parametrize("key", own_keys())
def test_key_is_read(key):
    *nodes, last = key.split(".")
    sources = [ROOT / "train_net.py", *(ROOT / "dcp_clip").rglob("*.py")]
    code = "\n".join(path.read_text() for path in sources if path.parent != CONFIG.parent)
    code = re.sub(r'"""(?s:.*?)"""|#.*', "", code)  # without comments and docstrings
    read = rf"\.{last}\b|\[\"{last}\"\]|\"{last}\""
    if last != "NAME":  # the names of the five stages are read in a loop
        assert re.search(read, code), f"{key} is declared but nothing reads it"
    for node in nodes[1:]:
        assert re.search(rf"\b{node}\b", code), f"nothing reads {node} of {key}"


def test_keys_have_comments():
    """There is a comment above each key or above the group of lines that it belongs to."""
    lines = [line.strip() for line in CONFIG.read_text().splitlines()]
    without_comment, declared, has_comment = [], set(), False
    for line in lines:
        assignment = re.match(r"cfg\.([A-Z0-9_.]+) = (.*)", line)
        if line.startswith("#"):
            has_comment = True
        elif assignment and assignment[2] != "CN()":
            declared.add(assignment[1])
            without_comment += [] if has_comment else [assignment[1]]
        else:
            # The node of a stage may be between the comment and the key NAME.
            has_comment = has_comment and bool(assignment)
    assert declared >= set(own_keys())
    # A key of Detectron2 with another default.
    assert declared - set(own_keys()) == {"INPUT.FORMAT"}
    assert not without_comment


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


def test_rgb_is_the_default():
    cfg = get_cfg()
    add_dcp_clip_config(cfg)
    assert cfg.INPUT.FORMAT == "RGB"


def test_options_override_the_file():
    path = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml"
    assert setup_cfg(path, ["MODEL.DCP_CLIP.DIM", "64"]).MODEL.DCP_CLIP.DIM == 64


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_file_is_read(path):
    cfg = setup_cfg(path)
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.INPUT.FORMAT == "RGB"  # the order of CLIP's pixel statistics


@pytest.mark.parametrize("old, new", OLD_KEYS.items())
@pytest.mark.parametrize("in_file", [True, False])
def test_old_key_names_the_new_one(tmp_path, old, new, in_file):
    path = tmp_path / "config.yaml"
    if in_file:
        *nodes, last = old.split(".")
        lines = [f"{'  ' * i}{node}:" for i, node in enumerate(nodes)]
        path.write_text("\n".join([*lines, f"{'  ' * len(nodes)}{last}: 1", ""]))
    with pytest.raises(KeyError) as raised:
        setup_cfg(path if in_file else "", [] if in_file else [old, "1"])
    message = raised.value.args[0]
    assert "\n" not in message and old in message
    assert (f"is called {new} now" if new else "was removed") in message


@pytest.mark.parametrize("old, new", OLD_KEYS.items())
def test_new_key_exists_and_old_key_does_not(old, new):
    def exists(key):
        node = config.get_cfg()
        for part in key.split("."):
            if not isinstance(node, CfgNode) or part not in node:
                return False
            node = node[part]
        return True

    assert not exists(old)
    assert new is None or exists(new)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_config_file_takes_a_training_step(path):
    """The whole model with random weights, on synthetic records, with its own optimizer."""
    options = {"MODEL.DEVICE": "cpu", "MODEL.CLIP.PRETRAINED": "", "SOLVER.AMP.ENABLED": False}
    options |= {"MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": ""}
    cfg = setup_cfg(path, [x for pair in options.items() for x in pair])
    if cfg.MODEL.META_ARCHITECTURE == "DCPCLIP":  # the baseline needs its categories
        cfg.DATASETS.TRAIN = ()
    torch.manual_seed(0)
    model = build_model(cfg).train()
    optimizer = Trainer.build_optimizer(cfg, model)
    vocabulary = model.vocabulary or Vocabulary(NAMES)
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    labels = torch.randint(0, len(vocabulary), (2, 4, 6))
    labels = labels.repeat_interleave(16, 1).repeat_interleave(16, 2)
    records = [
        {"image": image, "sem_seg": label, "vocabulary": vocabulary}
        for image, label in zip(images, labels, strict=True)
    ]
    watched = {n: p for n, p in model.named_parameters() if p.requires_grad and p.ndim == 1}
    frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad and p.ndim == 1}
    before = {n: p.detach().clone() for n, p in (watched | frozen).items()}
    losses = model(records)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    optimizer.step()
    assert any(not torch.equal(p, before[n]) for n, p in watched.items())
    assert all(torch.equal(p, before[n]) for n, p in frozen.items())
