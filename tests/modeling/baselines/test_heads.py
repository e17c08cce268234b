"""Properties of all baselines: any vocabulary, any size, void labels, and learning."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from dcp_clip.vocabulary import Vocabulary

POOL = [["sky"], ["car", "motor car"], ["road"], ["cat"], ["bicycle", "bike"], ["tall tree"]]


@torch.no_grad()
def run(model, image, names, **inputs):
    vocabulary = Vocabulary(names)
    output = model([{"image": image, "vocabulary": vocabulary, **inputs}])[0]
    return vocabulary, output["sem_seg"], output["proposals"]


def gradients(model, losses):
    model.zero_grad()
    sum(losses.values()).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("synonyms", ["mean", "max"])
def test_permuted_names_permute_the_logits(make_head, make_image, architecture, synonyms):
    model = make_head(architecture, opts={"MODEL.DCP_CLIP.VOCABULARY.SYNONYM_POOLING": synonyms})
    image, order = make_image(45, 70), [3, 0, 5, 1, 4, 2]
    _, sem_seg, proposals = run(model, image, POOL)
    _, permuted, scores = run(model, image, [POOL[i] for i in order])
    torch.testing.assert_close(permuted.logits, sem_seg.logits[order], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(scores["scores"], proposals["scores"][order], rtol=1e-3, atol=1e-3)
    # The logits differ between categories and positions; a constant would pass the test above.
    assert sem_seg.logits.std(0).mean() > 1e-3 and sem_seg.logits.flatten(1).std(1).mean() > 1e-3


def test_all_categories_are_proposed(make_head, make_image, architecture):
    _, sem_seg, proposals = run(make_head(architecture), make_image(40, 40), POOL)
    assert proposals["ids"].tolist() == sem_seg.category_ids.tolist() == list(range(len(POOL)))
    if architecture == "CostAggregationSegmentor":  # its scores rank the names before the head
        return
    inside = sem_seg.maps[:, :10, :10]  # the rest is padding to 64 x 64 pixels
    assert torch.equal(proposals["scores"], inside.flatten(1).amax(1))


@pytest.mark.parametrize("clip", ["dcp-tiny-cnn", "test-vit-14-quickgelu"])
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (33, 47)])
def test_any_size_and_any_vocabulary(make_head, make_image, architecture, clip, size):
    model = make_head(architecture, clip)
    for count in (1, 70):
        names = [f"thing {i}" for i in range(count)]
        vocabulary, sem_seg, _ = run(model.eval(), make_image(*size), names)
        assert sem_seg.image_size == size and len(sem_seg) == count
        assert sem_seg.logits.isfinite().all()
        assert run(model, make_image(*size), names, height=7, width=3)[1].image_size == (7, 3)
        losses = model.train()(
            [
                {
                    "image": make_image(*size),
                    "sem_seg": torch.zeros(size).long(),
                    "vocabulary": vocabulary,
                }
            ]
        )
        assert all(v.isfinite() for v in losses.values())
        assert all(g.isfinite().all() for g in gradients(model, losses).values())


def test_images_of_a_batch_do_not_influence_each_other(make_head, make_image, architecture):
    model, vocabulary = make_head(architecture), Vocabulary(POOL)
    inputs = [
        {"image": make_image(*size, seed=i), "vocabulary": vocabulary}
        for i, size in enumerate([(33, 47), (64, 64), (33, 47)])
    ]
    with torch.no_grad():
        for x, together in zip(inputs, model(inputs), strict=True):
            alone = model([x])[0]["sem_seg"].logits
            torch.testing.assert_close(together["sem_seg"].logits, alone, rtol=1e-3, atol=1e-3)


def test_all_void_values_are_equal(make_head, batch, architecture):
    model = make_head(architecture).train()
    batch[0]["sem_seg"] = batch[0]["sem_seg"].masked_fill(torch.eye(64).bool(), 255)
    found = [gradients(model, model(batch))]
    batch[0]["sem_seg"] = batch[0]["sem_seg"].masked_fill(torch.eye(64).bool(), -7)
    found.append(gradients(model, model(batch)))
    assert found[0] and all(torch.equal(g, found[1][n]) for n, g in found[0].items())


@pytest.mark.parametrize("with_neighbour", [False, True])
def test_a_void_image_contributes_nothing(make_head, batch, architecture, with_neighbour):
    model = make_head(architecture).train()
    batch[0]["sem_seg"] = torch.full((64, 64), 255)
    losses = model(batch if with_neighbour else batch[:1])
    found = gradients(model, losses)
    assert found
    if with_neighbour:
        alone = model(batch[1:])
        torch.testing.assert_close(losses, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found, gradients(model, alone), rtol=1e-2, atol=1e-4)
    else:
        assert all(loss == 0 for loss in losses.values())
        assert all((g == 0).all() for g in found.values())


def test_it_learns_one_batch(make_head, batch, architecture):
    # The frozen CLIP has random weights here, so its probabilities are not used.
    opts = {"MODEL.BASELINES.MASK_QUERIES.UNSEEN_EXPONENT": 0.0}
    model = make_head(architecture, opts=opts).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    totals = []
    for _ in range(60):
        loss = sum(model(batch).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
        if totals[-1] < 0.03 * totals[0]:
            break
    assert totals[-1] < 0.3 * totals[0]
    # The loss is low because the labels are right.
    with torch.no_grad():
        outputs = model.eval()(batch)
    for x, output in zip(batch, outputs, strict=True):
        assert (output["sem_seg"].argmax(dim=0) == x["sem_seg"]).float().mean() > 0.9


def test_every_trained_parameter_has_a_gradient_and_clip_has_none(make_head, batch, architecture):
    model = make_head(architecture).train()
    found = gradients(model, model(batch))
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(found)
    assert not any(name.startswith(("backbone", "text_encoder")) for name in found)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["PixelTextSegmentor", "CostAggregationSegmentor"])
def test_an_untrained_head_gives_the_answer_of_clip(make_cfg, head_options, make_image, kind):
    torch.manual_seed(0)
    model = build_model(make_cfg("dcp-tiny-cnn", head_options(kind))).eval()
    image = make_image(64, 96)
    vocabulary, sem_seg, _ = run(model, image, POOL)
    dense = model.backbone((image - model.pixel_mean)[None] / model.pixel_std)["dense"]
    text = model.text_encoder.encode_vocabulary(vocabulary).embeddings
    unit, fine = F.normalize(dense, dim=1), {"size": (16, 24), "mode": "bilinear"}
    if kind == "PixelTextSegmentor":  # it interpolates the features, the other one the similarities
        cosines = torch.einsum("bdhw,cd->bchw", F.normalize(F.interpolate(unit, **fine)), text)
    else:
        cosines = F.interpolate(torch.einsum("bdhw,cd->bchw", unit, text), **fine)
    torch.testing.assert_close(sem_seg.maps, 20 * cosines[0])


@torch.no_grad()
def test_windows_of_a_large_image_agree_with_its_halves(make_head, make_image, architecture):
    opts = {"MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE": 64, "MODEL.DCP_CLIP.SLIDING_WINDOW.STRIDE": 64}
    model, image = make_head(architecture, opts=opts), make_image(64, 128)
    labels = run(model, image, POOL)[1].argmax(dim=0)
    halves = [run(model, half, POOL)[1].argmax(dim=0) for half in image.split(64, dim=2)]
    # Only the interpolation between the halves differs.
    assert (labels == torch.cat(halves, dim=1)).float().mean() > 0.95


def test_bf16_is_close_to_fp32(make_head, make_image, architecture):
    image = make_image(64, 64)
    full = run(make_head(architecture), image, POOL)[1].maps
    half = run(make_head(architecture, opts={"MODEL.DCP_CLIP.BF16": True}), image, POOL)[1].maps
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.1 * full.std()
