"""The attentions of towers with a class token: attention by hand in the blocks of every family."""

import pytest
import torch

from dcp_clip.modeling.clip.dense_attention import DENSE_ATTENTIONS
from dcp_clip.modeling.clip.families.last_block import OpenClipBlock, TimmBlock
from dcp_clip.modeling.clip.self_calibration import self_calibrated_tokens

TOWERS = ("vit", "registers", "eva02", "eva02-e", "mobileclip-b")
close = torch.testing.assert_close


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_attentions_of_the_class_token(family_backbone, run_and_capture, name):
    """Attention by hand, head by head, with the projections that the block itself computes."""
    images = noise(2, 3, 32, 48)
    visual = family_backbone(name).visual
    trunk = getattr(visual, "trunk", None)
    block = (visual.transformer.resblocks if trunk is None else trunk.blocks)[-1]
    for attention in sorted(set(DENSE_ATTENTIONS) - {"scclip"}):
        out, x, last = run_and_capture(family_backbone(name, attention), block, images)
        if attention == "clip":
            tokens = last
        else:
            tokens = attend_by_hand(block, x, attention, name, trunk)
        prefix = x.shape[1] - 6
        if trunk is None:
            expected = visual.ln_post(tokens) @ visual.proj
        else:
            # Each token in place of the class token.
            tokens = trunk.norm(tokens)
            expected = torch.stack(
                [
                    visual.head(trunk.forward_head(torch.cat([t[:, None], tokens], 1)))
                    for t in tokens.unbind(1)
                ],
                dim=1,
            )
        expected = expected[:, prefix:].mT.unflatten(2, (2, 3))
        close(out["dense"], expected, rtol=1e-4, atol=1e-5)


def attend_by_hand(block, x, attention, name, trunk):
    """What the attention adds to the tokens x (B, N, C) of the last block."""
    attn, batch, count = block.attn, *x.shape[:2]
    normed = x if name == "eva02-e" else block.norm1(x) if trunk is not None else block.ln_1(x)
    if name == "vit":
        parts = (normed @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1)
    elif name == "eva02":
        parts = (attn.q_proj(normed), attn.k_proj(normed), attn.v_proj(normed))
    else:
        bias = attn.qkv.bias
        if name == "eva02-e":
            bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
        parts = (normed @ attn.qkv.weight.T + bias).chunk(3, -1)
    q, k, v = (p.view(batch, count, attn.num_heads, -1).transpose(1, 2) for p in parts)
    if name == "registers":
        q, k = attn.q_norm(q), attn.k_norm(k)
    if name == "eva02":  # the positions rotate queries and keys, but not values
        sin, cos = trunk.rope.get_embed(shape=(2, 3)).chunk(2, -1)

        def rotate(t):
            turned = torch.stack([-t[..., 1::2], t[..., ::2]], -1).flatten(-2)
            return torch.cat([t[:, :, :1], t[:, :, 1:] * cos + turned[:, :, 1:] * sin], 2)

        q, k = rotate(q), rotate(k)

    def attend(t, bias=0):
        return (t @ t.mT / t.shape[-1] ** 0.5 + bias).softmax(-1) @ v

    gaussian = torch.zeros(count, count)
    where = [(i // 3, i % 3) for i in range(6)]
    for i, (a, b) in enumerate(where):
        for j, (c, d) in enumerate(where):
            distance = torch.tensor(float((a - c) ** 2 + (b - d) ** 2))
            gaussian[count - 6 + i, count - 6 + j] = (-distance / (2 * 5.0**2)).exp()
    mixed = {
        "maskclip": lambda: v,
        "clearclip": lambda: attend(q),
        "sclip": lambda: attend(q) + attend(k),
        "naclip": lambda: attend(k, gaussian),
    }[attention]()
    mixed = mixed.transpose(1, 2).flatten(2)
    if name == "vit":
        return block.ls_1.gamma * attn.out_proj(mixed)
    if name == "eva02":
        return attn.proj(attn.norm(mixed))
    if name == "eva02-e":
        return block.norm1(attn.proj(mixed))
    out = attn.proj(mixed)
    return block.ls1.gamma * out if name == "registers" else out


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_the_residual_attention_with_all_attention_is_the_block(family_backbone, name):
    """With equal keys and queries, ClearCLIP's attention with the residual is the block itself."""
    visual = family_backbone(name).visual
    block = (visual.transformer.resblocks if name == "vit" else visual.trunk.blocks)[-1]
    attn = block.attn
    saved = {key: value.clone() for key, value in attn.state_dict().items()}
    if name == "eva02":
        attn.q_proj.weight[:] = attn.k_proj.weight
        attn.q_proj.bias[:] = 0
    elif name == "vit":
        attn.in_proj_weight[32:64] = attn.in_proj_weight[:32]
        attn.in_proj_bias[32:64] = attn.in_proj_bias[:32]
    else:
        attn.qkv.weight[32:64] = attn.qkv.weight[:32]
        if name == "eva02-e":
            attn.q_bias[:] = 0
        else:
            attn.qkv.bias[32:64] = attn.qkv.bias[:32]
    if name == "registers":
        attn.k_norm.load_state_dict(attn.q_norm.state_dict())
    images = noise(2, 3, 48, 32)
    read = family_backbone(name, "clearclip", residual=True)(images)["dense"]
    block_itself = family_backbone(name, "clip")(images)["dense"]
    attn.load_state_dict(saved)
    close(read, block_itself, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", TOWERS)
def test_self_calibration_reads_the_first_of_three_blocks(family_backbone, name):
    """One block is fused. tests/modeling/clip/test_self_calibration.py has the formulas."""
    backbone = family_backbone(name, "scclip")
    visual = backbone.visual
    trunk = getattr(visual, "trunk", None)
    first, second, last = visual.transformer.resblocks if trunk is None else trunk.blocks
    seen = []
    handles = [
        b.register_forward_hook(lambda _, args, out: seen.append(out)) for b in (first, second)
    ]
    dense = backbone(noise(2, 3, 48, 32))["dense"]
    for handle in handles:
        handle.remove()
    split = (
        OpenClipBlock.of(last)
        if trunk is None
        else TimmBlock.of(last, getattr(trunk, "rope", None))
    )
    _, out = self_calibrated_tokens(split, seen[1], [seen[0]], (3, 2))
    if trunk is None:
        expected = visual.ln_post(out) @ visual.proj
    else:
        expected = visual.head(trunk.head(trunk.fc_norm(trunk.norm(out))))
    close(dense, expected[:, -6:].mT.unflatten(2, (3, 2)), rtol=1e-4, atol=1e-5)
