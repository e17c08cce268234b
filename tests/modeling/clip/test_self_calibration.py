"""Each step of SC-CLIP's attention follows its formula; the formulas here are loops by hand."""

import math

import pytest
import torch
from sklearn.neighbors import LocalOutlierFactor
from torch.nn.functional import cosine_similarity

from dcp_clip.modeling.clip.self_calibration import (
    fused_blocks,
    local_outlier_factor,
    replace_outliers,
    supporters,
)

GRID = (4, 6)


def test_the_outlier_factor_equals_scikit_learn():
    points = torch.randn(2, 60, 16, generator=torch.Generator().manual_seed(0))
    points[0, 7] *= 6
    ours = local_outlier_factor(points, 20)
    for some, found in zip(points, ours, strict=True):
        theirs = LocalOutlierFactor(n_neighbors=20).fit(some.numpy()).negative_outlier_factor_
        torch.testing.assert_close(found.numpy(), -theirs, rtol=1e-3, atol=1e-3)
    assert ours[0].argmax() == 7


def test_planted_outliers_become_the_mean_of_their_normal_neighbours():
    """96 patches have 4 outliers: two beside each other, one in a corner, one inside."""
    maps = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    planted = [(0, 0), (3, 5), (3, 6), (6, 2)]
    for y, x in planted:
        maps[0, :, y, x] = torch.tensor([50.0 + y, -40.0 * x, 60.0])
    repaired = replace_outliers(maps.flatten(2).mT, (8, 12)).mT.unflatten(2, (8, 12))
    for y in range(8):
        for x in range(12):
            expected = maps[0, :, y, x]
            if (y, x) in planted:
                around = [
                    maps[0, :, b, a]
                    for b in range(max(y - 1, 0), min(y + 2, 8))
                    for a in range(max(x - 1, 0), min(x + 2, 12))
                    if (b, a) not in planted
                ]
                assert len(around) == {(0, 0): 3, (6, 2): 8}.get((y, x), 7)
                expected = torch.stack(around).mean(0)
            torch.testing.assert_close(repaired[0, :, y, x], expected)


def test_a_patch_is_supported_by_those_above_its_mean_similarity():
    similarity = torch.tensor([[[1.0, 0.6, 0.2], [0.6, 1.0, -0.3], [-0.2, -0.9, -0.5]]])
    expected = [[[True, True, False], [True, True, False], [False, False, True]]]
    assert supporters(similarity).tolist() == expected


@pytest.mark.parametrize(
    ("depth", "blocks"), [(1, []), (2, [0]), (3, [0]), (12, [*range(3, 10)]), (24, [*range(7, 22)])]
)
def test_the_fused_blocks_end_before_the_penultimate_one(depth, blocks):
    assert fused_blocks(depth) == blocks


@torch.no_grad()
@pytest.mark.parametrize("residual", [False, True])
def test_the_whole_attention_agrees_with_its_formula(make_backbone, residual):
    keys = {"MODEL.CLIP.DENSE": "scclip", "MODEL.CLIP.DENSE_RESIDUAL": residual}
    backbone = make_backbone("test-vit-16", keys)
    vit = backbone.visual
    first, _, last = vit.transformer.resblocks
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    seen = []
    handles = [first.register_forward_hook(lambda _, args, out: seen.append(out))]
    handles += [last.register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    dense = backbone(images)["dense"]
    for handle in handles:
        handle.remove()
    early, before = seen
    for b in range(2):
        middle = early[b, 1:]  # one fused block of three, which is also the middle one
        similarity = torch.stack([cosine_similarity(p[None], middle) for p in middle])
        tokens = before[b].clone()
        patches = replace_outliers(before[b : b + 1, 1:], GRID)[0]
        attention = torch.zeros_like(similarity)
        for p, row in enumerate(similarity):
            kept = [q for q in range(24) if row[q] >= max(row.mean(), 0) or q == p]
            tokens[1 + p] = sum(row[q] * patches[q] for q in kept) / sum(row[q] for q in kept)
            for q in kept:
                attention[p, q] = math.exp(row[q]) / sum(math.exp(row[r]) for r in kept)
        out = sum(attend_by_hand(last, x, attention) for x in (tokens, early[b]))
        if residual:
            out = tokens + out
            out = out + last.mlp(last.ln_2(out))
        expected = (vit.ln_post(out) @ vit.proj)[1:].T.reshape(-1, *GRID)
        torch.testing.assert_close(dense[b], expected, rtol=1e-3, atol=1e-4)


def attend_by_hand(block, tokens, similarity_attention):
    attn = block.attn
    qkv = block.ln_1(tokens) @ attn.in_proj_weight.T + attn.in_proj_bias
    _, key, value = (x.unflatten(1, (attn.num_heads, -1)) for x in qkv.chunk(3, dim=1))
    mixed = torch.zeros_like(value)
    for head in range(attn.num_heads):
        k, v = key[:, head], value[:, head]
        mixed[:, head] = (k @ k.T / math.sqrt(k.shape[1])).softmax(1) @ v
        mixed[1:, head] += similarity_attention @ v[1:]
    return attn.out_proj(mixed.flatten(1))
