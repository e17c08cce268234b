"""The contrastive loss, and the two towers of CLIP."""

import open_clip
import pytest
import torch
from detectron2.modeling import build_model
from torch.nn.functional import normalize

from dcp_clip.config import get_cfg, setup_cfg
from dcp_clip.emoji_scenes.pretraining import add_pretraining_config
from dcp_clip.emoji_scenes.pretraining import model as model_module
from dcp_clip.emoji_scenes.pretraining.model import contrastive_loss
from dcp_clip.emoji_scenes.pretraining.pairs import PairBatch
from dcp_clip.modeling.clip.loading import load_clip


@pytest.fixture(scope="module")
def model():
    cfg = get_cfg()
    add_pretraining_config(cfg)
    opts = ["MODEL.META_ARCHITECTURE", "CLIPPretraining", "MODEL.BACKBONE.NAME", "CLIPBackbone"]
    cfg = setup_cfg(opts=[*opts, "MODEL.CLIP.NAME", "dcp-tiny-cnn-s16"], cfg=cfg)
    torch.manual_seed(0)
    return build_model(cfg)


def test_loss_equals_open_clip_with_one_caption_per_image():
    torch.manual_seed(0)
    image, text = (normalize(torch.randn(7, 16), dim=1) for _ in range(2))
    scale = torch.tensor(12.0)
    expected = open_clip.ClipLoss()(image, text, scale)
    loss = contrastive_loss(scale * image @ text.T, torch.eye(7))
    torch.testing.assert_close(loss, expected)


def test_positive_pairs_do_not_compete_and_ignored_pairs_have_no_gradient():
    logits = torch.randn(4, 6, requires_grad=True)
    match = torch.zeros(4, 6, dtype=torch.int8)
    match[torch.arange(4), torch.arange(4)] = 1
    match[0, 4], match[2, 5] = 1, -1
    contrastive_loss(logits, match).backward()
    assert logits.grad[2, 5] == 0
    assert (logits.grad[match == 1] < 0).all() and (logits.grad[match == 0] > 0).all()
    # The gradient of one positive pair does not depend on the other positive pair of its row.
    first = logits.grad[0, 4].clone()
    logits.grad = None
    with torch.no_grad():
        logits[0, 0] += 5
    contrastive_loss(logits, match).backward()
    torch.testing.assert_close(logits.grad[0, 4], first)


def test_loss_is_zero_without_positive_pairs():
    logits = torch.randn(3, 2, requires_grad=True)
    loss = contrastive_loss(logits, torch.zeros(3, 2))
    loss.backward()
    assert loss == 0 and (logits.grad == 0).all()


def test_text_features_equal_open_clip(model):
    captions = ["cat", "a photo of a hot dog", "a picture of a field of flowers", "sky", "a sky"]
    text = model.text_encoder.eval()
    with torch.no_grad():
        expected = normalize(text(model.tokenizer(captions)), dim=1)
        torch.testing.assert_close(model.encode_text(captions), expected, atol=1e-5, rtol=0)


def test_saved_weights_load_as_open_clip_model(model, tmp_path):
    torch.save(model.clip_state(), tmp_path / "clip.pth")
    opts = ["MODEL.CLIP.NAME", "dcp-tiny-cnn-s16", "MODEL.CLIP.PRETRAINED"]
    clip = load_clip(setup_cfg(opts=[*opts, str(tmp_path / "clip.pth")]))
    image = torch.randn(1, 3, 48, 64)
    model.eval()
    with torch.no_grad():
        pooled = model.backbone(image)["pooled"]
        torch.testing.assert_close(clip.encode_image(image), pooled, atol=1e-5, rtol=0)
    assert clip.logit_scale == model.logit_scale


def test_training_reduces_both_losses(model):
    torch.manual_seed(1)
    model.train()
    batch = PairBatch(255 * torch.rand(6, 3, 32, 32), list("abcdef"), torch.eye(6).to(torch.int8))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    history = []
    for _ in range(12):
        losses = model(batch)
        history.append({name: loss.item() for name, loss in losses.items()})
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert set(history[0]) == {"loss_whole", "loss_dense"}
    assert all(history[-1][name] < 0.7 * history[0][name] for name in history[0])


def test_match_is_moved_to_the_device_of_the_model(model, monkeypatch):
    """The loader creates `match` on the CPU. Meta tensors check devices without a GPU."""
    features = {
        "pooled": torch.empty(4, 16, device="meta"),
        "dense": torch.empty(4, 16, 3, 3, device="meta"),
    }
    monkeypatch.setattr(model, "encode_images", lambda images: features)
    monkeypatch.setattr(model, "encode_text", lambda _: torch.empty(5, 16, device="meta"))
    # The real loss branches on values, which meta tensors do not have.
    loss = lambda logits, match: (logits + match).sum()  # noqa: E731
    monkeypatch.setattr(model_module, "contrastive_loss", loss)
    batch = PairBatch(torch.empty(4, 3, 32, 32), ["a"] * 5, torch.empty(4, 5, dtype=torch.int8))
    losses = model(batch)
    assert {loss.device.type for loss in losses.values()} == {"meta"}
