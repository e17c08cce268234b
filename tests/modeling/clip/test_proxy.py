"""Attention from a second tower: the formula, planted features, both kinds of CLIP, bad input."""

import math

import pytest
import timm
import torch
from torch.nn import functional as F

from dcp_clip.benchmarking.benchmark_model import BenchmarkModel, make_vocabulary
from dcp_clip.export.support import ExportError, check_exportable
from dcp_clip.modeling.clip.proxy import AttentionProxy, proxy_attention

KEY = "MODEL.CLIP.PROXY."
PROXY = {KEY + "NAME": "test_vit"}  # timm's miniature, with random weights


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_the_attention_agrees_with_its_formula():
    unit = F.normalize(noise(2, 5, 7), dim=1)
    attention = proxy_attention(unit)
    for features, found in zip(unit, attention, strict=True):
        cosines = [[float(a @ b) for b in features.T] for a in features.T]
        mean = sum(map(sum, cosines)) / 49
        for row, weights in zip(cosines, found, strict=True):
            logits = [3 * (s - 1.2 * mean) for s in row]
            total = sum(math.exp(x) for x in logits if x >= 0)
            expected = [math.exp(x) / total if x >= 0 else 0.0 for x in logits]
            torch.testing.assert_close(weights, torch.tensor(expected))


def test_equal_features_leave_every_position_to_itself():
    unit = torch.ones(1, 4, 6) / 2
    assert torch.equal(proxy_attention(unit), torch.eye(6)[None])


class Planted(torch.nn.Module):
    """A tower whose features are those of the left or of the right half of the image."""

    feature_info = [{"reduction": 8}]
    pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}

    def forward_intermediates(self, images, **options):
        self.seen = images
        features = images.new_zeros(len(images), 2, *(side // 8 for side in images.shape[-2:]))
        half = features.shape[-1] // 2
        features[:, 0, :, :half], features[:, 1, :, half:] = 1, 1
        return [features]


def planted(backbone):
    backbone.proxy = AttentionProxy(Planted(), backbone.pixel_mean, backbone.pixel_std)
    return backbone


@torch.no_grad()
@pytest.mark.parametrize("residual", [False, True])
def test_the_values_of_a_vit_become_means_of_each_half(make_backbone, residual):
    backbone = planted(make_backbone("test-vit-16", {"MODEL.CLIP.DENSE_RESIDUAL": residual}))
    vit, block, before = backbone.visual, backbone.visual.transformer.resblocks[-1], []
    handle = block.register_forward_pre_hook(lambda _, args: before.append(args[0]))
    images = noise(2, 3, 32, 64)
    out = backbone(images)
    handle.remove()
    tokens, attn = before[0], block.attn
    value = (block.ln_1(tokens) @ attn.in_proj_weight.T + attn.in_proj_bias)[..., 64:]
    maps = value[:, 1:].unflatten(1, (2, 4))
    halves = [maps[:, :, s].mean((1, 2))[:, None] for s in (slice(0, 2), slice(2, 4))]
    mixed = torch.cat([halves[0], halves[0], halves[1], halves[1]], 1).repeat(1, 2, 1)
    expected = attn.out_proj(mixed)
    if residual:
        expected = tokens[:, 1:] + expected
        expected = expected + block.mlp(block.ln_2(expected))
    expected = (vit.ln_post(expected) @ vit.proj).mT.unflatten(2, (2, 4))
    torch.testing.assert_close(out["dense"], expected, rtol=1e-4, atol=1e-5)
    backbone.proxy, seen = None, backbone.proxy.tower.seen
    assert torch.equal(out["pooled"], backbone(images)["pooled"])
    # The tower gets pixels with its own mean and standard deviation.
    mean, std = (torch.tensor(x)[:, None, None] for x in (backbone.pixel_mean, backbone.pixel_std))
    mean_of_tower, std_of_tower = torch.tensor([[0.5, 0.4, 0.3], [0.2, 0.2, 0.1]])[..., None, None]
    pixels = ((images * std + mean) / 255 - mean_of_tower) / std_of_tower
    torch.testing.assert_close(seen, pixels, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_dense_features_of_a_convnext_become_means_of_each_half(make_backbone):
    backbone = make_backbone("test-convnext")
    images = noise(2, 3, 64, 128)
    alone = F.normalize(backbone(images)["dense"], dim=1)
    dense = planted(backbone)(images)["dense"]
    assert dense.shape[-2:] == (2, 4)  # 8 x 16 features of the tower for 2 x 4 of CLIP
    for half in (slice(0, 2), slice(2, 4)):
        mean = alone[..., half].mean((2, 3), keepdim=True)
        torch.testing.assert_close(dense[..., half], mean.expand_as(dense[..., half]))


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "vit_small_patch16_dinov3_qkvb"])
def test_towers_of_timm_with_other_grids_and_windows(make_backbone, name):
    """14 is CLIP's patch; the proxies have 16 and 32, and one has rotary positions."""
    keys = {KEY + "NAME": name, "MODEL.CLIP.ENCODER_WINDOW": 56}
    keys["MODEL.CLIP.ENCODER_WINDOW_STRIDE"] = 28
    backbone = make_backbone("test-vit-14-quickgelu", keys)
    for size in ((56, 56), (14, 28), (70, 112)):
        dense = backbone(noise(1, 3, *size))["dense"]
        assert dense.shape[-2:] == (size[0] // 14, size[1] // 14) and dense.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("keys", [PROXY, {"MODEL.CLIP.DENSE": "scclip"}])
def test_half_precision_changes_little(make_backbone, keys):
    """The similarities that choose positions are computed in float32."""
    backbone, images = make_backbone("test-vit-16", keys), noise(1, 3, 64, 64)
    expected = F.normalize(backbone(images)["dense"], dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        dense = backbone(images)["dense"].float()
    assert (F.normalize(dense, dim=1) * expected).sum(1).mean() > 0.98


def test_it_is_frozen_and_no_part_of_the_weights(make_backbone):
    plain, backbone = make_backbone("test-vit-16"), make_backbone("test-vit-16", PROXY)
    backbone.train()
    assert not backbone.proxy.tower.training
    assert not any(p.requires_grad for p in backbone.proxy.tower.parameters())
    assert backbone.state_dict().keys() == plain.state_dict().keys()


@torch.no_grad()
def test_weights_come_from_a_local_file(make_backbone, tmp_path):
    torch.manual_seed(3)
    tower, path = timm.create_model("test_vit"), tmp_path / "tower.pth"
    torch.save(tower.state_dict(), path)
    keys = PROXY | {KEY + "PRETRAINED": str(path)}
    found = make_backbone("test-vit-16", keys).proxy.tower.state_dict()
    assert found and all(torch.equal(tower.state_dict()[k], x) for k, x in found.items())
    keys[KEY + "NAME"] = "test_convnext"
    with pytest.raises(ValueError, match="does not hold weights of 'test_convnext'"):
        make_backbone("test-vit-16", keys)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"NAME": "vit_base_patch8_22"}, "did you mean 'vit_base_patch8_224'"),
        ({"NAME": "vit_base_patch8_224.dino"}, "tag of the weights belongs in PROXY.PRETRAINED"),
        ({"PRETRAINED": "dino"}, "timm knows these weights for 'test_vit': r160_in1k"),
        ({"PRETRAINED": "r160_in1k"}, "fetch them on a machine with internet"),
        ({"PRETRAINED": "none/here.pth"}, "'none/here.pth' does not exist"),
    ],
)
def test_bad_input_is_one_sentence(make_backbone, keys, message):
    with pytest.raises(ValueError, match=message):
        make_backbone("test-vit-16", PROXY | {KEY + key: value for key, value in keys.items()})


def test_random_weights_beside_a_pretrained_clip_and_other_attentions_are_refused(make_cfg):
    stats = [0.0] * 3, [1.0] * 3
    with pytest.raises(ValueError, match="'test_vit' without weights"):
        AttentionProxy.from_config(make_cfg(opts=PROXY | {"MODEL.WEIGHTS": "x.pth"}), *stats)
    with pytest.raises(ValueError, match="DENSE is 'naclip'; set it to 'maskclip'"):
        AttentionProxy.from_config(make_cfg(opts=PROXY | {"MODEL.CLIP.DENSE": "naclip"}), *stats)


def test_a_tower_without_a_grid_is_refused(make_backbone, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *args, **kwargs: torch.nn.Identity())
    with pytest.raises(ValueError, match="'test_vit', which has no grid of features"):
        make_backbone("test-vit-16", PROXY)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "hiera_tiny_224"])
def test_a_tower_for_images_of_one_size_is_refused(make_backbone, name):
    with pytest.raises(ValueError, match=f"'{name}', which does not accept images of any size"):
        make_backbone("test-vit-16", PROXY | {"MODEL.CLIP.PROXY.NAME": name})


@torch.no_grad()
def test_the_benchmark_counts_it_beside_the_encoder(make_cfg):
    subject = BenchmarkModel(make_cfg("test-vit-16", PROXY), (64, 64), (64, 64))
    proxy, calls = subject.model.backbone.proxy, []
    subject.model.backbone.proxy = lambda *args: calls.append(1) or proxy(*args)
    subject.encoder()()
    assert not calls
    subject.forward(make_vocabulary(3))()
    assert calls == [1]


def test_a_model_with_a_proxy_is_not_exported(make_cfg, make_model):
    with pytest.raises(ExportError, match="PROXY.NAME is set"):
        check_exportable(make_cfg("test-vit-16", PROXY), make_model("test-vit-16", PROXY))
