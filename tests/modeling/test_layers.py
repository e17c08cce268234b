"""CrossAttention."""

import torch

from dcp_clip.modeling.layers import CrossAttention


def test_masked_keys_have_no_effect():
    torch.manual_seed(0)
    attention = CrossAttention(16, 4)
    query, key, bias = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2, 3, 5)
    mask = torch.tensor([[True, True, False, True, False], [True] + [False] * 4])
    out = attention(query, key, bias, mask)
    other = torch.where(mask[..., None], key, 7 * torch.randn(2, 5, 16))
    assert torch.equal(out, attention(query, other, bias.masked_fill(~mask[:, None], 3.0), mask))
    alone = attention(query[:1], key[:1, mask[0]], bias[:1, :, mask[0]], mask[:1, mask[0]])
    torch.testing.assert_close(out[:1], alone)


def test_it_agrees_with_torch_and_a_bias_as_the_mask():
    torch.manual_seed(0)
    ours, theirs = CrossAttention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        ours.bias_weight.normal_()
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    query, key, bias = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.randn(2, 3, 5)
    mask = (bias[:, None] * ours.bias_weight.view(1, 4, 1, 1)).flatten(0, 1)
    keys = ours.norm_key(key)
    expected, _ = theirs(ours.norm_query(query), keys, keys, attn_mask=mask)
    torch.testing.assert_close(ours(query, key, bias, torch.ones(2, 5).bool()), expected)
