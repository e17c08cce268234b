"""FPNSegmentor, the baseline with a closed vocabulary."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from dcp_clip.evaluation import evaluation_environment
from dcp_clip.modeling.clip.image_encoder import CLIPBackbone
from dcp_clip.vocabulary import Vocabulary

NAMES = Vocabulary(["sky", ["tree", "shrub"], "car", "road"])


@pytest.fixture
def named_data_set():
    DatasetCatalog.register("test_fpn_sem_seg", list)
    MetadataCatalog.get("test_fpn_sem_seg").set(
        stuff_classes=list(NAMES.display_names),
        stuff_synonyms=[list(names) for names in NAMES.synonyms],
    )
    yield "test_fpn_sem_seg"
    DatasetCatalog.remove("test_fpn_sem_seg")
    MetadataCatalog.pop("test_fpn_sem_seg")


@pytest.mark.parametrize("clip", ["dcp-tiny-cnn", "dcp-tiny-cnn-s16"])
def test_it_trains_and_evaluates_on_its_own_vocabulary_only(
    make_cfg, make_image, named_data_set, clip
):
    opts = {
        "MODEL.META_ARCHITECTURE": "FPNSegmentor",
        "MODEL.CLIP.TRAIN_IMAGE": "all",
        "DATASETS.TRAIN": (named_data_set,),
    }
    model = build_model(make_cfg(clip, opts))
    batch = [
        {"image": make_image(*size), "sem_seg": torch.zeros(size).long()}
        for size in ((64, 64), (64, 33))
    ]
    losses = model.train()(batch)
    assert set(losses) == {"loss_fine_ce", "loss_fine_dice"}
    sum(losses.values()).backward()
    without_gradient = [
        n for n, p in model.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert not without_gradient and all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        output = model.eval()(batch)[0]["sem_seg"]
    assert output.category_ids.tolist() == list(range(len(NAMES)))
    assert output.image_size == (64, 64)
    assert model.text_encoder is None
    assert "prompts" not in evaluation_environment(make_cfg(clip, opts), model)
    with torch.no_grad(), pytest.raises(ValueError, match="DATASETS.TRAIN only"):
        model([{"image": make_image(32, 32), "vocabulary": Vocabulary(["other"])}])
    with pytest.raises(ValueError, match="DATASETS.TRAIN only"):
        model.set_vocabulary(Vocabulary(["unicorn", "ufo"]))
    # The same names with other colours.
    model.set_vocabulary(None)
    same = Vocabulary(NAMES.synonyms, colors=[(i, 0, 0) for i in range(len(NAMES))])
    model.set_vocabulary(same)
    with torch.no_grad():
        other = model([{"image": batch[0]["image"]}])[0]["sem_seg"]
    assert torch.equal(other.maps, output.maps)
    with pytest.raises(ValueError, match="set DATASETS.TRAIN"):
        build_model(make_cfg(clip, {**opts, "DATASETS.TRAIN": ()}))
    with pytest.raises(ValueError, match=r"TEST\.AUG\.ENABLED is True, but .* does not use"):
        build_model(make_cfg(clip, {**opts, "TEST.AUG.ENABLED": True}))


@torch.no_grad()
def test_padding_is_no_evidence(make_cfg, make_image, named_data_set):
    opts = {"MODEL.META_ARCHITECTURE": "FPNSegmentor", "DATASETS.TRAIN": (named_data_set,)}
    model = build_model(make_cfg("dcp-tiny-cnn", opts)).eval()
    result = model([{"image": make_image(64, 33)}])[0]
    best = result["sem_seg"].maps[:, :16, :9].flatten(1).amax(1)  # without the padded cells
    torch.testing.assert_close(result["proposals"]["scores"], best)


def test_towers_of_other_strides(make_cfg, named_data_set, monkeypatch):
    """MobileCLIP2-S3 needs multiples of 64 pixels."""
    opts = {"MODEL.META_ARCHITECTURE": "FPNSegmentor", "DATASETS.TRAIN": (named_data_set,)}
    monkeypatch.setattr(CLIPBackbone, "size_divisibility", 64)
    assert build_model(make_cfg("dcp-tiny-cnn", opts)).backbone.size_divisibility == 64


def test_the_config_decides_whether_its_tower_trains(make_cfg, named_data_set):
    opts = {
        "MODEL.META_ARCHITECTURE": "FPNSegmentor",
        "MODEL.CLIP.TRAIN_IMAGE": "none",
        "DATASETS.TRAIN": (named_data_set,),
    }
    model = build_model(make_cfg("dcp-tiny-cnn", opts))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and not any(".bottom_up." in name for name in trained)
    with pytest.raises(ValueError, match="'test-vit-16', .* the strides .* 8, 16 and, optionally"):
        build_model(make_cfg("test-vit-16", opts))
