"""CrossAttention, the similarity of synonyms, and the memory format."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from dcp_clip.modeling.layers import CrossAttention, best_synonym_similarity, to_channels_last


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


def test_every_position_has_its_own_best_synonym():
    """Against the maximum over the names, and each name is compared once."""
    torch.manual_seed(0)
    counts = [1, 5, 2, 1]
    starts = [0, 1, 6, 8]
    rows = torch.tensor(
        [[a + (i if i < n else 0) for i in range(5)] for a, n in zip(starts, counts)]
    )
    text, unit = torch.randn(9, 16, requires_grad=True), torch.randn(2, 16, 3, 4)
    ids = torch.tensor([[0, 1, 2], [1, 2, 3]])
    similarity = best_synonym_similarity(unit, text, rows[ids])
    for image in range(2):
        for k, category in enumerate(ids[image]):
            names = text[starts[category] : starts[category] + counts[category]]
            expected = torch.einsum("nd,dhw->nhw", names, unit[image]).amax(0)
            torch.testing.assert_close(similarity[image, k], expected)
    similarity.sum().backward()
    assert (text.grad != 0).any(1).all()
    with FlopCounterMode(display=False) as flops:
        best_synonym_similarity(unit[:1], text, rows[None])
    assert flops.get_total_flops() == 2 * sum(counts) * 16 * 12


def test_channels_last_leaves_out_what_crashes_pytorch():
    """The backward pass of such a convolution ends the process with PyTorch 2.14 on a CPU."""

    stem = torch.nn.Conv2d(3, 64, 1, stride=2)  # as in the stem of MobileCLIP
    wide, large = torch.nn.Conv2d(8, 64, 1, stride=2), torch.nn.Conv2d(3, 64, 3, stride=2)
    to_channels_last(torch.nn.Sequential(stem, wide, large))
    assert stem.weight.stride() == (3, 1, 1, 1)
    assert wide.weight.stride() == (8, 1, 8, 8) and large.weight.stride() == (27, 1, 9, 3)
    stem(torch.randn(2, 3, 64, 96)).square().mean().backward()
