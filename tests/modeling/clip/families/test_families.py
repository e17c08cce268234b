"""The registry of tower families, and the interface that each family implements."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from open_clip.timm_model import TimmModel

from dcp_clip.modeling import CLIPBackbone
from dcp_clip.modeling.clip.dense_attention import DenseAttention
from dcp_clip.modeling.clip.families import FAMILIES, ImageTower, build_image_tower
from dcp_clip.modeling.clip.families.hierarchical import HierarchicalTower
from dcp_clip.modeling.clip.families.vit import ViTTower
from dcp_clip.modeling.clip.loading import load_clip

EXPECTED = {
    "test-convnext": HierarchicalTower,
    "test-convnext-mlp": HierarchicalTower,
    "dcp-tiny-cnn": HierarchicalTower,
    "dcp-tiny-cnn-s16": HierarchicalTower,
    "test-vit-16": ViTTower,
    "test-vit-14-quickgelu": ViTTower,
}


@pytest.mark.parametrize("clip", EXPECTED)
def test_exactly_one_family_matches_a_tower(make_cfg, clip):
    visual = load_clip(make_cfg(clip)).visual
    assert [family for family in FAMILIES if family.matches(visual)] == [EXPECTED[clip]]
    assert type(build_image_tower(visual, DenseAttention())) is EXPECTED[clip]


@pytest.mark.parametrize(
    "make_tower",
    [torch.nn.Identity, lambda: TimmModel("resnet10t", 8, pool="", proj="linear")],
)
def test_unknown_towers_are_refused_in_one_sentence(make_tower):
    visual = make_tower()
    with pytest.raises(ValueError, match=f"{type(visual).__name__}.*MODEL.CLIP.NAME") as error:
        CLIPBackbone(visual=visual, pixel_mean=[0.0] * 3, pixel_std=[1.0] * 3)
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and len(message) < 200


@pytest.mark.parametrize("missing", ["__init__", "matches", "encode", "pooled"])
def test_a_family_must_implement_the_interface(missing):
    members = {name: lambda *args: None for name in ("__init__", "matches", "encode", "pooled")}
    complete = type("Complete", (ImageTower,), members)
    assert isinstance(complete(None, DenseAttention()), ImageTower)
    del members[missing]
    incomplete = type("Incomplete", (ImageTower,), members)
    with pytest.raises(TypeError, match=f"abstract method '?{missing}'?"):
        incomplete(None, DenseAttention())


@pytest.mark.parametrize("clip", EXPECTED)
def test_a_family_has_no_weights_of_its_own(make_backbone, clip):
    backbone = make_backbone(clip)
    assert not isinstance(backbone._tower, torch.nn.Module)
    assert all(name.startswith("visual.") for name in backbone.state_dict())


def test_the_fpn_baseline_accepts_a_resnet(make_cfg, make_image):
    """CLIP's ResNets have no head, and strides 4 to 32."""
    name = "test_fpn_resnet"
    DatasetCatalog.register(name, list)
    try:
        MetadataCatalog.get(name).set(stuff_classes=["sky", "tree"])
        opts = {"MODEL.META_ARCHITECTURE": "FPNSegmentor", "DATASETS.TRAIN": (name,)}
        model = build_model(make_cfg("small-resnet", opts)).eval()
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name)
    assert not any(p.requires_grad for p in model.backbone.bottom_up.visual.attnpool.parameters())
    with torch.no_grad():
        assert model([{"image": make_image(40, 70)}])[0]["sem_seg"].image_size == (40, 70)
