"""The shipped config files: they are read, written and read again, and take a training step."""

from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import META_ARCH_REGISTRY, build_model

from dcp_clip.config import setup_cfg
from dcp_clip.engine import Trainer
from dcp_clip.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
# Rows of a table, and the configs of tools/pretrain_clip.py.
OTHERS = ("ablation", "clip_tiny", "clip_tiny_192")
FILES = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if p.stem not in OTHERS)
NAMES = ["sky", "road", "tree", "car"]
VOCABULARY = {"CACHE_DIR": "", "TEMPLATES": "single"}
# Training-free configs have nothing to train.
MODELS = [
    path
    for path in FILES
    if not path.name.startswith("Base")
    and "training_free" not in (path.stem, *path.parts)
    # Their towers are large, or need a tokenizer of the Hugging Face Hub; see
    # tests/modeling/clip/families/test_encoder_configs.py.
    and not any(part in path.stem for part in ("siglip2", "pe_core", "mobileclip2_b"))
]
# Towers that differ from those of the other configs in their size only: a small one takes seconds
# less.
SMALL_TOWERS = {
    "dcp_clip_convnext_l": "test-convnext-mlp",
    "dcp_clip_vit_l14_336": "test-vit-14-quickgelu",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_dumped_config_is_read_again(path, tmp_path):
    """OUTPUT_DIR/config.yaml gives the same config."""
    cfg = setup_cfg(path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = setup_cfg(tmp_path / "config.yaml")
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_file_is_read(path):
    cfg = setup_cfg(path)
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.INPUT.FORMAT == "RGB"  # the order of CLIP's pixel statistics


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_config_file_takes_a_training_step(path):
    """The whole model with random weights, on synthetic records, with its own optimizer.

    ConvNeXt-B and ViT-B/16 have their real size.
    """
    options = {"MODEL.DEVICE": "cpu", "MODEL.CLIP.PRETRAINED": "", "SOLVER.AMP.ENABLED": False}
    options |= {f"MODEL.DCP_CLIP.VOCABULARY.{k}": v for k, v in VOCABULARY.items()}
    if path.stem in SMALL_TOWERS:
        options["MODEL.CLIP.NAME"] = SMALL_TOWERS[path.stem]
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
