"""The dense attentions of a ViT agree with their definitions."""

import math

import pytest
import torch
from detectron2.modeling import build_backbone

from dcp_clip.modeling import CLIPBackbone
from dcp_clip.modeling.clip.dense_attention import DENSE_ATTENTIONS, DenseAttention, naclip_bias

VITS = ["test-vit-16", "test-vit-14-quickgelu"]
GRID = (2, 3)


@pytest.fixture
def make_backbone(make_cfg, randomize):
    def make(clip="test-vit-16", attention="maskclip", **options):
        torch.manual_seed(0)
        opts = {f"MODEL.CLIP.{key}": value for key, value in options.items()}
        opts["MODEL.CLIP.DENSE"] = attention
        return randomize(build_backbone(make_cfg(clip, opts))).eval()

    return make


def some_images(backbone, grid=GRID, batch=2):
    patch = backbone.size_divisibility
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, grid[0] * patch, grid[1] * patch, generator=generator)


@torch.no_grad()
def read(backbone, images):
    """The dense features, and the input of the last block."""
    block = backbone.visual.transformer.resblocks[-1]
    captured = []
    handle = block.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    dense = backbone(images)["dense"]
    handle.remove()
    return dense, captured[0]


def attention_by_hand(attention, query, key, i, grid, std):
    """Attention weights of token i for all tokens, for one head; query and key are (1+N, c)."""

    def soft(rows):
        return ((rows @ rows[i]) / math.sqrt(rows.shape[1])).softmax(0)

    if attention == "maskclip":
        return torch.eye(len(query))[i]
    if attention == "clearclip":
        return soft(query)
    if attention == "sclip":
        return soft(query) + soft(key)
    logits = (key @ key[i]) / math.sqrt(key.shape[1])
    positions = [None] + [(y, x) for y in range(grid[0]) for x in range(grid[1])]
    for j in range(len(key)):
        if i and j:
            (a, b), (c, d) = positions[i], positions[j]
            logits[j] += math.exp(-((a - c) ** 2 + (b - d) ** 2) / (2 * std**2))
    return logits.softmax(0)


@torch.no_grad()
@pytest.mark.parametrize("clip", VITS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("attention", ["maskclip", "clearclip", "sclip", "naclip"])
def test_an_attention_agrees_with_its_definition(make_backbone, clip, attention, residual):
    backbone = make_backbone(clip, attention, DENSE_RESIDUAL=residual, NACLIP_STD=1.5)
    vit = backbone.visual
    block, attn = vit.transformer.resblocks[-1], vit.transformer.resblocks[-1].attn
    dense, before = read(backbone, some_images(backbone))
    for b, x in enumerate(before):
        qkv = block.ln_1(x) @ attn.in_proj_weight.T + attn.in_proj_bias
        query, key, value = qkv.chunk(3, dim=1)
        mixed = torch.zeros_like(value)
        width = value.shape[1] // attn.num_heads
        for head in range(attn.num_heads):
            part = slice(head * width, (head + 1) * width)
            for i in range(len(x)):
                weight = attention_by_hand(attention, query[:, part], key[:, part], i, GRID, 1.5)
                mixed[i, part] = weight @ value[:, part]
        out = attn.out_proj(mixed)
        if residual:
            out = x + out
            out = out + block.mlp(block.ln_2(out))
        expected = (vit.ln_post(out) @ vit.proj)[1:].T.reshape(-1, *GRID)
        torch.testing.assert_close(dense[b], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("clip", VITS)
def test_attentions_differ_but_the_pooled_features_are_equal(make_backbone, clip):
    outputs = {r: (lambda b: b(some_images(b)))(make_backbone(clip, r)) for r in DENSE_ATTENTIONS}
    attentions = list(outputs.values())
    for i, a in enumerate(attentions):
        assert torch.equal(a["pooled"], attentions[0]["pooled"])
        for b in attentions[i + 1 :]:
            assert (a["dense"] - b["dense"]).abs().max() > 1e-3


@torch.no_grad()
def test_clearclip_is_clip_if_keys_equal_queries(make_backbone):
    """With equal projections of keys and queries, both compute query-to-query attention."""
    tied, trained = (
        make_backbone(attention="clearclip", DENSE_RESIDUAL=True),
        make_backbone(attention="clip"),
    )
    for backbone in (tied, trained):
        attn = backbone.visual.transformer.resblocks[-1].attn
        width = attn.embed_dim
        attn.in_proj_weight[width : 2 * width] = attn.in_proj_weight[:width]
        attn.in_proj_bias[width : 2 * width] = attn.in_proj_bias[:width]
    images = some_images(tied)
    torch.testing.assert_close(
        tied(images)["dense"], trained(images)["dense"], rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_the_gaussian_of_naclip_alone_has_a_known_result(make_backbone):
    """Keys are zero and the Gaussian is one patch wide: a patch has weight e, all others 1."""
    backbone = make_backbone(attention="naclip", NACLIP_STD=0.01)
    vit = backbone.visual
    block, attn = vit.transformer.resblocks[-1], vit.transformer.resblocks[-1].attn
    width = attn.embed_dim
    attn.in_proj_weight[width : 2 * width] = 0
    attn.in_proj_bias[width : 2 * width] = 0
    dense, before = read(backbone, some_images(backbone))
    value = (block.ln_1(before) @ attn.in_proj_weight.T + attn.in_proj_bias)[..., 2 * width :]
    mixed = ((math.e - 1) * value + value.sum(1, keepdim=True)) / (math.e + value.shape[1] - 1)
    expected = (vit.ln_post(attn.out_proj(mixed)) @ vit.proj)[:, 1:].mT.unflatten(2, GRID)
    torch.testing.assert_close(dense, expected, rtol=1e-4, atol=1e-5)


def test_naclip_bias_depends_on_the_distance_only():
    bias = naclip_bias((3, 4), 2.0, torch.device("cpu"))
    assert bias.shape == (13, 13)
    assert not bias[0].any() and not bias[:, 0].any()
    patches = bias[1:, 1:].unflatten(0, (3, 4)).unflatten(2, (3, 4))
    assert (patches[1, 1, 1, 1], patches[0, 0, 0, 0]) == (1, 1)
    torch.testing.assert_close(patches[0, 0, 1, 2], torch.tensor(math.exp(-5 / 8)))
    assert patches[0, 3, 2, 1] == patches[2, 1, 0, 3] == patches[0, 1, 2, 3]


@torch.no_grad()
@pytest.mark.parametrize("attention", DENSE_ATTENTIONS)
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 2)])
def test_any_grid_and_any_batch_size(make_backbone, attention, grid):
    backbone = make_backbone("test-vit-14-quickgelu", attention)
    images = some_images(backbone, grid, batch=3)
    together = backbone(images)["dense"]
    assert together.shape[-2:] == grid and together.isfinite().all()
    alone = torch.cat([backbone(image[None])["dense"] for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_standard_deviation_of_zero_is_refused(make_backbone):
    with pytest.raises(ValueError, match="NACLIP_STD is 0.0"):
        make_backbone(attention="naclip", NACLIP_STD=0.0)


def test_other_attention_can_be_read_by_clip_only(make_backbone):
    visual = make_backbone().visual
    visual.transformer.resblocks[-1].attn = torch.nn.Identity()
    stats = {"pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
    with pytest.raises(ValueError, match="'clearclip', but VisionTransformer.*'clip' only"):
        CLIPBackbone(visual=visual, dense_attention=DenseAttention("clearclip"), **stats)
    CLIPBackbone(visual=visual, dense_attention=DenseAttention("clip"), **stats)


def test_unknown_attentions_are_refused_and_old_names_are_explained():
    with pytest.raises(ValueError, match="DENSE is 'keys'; known are maskclip, .*, clip.$"):
        DenseAttention("keys")
    with pytest.raises(ValueError, match="'correlative' is 'sclip' now"):
        DenseAttention("correlative")
