"""The configs of SigLIP 2, the Perception Encoder and MobileCLIP2.

Their real towers are built without memory; small towers of the same families segment and train.
"""

from pathlib import Path

import open_clip
import pytest
import torch
from detectron2.modeling import build_model

from dcp_clip.config import setup_cfg
from dcp_clip.modeling import CLIPBackbone
from dcp_clip.modeling.clip import loading
from dcp_clip.modeling.clip.freezing import freeze_tower
from dcp_clip.vocabulary import Vocabulary

CONFIGS = Path(__file__).parents[4] / "configs"
# The small tower of a family, and the mean of the pixels of its published weights.
SMALL = {
    "siglip2": ("sigmoid-loss", 127.5),
    "pe_core": ("pe-core", 127.5),
    "mobileclip2_s": ("fastvit", 0.0),
    "mobileclip2_b": ("mobileclip-b", 0.0),
}
FILES = {
    f"{folder}/{path.stem}": (path, *SMALL[key])
    for folder in ("training_free", "coco_stuff")
    for key in SMALL
    for path in sorted((CONFIGS / folder).glob(f"*{key}*.yaml"))
}
each_config = pytest.mark.parametrize("path, small, mean", FILES.values(), ids=FILES)


def test_the_configs_exist():
    assert len(FILES) == 12


@each_config
def test_the_tower_of_a_config_is_built(path, small, mean, monkeypatch):
    cfg = setup_cfg(path, ["MODEL.DEVICE", "cpu"])
    name, tag = cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED
    if name not in open_clip.list_models():
        pytest.skip(f"open_clip {open_clip.__version__} has no {name}")
    assert tag in open_clip.list_pretrained_tags_by_model(name)
    create = loading.create_clip
    monkeypatch.setattr(
        loading, "create_clip", lambda *args, **kwargs: create(*args, device="meta", **kwargs)
    )
    cfg.MODEL.CLIP.PRETRAINED = ""
    with torch.device("meta"):
        backbone = CLIPBackbone(cfg, None)
    assert backbone.pixel_mean == [mean] * 3
    freeze_tower(cfg, "TRAIN_IMAGE", backbone)
    trains = any(p.requires_grad for p in backbone.parameters())
    assert trains == (path.parent.name == "coco_stuff")
    sizes = cfg.INPUT.CROP.SIZE if trains else [cfg.MODEL.CLIP.ENCODER_WINDOW]
    assert all(size % backbone.size_divisibility == 0 for size in sizes)


@each_config
def test_a_small_tower_segments_and_trains_with_a_config(
    path, small, mean, make_image, segment, randomize
):
    options = {
        "MODEL.DEVICE": "cpu",
        "MODEL.CLIP.NAME": f"small-{small}",
        "MODEL.CLIP.PRETRAINED": "",
        "MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "",
        "MODEL.DCP_CLIP.VOCABULARY.TEMPLATES": "single",
        "DATASETS.TRAIN": "()",
    }
    cfg = setup_cfg(path, [x for pair in options.items() for x in pair])
    if cfg.MODEL.CLIP.ENCODER_WINDOW:
        cfg.MODEL.CLIP.ENCODER_WINDOW, cfg.MODEL.CLIP.ENCODER_WINDOW_STRIDE = 32, 16
    torch.manual_seed(0)
    model = randomize(build_model(cfg)).eval()
    names = Vocabulary(["sky", "car", "road", "a tree"])
    labels = segment(model, make_image(50, 70), names)["sem_seg"].argmax(dim=0)
    assert labels.shape == (50, 70) and labels.max() < 4
    if path.parent.name == "coco_stuff":
        record = {"image": make_image(64, 64), "vocabulary": names}
        record["sem_seg"] = torch.arange(64).expand(64, -1) // 16
        sum(model.train()([record]).values()).backward()
        assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
