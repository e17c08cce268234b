"""What holds for the towers of every family, on the smallest member of each."""

import copy

import pytest
import torch

from dcp_clip.modeling.clip.dense_attention import DENSE_ATTENTIONS, DenseAttention
from dcp_clip.modeling.clip.families import build_image_tower
from dcp_clip.modeling.clip.families.hierarchical import HierarchicalTower
from dcp_clip.modeling.clip.families.resnet import ResNetTower
from dcp_clip.modeling.clip.families.timm_vit import TimmViTTower
from dcp_clip.modeling.clip.families.vit import ViTTower
from dcp_clip.modeling.clip.loading import load_clip
from dcp_clip.modeling.clip.text_tower import encode_tokens

# Name: family, pooling, stride of the dense features.
TOWERS = {
    "vit": (ViTTower, "class token", 16),
    "vit-gap": (ViTTower, "average", 16),
    "clipa": (ViTTower, "average", 16),
    "coca": (ViTTower, "attention", 16),
    "resnet": (ResNetTower, "attention", 32),
    "sigmoid-loss": (TimmViTTower, "attention", 16),
    "pe-core": (TimmViTTower, "attention", 16),
    "gap": (TimmViTTower, "average", 16),
    "vitamin": (TimmViTTower, "average", 16),
    "registers": (TimmViTTower, "class token", 16),
    "eva02": (TimmViTTower, "class token", 16),
    "eva02-e": (TimmViTTower, "class token", 16),
    "mobileclip-b": (TimmViTTower, "class token", 16),
    "fastvit": (HierarchicalTower, "average", 32),
    "swin": (HierarchicalTower, "average", 32),
}
CLASS_TOKEN = [name for name, (_, pooling, _) in TOWERS.items() if pooling == "class token"]
OTHERS = [name for name in TOWERS if name not in CLASS_TOKEN]
close = torch.testing.assert_close


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_features_are_those_of_open_clip(make_cfg, randomize, family_backbone, family_clip, name):
    """Of a model that was never read, in case reading a tower changes it."""
    torch.manual_seed(0)
    fresh = randomize(load_clip(make_cfg(f"small-{name}"))).eval()
    backbone = family_backbone(name)
    assert (type(backbone._tower), backbone._tower.pooling) == TOWERS[name][:2]
    images = noise(2, 3, 64, 64)
    expected = fresh.encode_image(images, normalize=False)
    assert expected.std() > 1e-2
    close(backbone(images)["pooled"], expected, rtol=1e-5, atol=1e-5)
    close(backbone._tower.pooled(images), expected, rtol=1e-5, atol=1e-5)
    tokens = torch.randint(1, 1023, (3, 32), generator=torch.Generator().manual_seed(2))
    tokens[:, 20:] = 0
    tokens[:, 20] = 1023
    text = fresh.encode_text(tokens, normalize=False)
    close(encode_tokens(family_clip(name).text, tokens), text, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_every_size_has_the_shapes_that_are_announced(family_backbone, name):
    backbone = family_backbone(name)
    divisor, shapes = backbone.size_divisibility, backbone.output_shape()
    assert divisor == shapes["dense"].stride == TOWERS[name][2]
    for cells in ((1, 1), (2, 7), (5, 3)):
        images = noise(2, 3, cells[0] * divisor, cells[1] * divisor)
        out = backbone(images)
        assert set(out) == set(shapes)
        close(out["pooled"], backbone._tower.pooled(images), rtol=1e-4, atol=1e-5)
        for key, shape in shapes.items():
            grid = () if key == "pooled" else [s // shape.stride for s in images.shape[2:]]
            assert out[key].shape == (2, shape.channels, *grid) and out[key].isfinite().all()
        alone = backbone(images[1:])
        close(out["dense"][1:], alone["dense"], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", OTHERS)
def test_dense_is_what_the_tower_pools_from_one_position(family_backbone, run_and_capture, name):
    """The tower's own pooling sees a grid of one position only."""
    backbone = family_backbone(name)
    visual, trunk = backbone.visual, getattr(backbone.visual, "trunk", None)
    grid = (2, 3)
    images = noise(2, 3, *(n * backbone.size_divisibility for n in grid))
    if name in ("vit-gap", "clipa", "coca"):
        out, _, last = run_and_capture(backbone, visual.transformer.resblocks[-1], images)

        def pool(token):  # the average leaves out the class token
            tokens = token[:, None] if name == "coca" else token[:, None].repeat(1, 2, 1)
            return visual._pool(tokens)[0] @ visual.proj

        positions = last[:, 1:].unbind(1)
    elif name == "resnet":
        out, _, last = run_and_capture(backbone, visual.layer4, images)
        table = visual.attnpool.positional_embedding
        table = table[1:].T.unflatten(1, (2, 2))[None]
        table = torch.nn.functional.interpolate(table, grid, mode="bicubic", align_corners=False)
        positions = (last + table).flatten(2).unbind(2)

        def pool(position):
            return visual.attnpool.c_proj(visual.attnpool.v_proj(position))
    elif hasattr(trunk, "blocks"):
        out, _, last = run_and_capture(backbone, trunk.blocks[-1], images)
        positions = trunk.norm(last)[:, trunk.num_prefix_tokens :].unbind(1)

        def pool(token):
            return visual.head(trunk.forward_head(token[:, None]))
    else:
        module = trunk.norm if name == "swin" else trunk.final_conv
        out, _, last = run_and_capture(backbone, module, images)
        positions = last.flatten(1, 2).unbind(1) if name == "swin" else last.flatten(2).unbind(2)

        def pool(position):
            shape = (2, 1, 1, -1) if name == "swin" else (2, -1, 1, 1)
            return visual.head(trunk.forward_head(position.view(shape)))

    expected = torch.stack([pool(x) for x in positions], dim=2).unflatten(2, grid)
    close(out["dense"], expected, rtol=1e-4, atol=1e-5)
    assert (expected - out["pooled"][:, :, None, None]).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize("name", ["gap", "vitamin", "swin", "fastvit"])
def test_the_mean_of_dense_is_pooled_if_the_tower_is_linear_after_it(family_backbone, name):
    backbone = family_backbone(name)
    trunk = backbone.visual.trunk
    if getattr(trunk, "fc_norm", None) is not None:
        saved, trunk.fc_norm = trunk.fc_norm, torch.nn.Identity()
    out = backbone(noise(2, 3, 64, 96))
    if getattr(trunk, "fc_norm", None) is not None:
        trunk.fc_norm = saved
    close(out["dense"].mean((2, 3)), out["pooled"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TOWERS)
def test_gradients_reach_every_weight_of_the_tower(family_backbone, name):
    backbone = family_backbone(name)
    images = noise(2, 3, 64, 64)
    out = backbone(images)
    loss = sum(x.pow(2).mean() for key, x in out.items() if key != "image")
    parameters = dict(backbone.visual.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    without = {
        key for key, g in zip(parameters, gradients, strict=True) if g is None or not g.any()
    }
    assert not without


@pytest.mark.parametrize("name", TOWERS)
def test_a_attention_that_the_tower_does_not_have_is_refused(family_clip, name):
    visual = family_clip(name).visual
    if name in CLASS_TOKEN:
        assert build_image_tower(visual, DenseAttention("naclip")).dense_attentions == tuple(
            DENSE_ATTENTIONS
        )
        return
    for attention in (DenseAttention("naclip"), DenseAttention("maskclip", residual=True)):
        key = "DENSE_RESIDUAL is True" if attention.residual else "DENSE is 'naclip'"
        with pytest.raises(ValueError, match=f"MODEL.CLIP.{key}, but .*pooling") as error:
            build_image_tower(visual, attention)
        assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize("name", TOWERS)
def test_models_segment_without_training_and_train(
    make_model, make_image, segment, name, training_free
):
    free = make_model(f"small-{name}", training_free)
    found = segment(free, make_image(70, 100))["sem_seg"]
    assert found.argmax(dim=0).shape == (70, 100)
    trained = make_model(f"small-{name}", {"MODEL.CLIP.TRAIN_IMAGE": "all"}).train()
    labels = torch.arange(64).expand(64, -1) // 16
    losses = trained([{"image": make_image(64, 64), "sem_seg": labels}])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert any(p.grad is not None and p.grad.any() for p in trained.backbone.parameters())


@pytest.mark.parametrize("name", ["vitamin", "mobileclip-b"])
def test_hybrid_towers_have_the_strides_of_their_convolutions(family_backbone, name):
    shapes = family_backbone(name).output_shape()
    assert [shapes[key].stride for key in ("res2", "res3", "res4", "dense")] == [4, 8, 16, 16]


@torch.no_grad()
@pytest.mark.parametrize("name", ["eva02", "pe-core"])
def test_a_copy_has_rotary_positions_of_its_own(family_backbone, name):
    """The last block of the copy does not keep parts of the original."""
    backbone = family_backbone(name, "naclip" if name == "eva02" else "maskclip")
    copied, images = copy.deepcopy(backbone), noise(1, 3, 48, 32)
    expected = backbone(images)["dense"]
    saved, backbone.visual.trunk.rope.bands = backbone.visual.trunk.rope.bands, None
    close(copied(images)["dense"], expected, rtol=0, atol=0)
    backbone.visual.trunk.rope.bands = saved
