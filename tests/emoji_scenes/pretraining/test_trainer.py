"""The art of the pre-training, and zero-shot classification during pre-training."""

from types import SimpleNamespace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dcp_clip.config import get_cfg
from dcp_clip.emoji_scenes.pretraining import trainer
from dcp_clip.emoji_scenes.pretraining.config import add_pretraining_config
from dcp_clip.emoji_scenes.pretraining.trainer import _ranks


def make_world(pooled):
    """A model with fixed features, and a source of three images of the things 0, 1 and 2."""
    model = SimpleNamespace(encode_images=lambda images: {"pooled": pooled})
    source = SimpleNamespace(probe=lambda size, view: (torch.zeros(3, 3, 8, 8), torch.arange(3)))
    return model, source


def test_ranks():
    text = torch.eye(3)
    pooled = torch.tensor([[3.0, 1, 2], [3, 1, 2], [3, 1, 2]])
    assert _ranks(*make_world(pooled), text, 0).tolist() == [0, 2, 1]


def test_ranks_are_computed_on_the_device_of_the_model():
    with FakeTensorMode():
        world = make_world(torch.empty(3, 5, device="cuda"))
        assert _ranks(*world, torch.empty(3, 5, device="cuda"), 0).device.type == "cuda"


def test_more_art_is_for_training_only(monkeypatch):
    requested = []
    monkeypatch.setattr(
        trainer, "_build_pair_source", lambda cfg, art: requested.append({a.style for a in art})
    )
    add_pretraining_config(cfg := get_cfg())
    trainer.CLIPTrainer.build_train_loader(cfg)
    cfg.PRETRAIN.MORE_ART = True
    trainer.CLIPTrainer.build_train_loader(cfg)
    seen, more = requested
    assert more - seen == {"fluent-emoji-3d", "streamline-emojis"} and seen < more
    assert "noto" not in more
