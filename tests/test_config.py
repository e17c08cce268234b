"""Every key is read somewhere and explained; misspelt ones are errors; every config file trains."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.projects.deeplab import build_solver

from dcp_clip.config import add_dcp_clip_config, setup_cfg
from dcp_clip.engine import Trainer
from dcp_clip.vocabulary import Vocabulary

ROOT = Path(__file__).parents[1]
DEFAULTS = ROOT / "dcp_clip" / "defaults.py"
# ablation.yaml lists rows of tables (tests/tools/test_reproduce_steps.py).
FILES = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.name != "ablation.yaml")
NAMES = ["sky", "road", "tree", "car"]
# Those without training have nothing to train (tests/modeling/test_training_free.py), and the
# pre-training takes other records (tests/modeling/test_clip_pretraining.py).
MODELS = [
    path
    for path in FILES
    if not path.name.startswith("Base")
    and "training_free" not in (path.stem, path.parent.name)
    and path.stem != "clip_tiny"
]


def leaves(node: CfgNode, prefix: str = "") -> set[str]:
    """Dotted names of all keys that are no nodes."""
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


def test_there_are_keys():
    assert "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS" in own_keys()


@pytest.mark.parametrize("key", own_keys())
def test_key_is_read(key):
    *nodes, last = key.split(".")
    sources = [ROOT / "train_net.py", *(ROOT / "dcp_clip").rglob("*.py")]
    sources.append(Path(build_solver.__file__))  # the trainer's schedules, Detectron2's DeepLab's
    code = "\n".join(path.read_text() for path in sources if path != DEFAULTS)
    code = re.sub(r'"""(?s:.*?)"""|#.*', "", code)  # a key that is only talked about is not read
    read = rf"\.{last}\b|\[\"{last}\"\]|\"{last}\""
    if last != "NAME":  # all five stages' names are read in one place, by their node
        assert re.search(read, code), f"{key} is declared but nothing reads it"
    for node in nodes[1:]:
        assert re.search(rf"\b{node}\b", code), f"nothing reads {node} of {key}"


def test_keys_have_comments():
    """A comment stands above each key, or above the run of lines that it belongs to."""
    lines = [line.strip() for line in DEFAULTS.read_text().splitlines()]
    lonely, declared, explained = [], set(), False
    for line in lines:
        assignment = re.match(r"cfg\.([A-Z0-9_.]+) = (.*)", line)
        if line.startswith("#"):
            explained = True
        elif assignment and assignment[2] != "CN()":
            declared.add(assignment[1])
            lonely += [] if explained else [assignment[1]]
        else:
            # Stage nodes stand between their comment and NAME.
            explained = explained and bool(assignment)
    assert declared >= set(own_keys())
    assert declared - set(own_keys()) == {"INPUT.FORMAT"}  # Detectron2's, with another default
    assert not lonely


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
def test_a_file_that_is_no_yaml(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.yaml' cannot be read as YAML: .*line") as raised:
        setup_cfg(path)
    assert "\n" not in str(raised.value)


def test_another_order_of_channels_is_refused():
    with pytest.raises(ValueError, match="INPUT.FORMAT is 'BGR'"):
        setup_cfg(opts=["INPUT.FORMAT", "BGR"])


def test_images_are_rgb_without_any_file():
    cfg = get_cfg()
    add_dcp_clip_config(cfg)
    assert cfg.INPUT.FORMAT == "RGB"


def test_options_win_over_the_file():
    path = ROOT / "configs" / "camvid" / "dcp_clip_tiny.yaml"
    assert setup_cfg(path, ["MODEL.DCP_CLIP.DIM", "64"]).MODEL.DCP_CLIP.DIM == 64


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_file_is_read(path):
    cfg = setup_cfg(path)
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.INPUT.FORMAT == "RGB"  # CLIP's pixel statistics are in that order


def test_both_schedules_can_be_had(make_cfg):
    """Warm-up cosine and warm-up poly (design.md, section 6)."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for name in ("WarmupCosineLR", "WarmupPolyLR"):
        cfg = make_cfg(opts={"SOLVER.LR_SCHEDULER_NAME": name, "SOLVER.MAX_ITER": 10})
        scheduler = Trainer.build_lr_scheduler(cfg, optimizer)
        scheduler.step()
        assert optimizer.param_groups[0]["lr"] < 1


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_config_file_takes_a_training_step(path):
    """The full model on random weights and small synthetic records, through its own optimiser."""
    options = {"MODEL.DEVICE": "cpu", "MODEL.CLIP.PRETRAINED": "", "SOLVER.AMP.ENABLED": False}
    options |= {"MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": ""}
    options |= {"MODEL.DCP_CLIP.VOCABULARY.CHUNK_SIZE": len(NAMES)}
    cfg = setup_cfg(path, [x for pair in options.items() for x in pair])
    if cfg.MODEL.META_ARCHITECTURE == "DCPCLIP":  # the baseline needs to know its categories
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
