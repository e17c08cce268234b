"""Cost aggregation: the K names, chunks of names, windows, attention between names, and losses."""

import pytest
import torch
from torch.nn import functional as F

from dcp_clip.modeling.baselines.cost_aggregation import SigmoidCriterion
from dcp_clip.modeling.baselines.cost_aggregation_layers import (
    ClassAggregation,
    SpatialAggregation,
    _linear_attention,
    _WindowBlock,
)
from dcp_clip.structures import Proposals
from dcp_clip.vocabulary import Vocabulary

KIND = "CostAggregationSegmentor"
NODE = "MODEL.BASELINES.COST_AGGREGATION"


@torch.no_grad()
def result_of(model, image, names):
    return model([{"image": image, "vocabulary": Vocabulary(names)}])[0]


def maps_of(model, image, names):
    return result_of(model, image, names)["sem_seg"].maps


def test_chunks_limit_memory_and_do_not_change_the_logits(make_head, make_image):
    names, image = [f"thing {i}" for i in range(11)], make_image(64, 80)
    model = make_head(KIND)
    whole = maps_of(model, image, names)
    seen = []
    for module in (*model.head.steps.values(), *model.head.spatial):
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    for model.head.chunk_size, parts in ((1, [1] * 11), (4, [3, 4, 4]), (11, [11])):
        seen.clear()
        torch.testing.assert_close(maps_of(model, image, names), whole, rtol=1e-4, atol=1e-4)
        assert sorted(seen) == sorted(3 * parts)


def test_names_attend_to_each_other(make_head, make_image):
    """Another name changes the logits of the others."""
    model, image = make_head(KIND), make_image(64, 64)
    fewer = maps_of(model, image, ["sky", "car"])
    more = maps_of(model, image, ["sky", "car", "cat"])[:2]
    assert not torch.allclose(fewer, more, atol=1e-3)


def test_the_names_with_the_highest_cosine_are_segmented(make_head, make_image):
    names, image = [f"thing {i}" for i in range(9)], make_image(64, 96)
    model = make_head(KIND, opts={f"{NODE}.NUM_NAMES": 4})
    result = result_of(model, image, names)
    dense = model.backbone((image - model.pixel_mean)[None] / model.pixel_std)["dense"]
    text = model.text_encoder.encode_vocabulary(Vocabulary(names)).embeddings
    cosines = torch.einsum("bdhw,cd->bchw", F.normalize(dense, dim=1), text)[0].flatten(1).amax(1)
    chosen = cosines.topk(4).indices.sort().values
    assert torch.equal(result["proposals"]["ids"], chosen)
    torch.testing.assert_close(result["proposals"]["scores"], cosines[chosen])
    # Names that are not among them leave the logits identical.
    kept = [names[i] for i in chosen]
    assert torch.equal(maps_of(model, image, kept), result["sem_seg"].maps)


def test_in_training_the_names_of_the_ground_truth_are_segmented(make_head, batch):
    model, found = make_head(KIND, opts={f"{NODE}.NUM_NAMES": 1}).train(), []
    model.criterion.register_forward_pre_hook(lambda _, args: found.append(args[2].ids.tolist()))
    losses = model(batch)
    assert found == [[[0, 1], [0, 2]]]
    assert all(loss > 0 for loss in losses.values())


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("DIM", 32, r"DIM \(32\) must be above 32"),
        ("NUM_HEADS", 5, r"a multiple of NUM_HEADS \(5\)"),
        ("NUM_NAMES", -1, "NUM_NAMES is -1; it must be 0 or more"),
        ("LOSS", "focal", "LOSS is 'focal'; it must be softmax or sigmoid"),
    ],
)
def test_wrong_values_are_refused(make_head, key, value, message):
    with pytest.raises(ValueError, match=f"COST_AGGREGATION.*{message}"):
        make_head(KIND, opts={f"{NODE}.{key}": value})


@pytest.mark.parametrize("grid", [(4, 4), (8, 4), (7, 9), (3, 10)])
@pytest.mark.parametrize("shift", [False, True])
def test_a_position_attends_to_the_positions_of_its_window(grid, shift):
    """Also if the map is no multiple of the window, and if the windows are shifted."""
    torch.manual_seed(0)
    block = _WindowBlock(8, 2, window=4, shift=shift)
    maps = torch.randn(1, 1, *grid, 8, requires_grad=True)
    image = torch.randn(1, *grid, 8)
    output = block(maps, image)
    moved = [2 if shift and side > 4 else 0 for side in grid]
    rows, columns = ((torch.arange(n) + 2 * (m > 0)) // 4 for n, m in zip(grid, moved))
    windows = rows[:, None] * 100 + columns
    for row, column in ((0, 0), (grid[0] // 2, grid[1] // 2), (grid[0] - 1, grid[1] - 1)):
        (gradient,) = torch.autograd.grad(
            output[0, 0, row, column].square().sum(), maps, retain_graph=True
        )
        hit = (gradient[0, 0] != 0).any(-1)
        assert torch.equal(hit, windows == windows[row, column])


def test_windows_are_equal_wherever_they_are():
    """The bias depends on relative positions, and a smaller map is one window of its size."""
    torch.manual_seed(0)
    block = _WindowBlock(8, 2, window=4, shift=False)
    maps, image = torch.randn(1, 2, 8, 8, 8), torch.randn(1, 8, 8, 8)
    whole = block(maps, image)
    part = block(maps[:, :, 4:, :4], image[:, 4:, :4])
    torch.testing.assert_close(whole[:, :, 4:, :4], part)
    # A larger window, on a map that is not larger than the other one's window.
    larger = _WindowBlock(8, 2, window=6, shift=True)
    state = block.state_dict()
    state["position_bias"] = F.pad(state["position_bias"], (2, 2, 2, 2), value=9.0)
    larger.load_state_dict(state)
    torch.testing.assert_close(larger(maps[:, :, 4:, :4], image[:, 4:, :4]), part)


def test_the_image_and_the_text_guide_the_attention():
    torch.manual_seed(0)
    maps, image, text = torch.randn(2, 3, 5, 6, 8), torch.randn(2, 5, 6, 8), torch.randn(2, 3, 8)
    spatial, between = SpatialAggregation(8, 2, 4), ClassAggregation(8, 2)
    assert not torch.allclose(spatial(maps, image), spatial(maps, image.flip(1)), atol=1e-3)
    assert not torch.allclose(between(maps, text), between(maps, text.flip(1)), atol=1e-3)
    # Maps of names do not mix over positions, and positions not over names.
    changed = maps.clone()
    changed[:, 0] = 0
    assert torch.allclose(spatial(changed, image)[:, 1:], spatial(maps, image)[:, 1:], atol=1e-5)
    changed = maps.clone()
    changed[:, :, 0] = 0
    assert torch.allclose(
        between(changed, text)[:, :, 1:], between(maps, text)[:, :, 1:], atol=1e-5
    )


def test_linear_attention_is_attention_with_a_product_kernel():
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 4, 3, 6)  # (B, K, N, heads, e)
    kernel = torch.einsum("bknhd,bjnhd->bnhkj", 1 + F.elu(query), 1 + F.elu(key))
    expected = torch.einsum("bnhkj,bjnhe->bknhe", kernel / kernel.sum(-1, keepdim=True), value)
    torch.testing.assert_close(_linear_attention(query, key, value), expected)


def test_the_sigmoid_loss_starts_from_the_probabilities_of_clip(make_head, make_image, batch):
    names, image = ["sky", "car", "cat"], make_image(64, 64)
    logits = {}
    for loss in ("softmax", "sigmoid"):
        model = make_head(KIND, opts={f"{NODE}.LOSS": loss})
        torch.nn.init.zeros_(model.head.out.weight)
        torch.nn.init.zeros_(model.head.out.bias)
        logits[loss] = maps_of(model, image, names)
    # At the corners nothing is interpolated.
    corner = (slice(None), 0, 0)
    torch.testing.assert_close(
        logits["sigmoid"][corner].sigmoid(), logits["softmax"][corner].softmax(0)
    )
    model = make_head(KIND, opts={f"{NODE}.LOSS": "sigmoid"}).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    totals = []
    for _ in range(10):
        losses = model(batch)
        assert list(losses) == ["loss_bce"]
        optimizer.zero_grad()
        losses["loss_bce"].backward()
        optimizer.step()
        totals.append(losses["loss_bce"].item())
    assert totals[-1] < 0.6 * totals[0]


def test_the_sigmoid_loss_ignores_void():
    torch.manual_seed(0)
    maps = torch.randn(2, 3, 2, 2, requires_grad=True)
    proposals = Proposals(
        torch.tensor([[0, 2, 5], [1, 2, 3]]),
        torch.zeros(2, 3),
        torch.ones(2, 3).bool(),
        maps[:, :, 0, :0],
    )
    labels = torch.tensor([[[5, -1], [2, 255]], [[-1, -1], [-1, -1]]])
    loss = SigmoidCriterion(stride=1)({"fine": maps}, None, proposals, labels, 6)["loss_bce"]
    # Two pixels count: the target of the first is the third map, that of the second the second.
    hits = torch.tensor([[0.0, 0, 1], [0, 1, 0]])
    pixels = torch.stack([maps[0, :, 0, 0], maps[0, :, 1, 0]])
    expected = -(hits * F.logsigmoid(pixels) + (1 - hits) * F.logsigmoid(-pixels)).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    hit = (maps.grad != 0).any(1)
    assert hit.tolist() == [[[True, False], [True, False]], [[False, False], [False, False]]]
    void = labels.fill_(-1)
    assert SigmoidCriterion(stride=1)({"fine": maps}, None, proposals, void, 6)["loss_bce"] == 0
