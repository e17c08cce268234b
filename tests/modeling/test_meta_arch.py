"""DCPCLIP: its answer without training, its precision, and which stage's logits are the result."""

import pytest
import torch
from detectron2.modeling import build_model
from torch.nn import functional as F

from dcp_clip.vocabulary import Vocabulary

NODE = "MODEL.DCP_CLIP."
ALL_CATEGORIES = {NODE + "PROPOSAL.NAME": "AllCategories"}
TRAINING_FREE = {
    NODE + "TEXT_GUIDANCE.NAME": "StaticGuidance",
    NODE + "COARSE_DECODER.NAME": "CosineDecoder",
    NODE + "FINE_DECODER.NAME": "BilinearDecoder",
}
NO_REFINEMENT = {NODE + "CLASS_REFINEMENT.NAME": "NoRefinement"}


# ---- without training


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-16"])
@pytest.mark.parametrize("refinement", ["NoRefinement", "MaskPooledRefinement"])
def test_a_training_free_model_has_no_weights_but_those_of_clip(
    make_model, make_input, evaluate, clip, refinement
):
    opts = TRAINING_FREE | {NODE + "CLASS_REFINEMENT.NAME": refinement}
    opts |= {NODE + "CLASS_REFINEMENT.LEARNED": False, NODE + "PROPOSAL.LEARNED": False}
    model = make_model(clip, opts)
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
    outside = [n for n, _ in model.named_parameters() if not n.startswith(("backbone", "text"))]
    assert not outside
    evaluate(model, [make_input()])


@torch.no_grad()
def test_a_training_free_model_computes_the_similarity_of_dense_and_text_features(
    make_model, make_image, eight_categories
):
    model = make_model(opts=TRAINING_FREE | NO_REFINEMENT | ALL_CATEGORIES)
    image = make_image(64, 96)
    sem_seg = model([{"image": image, "vocabulary": eight_categories}])[0]["sem_seg"]
    pixels = (image - model.pixel_mean) / model.pixel_std
    dense = F.normalize(model.backbone(pixels[None])["dense"], dim=1)
    text_features = model.text_encoder.encode_vocabulary(eight_categories).embeddings
    cosine = 20 * torch.einsum("kd,bdhw->bkhw", text_features, dense)
    expected = F.interpolate(cosine, (16, 24), mode="bilinear")
    expected = F.interpolate(expected, (64, 96), mode="bilinear")
    torch.testing.assert_close(sem_seg.logits, expected[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_position_of_a_training_free_model_has_its_own_best_synonym(make_model, make_image):
    """With `max`, the map of a category is the maximum over the maps of its names."""
    names = [["sky", "wall", "tree", "wood"], ["person"], ["car", "automobile"]]
    opts = TRAINING_FREE | NO_REFINEMENT | {NODE + "VOCABULARY.SYNONYM_POOLING": "max"}
    model, image = make_model(opts=opts), make_image(128, 160)
    flat = Vocabulary([name for group in names for name in group])
    model.proposal.num_proposals = len(flat)
    model.output = "coarse"
    maps = model([{"image": image, "vocabulary": flat}])[0]["sem_seg"].maps
    grouped = model([{"image": image, "vocabulary": Vocabulary(names)}])[0]["sem_seg"].maps
    expected = torch.stack([part.amax(0) for part in maps.split([4, 1, 2])])
    torch.testing.assert_close(grouped, expected)
    assert len(maps[:4].argmax(0).unique()) > 1  # no single name is the best everywhere


def test_an_untrained_model_gives_the_answer_of_clip(make_cfg, make_image, eight_categories):
    """Gates and last layers start at zero: before training the argmax is that of the similarity."""
    torch.manual_seed(0)
    # Logits at stride 4 as those of the other model; resizing them twice would blur them.
    stride = {"MODEL.DCP_CLIP.FINE_DECODER.REGION_STRIDE": 4}
    default = build_model(make_cfg(opts=ALL_CATEGORIES | stride)).eval()
    plain = build_model(make_cfg(opts=ALL_CATEGORIES | TRAINING_FREE | NO_REFINEMENT)).eval()
    for name in ("backbone", "text_encoder"):
        getattr(plain, name).load_state_dict(getattr(default, name).state_dict())
    x = {"image": make_image(64, 64), "vocabulary": eight_categories}
    with torch.no_grad():
        a, b = (model([x])[0]["sem_seg"] for model in (default, plain))
    shift = a.logits - b.logits  # the log-probability of presence, the same for all categories
    torch.testing.assert_close(shift, shift.flatten()[0].expand_as(shift), rtol=1e-4, atol=1e-4)


# ---- precision and memory format


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-14-quickgelu", "dcp-tiny-cnn"])
def test_bf16_is_close_to_fp32(make_model, make_input, train_one_step, evaluate, clip):
    batch = [make_input()]
    exact = make_model(clip, ALL_CATEGORIES)
    fast = make_model(clip, ALL_CATEGORIES | {NODE + "BF16": True})
    a, b = (evaluate(m, batch)[0]["sem_seg"].logits for m in (exact, fast))
    assert b.dtype == torch.float32
    assert (a - b).abs().max() < 0.1 * (a.max() - a.min())
    train_one_step(fast, batch)


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-16", "dcp-tiny-cnn-s16"])
@pytest.mark.parametrize("size", [(200, 7), (150, 16), (7, 200)])
def test_bf16_of_a_narrow_image_is_close_to_fp32(make_model, make_image, clip, size):
    """Also in a second call: convolutions with one column of results read other memory."""
    exact, fast = (make_model(clip, {NODE + "BF16": bf16}).backbone for bf16 in (False, True))
    divisor = fast.size_divisibility
    image = make_image(*(-(-side // divisor) * divisor for side in size))[None] / 255
    expected = exact(image)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            found = fast(image)
        for name in ("dense", "pooled"):
            cosine = F.cosine_similarity(found[name].float(), expected[name], dim=1)
            assert cosine.min() > 0.99, name


def test_stage_1_ranks_in_fp32(make_model, make_input, evaluate):
    """bf16 has three digits, which do not distinguish 20,000 categories."""
    model = make_model(opts={NODE + "BF16": True})
    captured = {}

    def keep(_, args, out):
        captured.update(args=args, out=out)

    model.proposal.register_forward_hook(keep)
    evaluate(model, [make_input()])
    scores, ids = captured["out"].scores, captured["out"].ids
    expected = model.proposal(*captured["args"])
    assert torch.equal(expected.ids, ids) and torch.equal(expected.scores, scores)


def test_channels_last_does_not_change_the_logits(make_model, make_input, evaluate):
    a, b = (make_model("dcp-tiny-cnn", {NODE + "CHANNELS_LAST": flag}) for flag in (False, True))
    assert b.backbone.visual.trunk.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    x = [make_input()]
    torch.testing.assert_close(
        evaluate(a, x)[0]["sem_seg"].logits,
        evaluate(b, x)[0]["sem_seg"].logits,
        rtol=1e-3,
        atol=1e-3,
    )


# ---- MODEL.DCP_CLIP.OUTPUT


@torch.no_grad()
def test_the_result_can_be_the_logits_of_an_earlier_stage(make_model, make_input, evaluate):
    x = [make_input()]
    logits = {
        name: evaluate(make_model(opts={NODE + "OUTPUT": name}), x)[0]["sem_seg"].logits
        for name in ("last", "fine", "coarse")
    }
    shift = (logits["last"] - logits["fine"]).flatten(1)  # stage 5 adds a constant to each map
    assert shift.abs().max() > 1e-3 and shift.std(1).max() < 1e-4
    assert (logits["fine"] - logits["coarse"]).flatten(1).std(1).min() > 1e-3
    with pytest.raises(ValueError, match="OUTPUT is 'best'"):
        make_model(opts={NODE + "OUTPUT": "best"})


def test_logits_that_the_model_does_not_have_are_refused(make_model, make_image):
    model = make_model(opts={NODE + "OUTPUT": "coarse"})
    model.output = "finest"
    with pytest.raises(ValueError, match="OUTPUT is 'finest', .* coarse"):
        model([{"image": make_image(32, 32), "height": 32, "width": 32}])
