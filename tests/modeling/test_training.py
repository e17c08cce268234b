"""Contracts 6 and 7 in training: void pixels have no effect, and any image size works."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from dcp_clip.vocabulary import Vocabulary

FEW = settings(max_examples=6, deadline=None, phases=[Phase.reuse, Phase.generate])
POOL = Vocabulary([f"thing {i}" for i in range(12)])


def losses_of(model, image, labels, vocabulary=POOL, seed=0):
    torch.manual_seed(seed)
    model.train()
    inputs = [
        {"image": i, "sem_seg": s, "vocabulary": vocabulary}
        for i, s in zip(image, labels, strict=True)
    ]
    return model(inputs)


def gradients(model, losses):
    model.zero_grad()
    sum(losses.values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def trained(make_model):
    # A ViT without stochastic depth, batch statistics and random ranks, so that a forward pass can
    # be repeated.
    model = make_model("test-vit-16", {"MODEL.DCP_CLIP.LOSS.CLASS_BALANCE": 0.5})
    model.proposal.random_ratio = 0.0
    return model


@FEW
@given(seed=st.integers(0, 99), value=st.sampled_from([-1, 254, 12, 1000]))
def test_6_all_void_values_are_equal(trained, make_image, seed, value):
    generator = torch.Generator().manual_seed(seed)
    image = make_image(40, 52, seed=seed)
    labels = torch.randint(0, 4, (5, 7), generator=generator).repeat_interleave(8, 0)
    labels = labels.repeat_interleave(8, 1)[:40, :52]
    void = torch.rand(labels.shape, generator=generator) < 0.3
    a = losses_of(trained, [image], [labels.masked_fill(void, 255)])
    b = losses_of(trained, [image], [labels.masked_fill(void, value)])
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def watch(trained):
    """The logits and labels that the criterion got in the last forward pass."""
    captured = {}

    def keep(_, args):
        captured.clear()
        captured.update(args[0], labels=args[3])

    handle = trained.criterion.register_forward_pre_hook(keep)
    yield captured
    handle.remove()


def loss_of(losses, name):
    return losses[f"loss_{name}_ce"] + losses[f"loss_{name}_dice"]


@pytest.mark.parametrize("seed", range(3))
def test_6_padding_has_no_loss_and_no_gradient(trained, make_image, watch, seed):
    small, large = make_image(32, 32, seed=seed), make_image(64, 48, seed=seed + 1)
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(0, 4, i.shape[1:], generator=generator) for i in (small, large)]
    losses = losses_of(trained, [small, large], labels)
    assert (watch["labels"][0, 32:] == -1).all() and (watch["labels"][0, :, 32:] == -1).all()
    assert torch.equal(watch["labels"][0, :32, :32], labels[0])
    # The sum of all losses, as stage 5 depends on the fine logits too.
    for name in ("fine", "final"):
        (grad,) = torch.autograd.grad(sum(losses.values()), watch[name], retain_graph=True)
        cells = 32 * grad.shape[-2] // 64
        assert (grad[0, :, :cells, :cells] != 0).any()
        assert (grad[0, :, cells:] == 0).all() and (grad[0, :, :, cells:] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_6_void_has_no_gradient(trained, make_image, watch, seed):
    image, labels = make_image(48, 64, seed=seed), torch.full((48, 64), 255)
    labels[:24, :32] = torch.arange(2).repeat_interleave(12)[:, None]
    losses = losses_of(trained, [image], [labels])
    for name in ("fine", "final", "coarse"):
        (grad,) = torch.autograd.grad(loss_of(losses, name), watch[name], retain_graph=True)
        # The coarse logits are interpolated, so a cell beside the labelled ones takes part.
        height, width = (2, 3) if name == "coarse" else (side // 2 for side in grad.shape[-2:])
        assert (grad[..., :height, :width] != 0).any()
        assert (grad[..., height:, :] == 0).all() and (grad[..., width:] == 0).all()


def test_the_ranking_loss_trains_stage_1_only(make_model, make_image):
    """Through the image tower, it would make the masks of stuff less accurate."""
    model = make_model("test-vit-16", {"MODEL.CLIP.TRAIN_IMAGE": "all"})
    labels = torch.arange(48).expand(32, -1) // 16
    losses = losses_of(model, [make_image(32, 48)], [labels])
    found = gradients(model, {"loss_proposal": losses["loss_proposal"]})
    assert {name.split(".")[0] for name, grad in found.items() if grad.any()} == {"proposal"}


@pytest.mark.parametrize("with_neighbour", [False, True])
def test_6_a_void_image_contributes_nothing(trained, make_image, with_neighbour):
    void = torch.full((32, 48), 255)
    images, labels = [make_image(32, 48)], [void]
    if with_neighbour:
        images.append(make_image(32, 48, seed=1))
        labels.append(torch.arange(48).expand(32, -1) // 12)
    losses = losses_of(trained, images, labels)
    found = gradients(trained, losses)
    assert found and all(g.isfinite().all() for g in found.values())
    if with_neighbour:
        alone = losses_of(trained, images[1:], labels[1:])
        expected = gradients(trained, alone)
        for name, loss in losses.items():
            torch.testing.assert_close(loss, alone[name], rtol=1e-4, atol=1e-5, msg=name)
        for name, grad in expected.items():
            torch.testing.assert_close(found[name], grad, rtol=1e-2, atol=1e-4, msg=name)
    else:
        assert {name: float(loss.detach()) for name, loss in losses.items()} == dict.fromkeys(
            losses, 0.0
        )
        assert all((g == 0).all() for g in found.values())


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (33, 47)])
@pytest.mark.parametrize("count", [1, 3, 30])
def test_7_any_size_in_training(make_model, make_image, size, count):
    for clip in ("test-convnext", "test-vit-14-quickgelu"):
        model = make_model(clip)
        names = Vocabulary([f"thing {i}" for i in range(count)])
        losses = losses_of(model, [make_image(*size)], [torch.zeros(size).long()], names)
        found = gradients(model, losses)
        assert all(v.isfinite() for v in losses.values())
        assert found and all(g.isfinite().all() for g in found.values())


def test_losses_are_summed_in_float32(trained, make_image):
    """The largest float16 is 65,504, but an image has more positions."""

    class Sum(torch.nn.Module):
        def forward(self, maps, *_):
            ones = torch.ones(1, 70_000, device=maps["fine"].device)
            return {"loss": ones @ ones.mT}

    criterion, trained.criterion = trained.criterion, Sum()
    try:
        with torch.autocast("cpu", torch.float16):
            losses = losses_of(
                trained, [make_image(32, 32)], torch.zeros(1, 32, 32, dtype=torch.long)
            )
    finally:
        trained.criterion = criterion
    assert losses["loss"].item() == 70_000


# ---- stages 4 and 5 get fewer categories than stage 1 proposes


@pytest.mark.parametrize(("fewest", "expected"), [(0, 8), (2, 5), (6, 6), (20, 8)])
def test_the_categories_of_the_ground_truth_reach_stage_4(make_model, make_image, fewest, expected):
    """The ranking loss of stage 1 compares all K proposals, whatever reaches stage 4."""
    seen, losses = {}, {}
    for count in (fewest, 0):
        opts = {
            "MODEL.DCP_CLIP.PROPOSAL.NUM_PROPOSALS": 8,
            "MODEL.DCP_CLIP.FINE_DECODER.NUM_CATEGORIES": count,
        }
        model = make_model("test-vit-16", opts)
        model.proposal.random_ratio = 0.0
        model.criterion.register_forward_pre_hook(
            lambda _, args, count=count: seen.update({count: args})
        )
        labels = torch.arange(60)[:, None].expand(60, 52) // 12 + 3  # categories 3 to 7
        losses[count] = losses_of(model, [make_image(60, 52)], [labels])
    logits, _, proposals, *_ = seen[fewest]
    assert all(maps.shape[:2] == (1, expected) for maps in logits.values())
    assert {3, 4, 5, 6, 7} <= set(proposals.ids[0].tolist())
    assert proposals.ids[0].tolist() == sorted(proposals.ids[0].tolist())
    assert torch.equal(losses[fewest]["loss_proposal"], losses[0]["loss_proposal"])
    assert all(gradient.isfinite().all() for gradient in gradients(model, losses[0]).values())
