"""Each stage can be swapped; what each alternative promises."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from dcp_clip.modeling.stages.stage4_fine_decoder import PyramidDecoder
from dcp_clip.vocabulary import Vocabulary

NODE = "MODEL.DCP_CLIP."
DEFAULTS = {
    "PROPOSAL": "CategoryProposal",
    "TEXT_GUIDANCE": "ImageConditionedGuidance",
    "COARSE_DECODER": "DualInteractionDecoder",
    "FINE_DECODER": "PyramidDecoder",
    "CLASS_REFINEMENT": "MaskPooledRefinement",
}
ALTERNATIVES = [
    ("PROPOSAL", "PooledProposal"),
    ("PROPOSAL", "DenseProposal"),
    ("PROPOSAL", "AllCategories"),
    ("PROPOSAL", "OracleProposal"),
    ("TEXT_GUIDANCE", "StaticGuidance"),
    ("COARSE_DECODER", "ImageToTextDecoder"),
    ("COARSE_DECODER", "TextToImageDecoder"),
    ("COARSE_DECODER", "CosineDecoder"),
    ("FINE_DECODER", "BilinearDecoder"),
    ("CLASS_REFINEMENT", "ReassignmentRefinement"),
    ("CLASS_REFINEMENT", "NoRefinement"),
]
NAMES = Vocabulary(["sky", ["tree", "shrub"], "car", "road", "wall", "cat", "dog", "sand"])
CLIPS = ["test-convnext", "test-vit-16"]


def stage(node, name):
    return {f"{NODE}{node}.NAME": name}


def record(make_image, size=(40, 52), seed=0, categories=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, categories, size, generator=generator)
    labels[:4] = 255
    return {"image": make_image(*size, seed=seed), "sem_seg": labels, "vocabulary": NAMES}


def train_one_step(model, batch):
    model.train()
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values()), losses
    model.zero_grad()
    sum(losses.values()).backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    found = {n: g for n, g in trained.items() if g is not None}
    assert all(g.isfinite().all() for g in found.values())
    return losses, found, trained.keys() - found.keys()


@torch.no_grad()
def evaluate(model, batch):
    model.eval()
    outputs = model(batch)
    for x, output in zip(batch, outputs, strict=True):
        assert output["sem_seg"].image_size == tuple(x["image"].shape[-2:])
        assert output["sem_seg"].logits.isfinite().all()
        assert output["proposals"]["scores"].isfinite().all()
    return outputs


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("node, name", [("PROPOSAL", "CategoryProposal"), *ALTERNATIVES])
def test_each_alternative_trains_and_evaluates(make_model, make_image, clip, node, name):
    model = make_model(clip, stage(node, name))
    batch = [record(make_image), record(make_image, (64, 33), seed=1, categories=2)]
    _, found, silent = train_one_step(model, batch)
    assert found and not silent, f"no gradient reaches {sorted(silent)[:5]}"
    evaluate(model, batch)


@pytest.mark.parametrize("node", DEFAULTS)
def test_unknown_stages_are_named_with_the_known(make_cfg, node):
    with pytest.raises(KeyError, match=f"{node}.NAME is 'Nonsense'.*{DEFAULTS[node]}"):
        build_model(make_cfg(opts=stage(node, "Nonsense")))


@pytest.mark.parametrize("pair", [("OracleProposal", False), ("OracleProposal", True)])
def test_refinement_with_padded_proposals(make_model, make_image, pair):
    """Rows of the oracle are padded; padded places must not reach loss or gradient as NaN."""
    name, learned = pair
    opts = stage("PROPOSAL", name) | {NODE + "CLASS_REFINEMENT.LEARNED": learned}
    batch = [record(make_image), record(make_image, seed=1, categories=1)]
    model = make_model(opts=opts)
    train_one_step(model, batch)
    outputs = evaluate(model, batch)
    assert [len(o["proposals"]["ids"]) for o in outputs] == [5, 1]


# ---- training-free mode

TRAINING_FREE = (
    stage("TEXT_GUIDANCE", "StaticGuidance")
    | stage("COARSE_DECODER", "CosineDecoder")
    | stage("FINE_DECODER", "BilinearDecoder")
)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("refinement", ["NoRefinement", "MaskPooledRefinement"])
def test_training_free(make_model, make_image, clip, refinement):
    opts = TRAINING_FREE | stage("CLASS_REFINEMENT", refinement)
    opts |= {NODE + "CLASS_REFINEMENT.LEARNED": False, NODE + "PROPOSAL.LEARNED": False}
    model = make_model(clip, opts)
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
    outside = [n for n, _ in model.named_parameters() if not n.startswith(("backbone", "text"))]
    assert not outside
    evaluate(model, [record(make_image)])


@torch.no_grad()
def test_training_free_is_the_cosine_of_dense_and_text(make_model, make_image):
    opts = TRAINING_FREE | stage("CLASS_REFINEMENT", "NoRefinement")
    model = make_model(opts=opts | stage("PROPOSAL", "AllCategories"))
    image = make_image(64, 96)
    sem_seg = model([{"image": image, "vocabulary": NAMES}])[0]["sem_seg"]
    pixels = (image - model.pixel_mean) / model.pixel_std
    dense = torch.nn.functional.normalize(model.backbone(pixels[None])["dense"], dim=1)
    text = model.text_encoder.encode_vocabulary(NAMES).embeddings
    cosine = 20 * torch.einsum("kd,bdhw->bkhw", text, dense)
    expected = torch.nn.functional.interpolate(cosine, (16, 24), mode="bilinear")
    expected = torch.nn.functional.interpolate(expected, (64, 96), mode="bilinear")
    torch.testing.assert_close(sem_seg.logits, expected[0], rtol=1e-4, atol=1e-4)


def test_an_untrained_model_answers_as_clip_would(make_cfg, make_image):
    """Zero gates and last layers: before training the argmax is that of CLIP's similarity."""
    opts = stage("PROPOSAL", "AllCategories")
    torch.manual_seed(0)
    default = build_model(make_cfg(opts=opts)).eval()
    plain = build_model(
        make_cfg(opts=opts | TRAINING_FREE | stage("CLASS_REFINEMENT", "NoRefinement"))
    ).eval()
    for name in ("backbone", "text_encoder"):
        getattr(plain, name).load_state_dict(getattr(default, name).state_dict())
    x = {"image": make_image(64, 64), "vocabulary": NAMES}
    with torch.no_grad():
        a, b = (model([x])[0]["sem_seg"] for model in (default, plain))
    shift = a.logits - b.logits  # the belief in presence, the same for all
    torch.testing.assert_close(shift, shift.flatten()[0].expand_as(shift), rtol=1e-4, atol=1e-4)


# ---- the oracle


def test_the_oracle(make_model, make_image):
    model = make_model(opts=stage("PROPOSAL", "OracleProposal"))
    labels = [torch.full((40, 52), i) for i in (6, 2)] + [torch.full((40, 52), 255)]
    labels[0][:10, :5] = 1
    labels[0][20:, 9:] = 255
    batch = [{**record(make_image, seed=i), "sem_seg": x} for i, x in enumerate(labels)]
    outputs = evaluate(model, batch)
    assert [set(o["proposals"]["ids"].tolist()) for o in outputs[:2]] == [{1, 6}, {2}]
    assert len(outputs[2]["proposals"]["ids"]) == 1
    with pytest.raises(ValueError, match="OracleProposal.*ground truth"):
        evaluate(model, [{"image": make_image(32, 32), "vocabulary": NAMES}])


def test_labels_in_evaluation_are_used_by_the_oracle_only(make_model, make_image):
    model = make_model()
    x = record(make_image)
    with_labels = evaluate(model, [x])[0]
    x.pop("sem_seg")
    assert torch.equal(with_labels["sem_seg"].logits, evaluate(model, [x])[0]["sem_seg"].logits)


@pytest.mark.parametrize("attention", [True, False])
def test_heads_must_divide_the_width(make_cfg, attention):
    opts = {NODE + "NUM_HEADS": 5}
    if not attention:  # but that of stage 1
        opts |= {NODE + "TEXT_GUIDANCE.NAME": "StaticGuidance"}
        opts |= {NODE + "COARSE_DECODER.NAME": "CosineDecoder"}
    with pytest.raises(ValueError, match="32 is not a multiple of 5 heads .*NUM_HEADS"):
        build_model(make_cfg(opts=opts))


@pytest.mark.parametrize("key", ["IMAGE_DIM", "CATEGORY_DIM"])
def test_widths_that_group_norm_cannot_split_are_named(make_cfg, key):
    opts = {f"{NODE}FINE_DECODER.{key}": 18}
    with pytest.raises(ValueError, match=f"FINE_DECODER.{key} is 18; .* multiple of 4"):
        build_model(make_cfg(opts=opts))
    build_model(make_cfg(opts={**opts, f"{NODE}FINE_DECODER.NORM": "LN"}))


# ---- options of the fine decoder and of the whole


@pytest.mark.parametrize("norm", ["GN", "BN", "LN", ""])
def test_norms_of_the_fine_decoder(make_model, make_image, norm):
    model = make_model(opts={NODE + "FINE_DECODER.NORM": norm})
    train_one_step(model, [record(make_image)])
    evaluate(model, [record(make_image)])


def test_unseen_categories_share_the_fine_decoders_weights(make_cfg):
    """Category as batch: a correction is of the category's own map and name, wherever it stands."""
    torch.manual_seed(0)
    shapes = {f"res{i}": ShapeSpec(channels=4 * i, stride=2**i) for i in (2, 3, 4)}
    decoder = PyramidDecoder(make_cfg(), shapes, 6, 5)
    torch.nn.init.normal_(decoder.out.weight)
    features = {f"res{i}": torch.randn(1, 4 * i, 64 >> i, 96 >> i) for i in (2, 3, 4)}
    coarse, visual, text = torch.randn(1, 3, 2, 3), torch.randn(1, 6, 2, 3), torch.randn(1, 3, 5)
    out = decoder(coarse, visual, text, features, torch.ones(1, 3).bool())
    assert out.shape == (1, 3, 16, 24)
    order = torch.tensor([2, 0, 1])
    shuffled = decoder(coarse[:, order], visual, text[:, order], features, torch.ones(1, 3).bool())
    torch.testing.assert_close(shuffled, out[:, order], rtol=1e-4, atol=1e-5)
    padded = decoder(
        torch.cat([coarse, 50 + coarse[:, :1]], 1),
        visual,
        torch.cat([text, text[:, :1]], 1),
        features,
        torch.tensor([[True, True, True, False]]),
    )
    torch.testing.assert_close(padded[:, :3], out, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip", ["test-convnext", "test-vit-14-quickgelu", "dcp-tiny-cnn"])
def test_bf16_is_close_to_fp32(make_model, make_image, clip):
    batch = [record(make_image)]
    exact = make_model(clip, stage("PROPOSAL", "AllCategories"))
    fast = make_model(clip, stage("PROPOSAL", "AllCategories") | {NODE + "BF16": True})
    a, b = (evaluate(m, batch)[0]["sem_seg"].logits for m in (exact, fast))
    assert b.dtype == torch.float32
    assert (a - b).abs().max() < 0.1 * (a.max() - a.min())
    train_one_step(fast, batch)


def test_bf16_ranks_in_fp32(make_model, make_image):
    """Three digits do not tell 20,000 names apart: stage 1 compares in fp32 what bf16 gave it."""
    model = make_model(opts={NODE + "BF16": True})
    captured = {}

    def keep(_, args, out):
        captured.update(args=args, out=out)

    model.proposal.register_forward_hook(keep)
    evaluate(model, [record(make_image)])
    dense, pooled, text, rows, valid, *_ = captured["args"]
    scores, ids = captured["out"].scores, captured["out"].ids
    expected = model.proposal(dense, pooled, text, rows, valid)
    assert torch.equal(expected.ids, ids) and torch.equal(expected.scores, scores)


def test_channels_last_is_only_a_layout(make_model, make_image):
    a, b = (make_model("dcp-tiny-cnn", {NODE + "CHANNELS_LAST": flag}) for flag in (False, True))
    assert b.backbone.visual.trunk.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    x = [record(make_image)]
    torch.testing.assert_close(
        evaluate(a, x)[0]["sem_seg"].logits,
        evaluate(b, x)[0]["sem_seg"].logits,
        rtol=1e-3,
        atol=1e-3,
    )


@torch.no_grad()
def test_the_answer_can_be_an_earlier_stages(make_model, make_image):
    x = [record(make_image)]
    answers = {
        name: evaluate(make_model(opts={NODE + "OUTPUT": name}), x)[0]["sem_seg"].logits
        for name in ("last", "fine", "coarse")
    }
    shift = (answers["last"] - answers["fine"]).flatten(1)  # stage 5 moves whole maps
    assert shift.abs().max() > 1e-3 and shift.std(1).max() < 1e-4
    assert (answers["fine"] - answers["coarse"]).flatten(1).std(1).min() > 1e-3
    with pytest.raises(ValueError, match="OUTPUT is 'best'"):
        make_model(opts={NODE + "OUTPUT": "best"})
