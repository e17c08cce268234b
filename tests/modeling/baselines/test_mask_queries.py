"""Mask queries: matching, void labels, and the ensemble of two classifiers."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from torch.nn import functional as F

from dcp_clip.modeling.baselines.mask_losses import MaskPredictions, MaskQueryCriterion
from dcp_clip.modeling.baselines.mask_query_head import mask_pool
from dcp_clip.vocabulary import Vocabulary

KIND = "MaskQuerySegmentor"
NODE = "MODEL.BASELINES.MASK_QUERIES"
NUM_CATEGORIES = 5


@pytest.fixture
def criterion():
    return MaskQueryCriterion(
        class_weight=2.0, mask_weight=5.0, dice_weight=5.0, no_object_weight=0.1, stride=4
    )


@pytest.fixture
def labels():
    """(2, 32, 32): three categories in stripes, two of them in the second image."""
    rows = torch.arange(32) // 11
    return torch.stack([rows, rows.clamp(max=1) + 3])[..., None].expand(-1, -1, 32).clone()


def perfect(labels, num_queries, shift=0):
    """Queries with the correct classes and masks, from number `shift` on."""
    masks = torch.full((len(labels), num_queries, 8, 8), -20.0)
    classes = torch.zeros(len(labels), num_queries, NUM_CATEGORIES + 1)
    classes[..., -1] = 20
    sampled = labels[:, 2::4, 2::4]
    for i, image in enumerate(sampled):
        for j, category in enumerate(image[image >= 0].unique()):
            masks[i, j + shift][image == category] = 20
            classes[i, j + shift, category] = 40
    return classes, masks


def losses_of(criterion, layers, labels):
    classes, masks = zip(*layers)
    predictions = MaskPredictions(list(classes), list(masks))
    return criterion({}, predictions, None, labels, NUM_CATEGORIES)


@pytest.mark.parametrize("shift", [0, 2])
def test_perfect_queries_have_no_loss_in_any_order(criterion, labels, shift):
    losses = losses_of(criterion, [perfect(labels, 6, shift)], labels)
    assert set(losses) == {"loss_class", "loss_mask_bce", "loss_mask_dice"}
    assert all(abs(loss) < 1e-3 for loss in losses.values())


@pytest.mark.parametrize("wrong", ["class", "mask"])
def test_each_loss_depends_on_its_own_error(criterion, labels, wrong):
    classes, masks = perfect(labels, 6)
    if wrong == "class":
        classes = classes.roll(1, dims=2)
    else:
        masks[..., 4:] = -20.0  # the right half is missing, but the matching is the same
    losses = losses_of(criterion, [(classes, masks)], labels)
    assert (losses["loss_class"] > 0.1) == (wrong == "class")
    assert (losses["loss_mask_bce"] > 0.1) == (losses["loss_mask_dice"] > 0.1) == (wrong == "mask")


def test_each_layer_has_its_own_losses(criterion, labels):
    classes, masks = perfect(labels, 4)
    losses = losses_of(criterion, [(classes, -masks), (classes, masks)], labels)
    assert len(losses) == 6 and losses["loss_mask_bce_0"] > 1 > losses["loss_mask_bce"]


def test_fewer_queries_than_categories(criterion, labels):
    classes, masks = perfect(labels, 3)
    losses = losses_of(criterion, [(classes[:, :1], masks[:, :1])], labels)
    assert all(abs(loss) < 1e-3 for loss in losses.values())


@pytest.mark.parametrize("seed", range(3))
def test_void_has_no_gradient(criterion, labels, seed):
    generator = torch.Generator().manual_seed(seed)
    void = torch.rand(2, 8, 8, generator=generator) < 0.4
    labels = labels.masked_fill(void.repeat_interleave(4, 1).repeat_interleave(4, 2), 255)
    classes = torch.randn(2, 6, NUM_CATEGORIES + 1, generator=generator)
    masks = torch.randn(2, 6, 8, 8, generator=generator).requires_grad_()
    sum(losses_of(criterion, [(classes, masks)], labels).values()).backward()
    hit = (masks.grad != 0).any(1)
    assert not hit[void].any() and hit[~void].all()
    # The losses do not depend on the masks there.
    other = masks.detach().where(~void[:, None], torch.tensor(30.0))
    before, after = (losses_of(criterion, [(classes, m)], labels) for m in (masks.detach(), other))
    torch.testing.assert_close(before, after)


@pytest.fixture
def train_vocabulary():
    """A data set whose vocabulary the model is built with."""
    name = "test_mask_queries_sem_seg"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(
        stuff_classes=["sky", "car"], stuff_synonyms=[["sky"], ["car", "motor car"]]
    )
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.pop(name)


@torch.no_grad()
def maps_of(model, image, names):
    return model([{"image": image, "vocabulary": Vocabulary(names)}])[0]["sem_seg"].maps


def test_the_exponents_of_seen_and_unseen_categories(make_head, make_image, train_vocabulary):
    image = make_image(64, 64)

    def maps(names, seen, unseen, clip_scale=50.0):
        opts = {
            f"{NODE}.SEEN_EXPONENT": seen,
            f"{NODE}.UNSEEN_EXPONENT": unseen,
            f"{NODE}.CLIP_SCALE": clip_scale,
            "DATASETS.TRAIN": (train_vocabulary,),
        }
        return maps_of(make_head(KIND, opts=opts), image, names)

    trained, others = ["sky", "motor car"], ["cat", "road"]
    # A category is seen if one of its synonyms is, and the other exponent has no effect on it.
    assert torch.equal(maps(trained, 0.0, 1.0), maps(trained, 0.0, 0.5))
    assert torch.equal(maps(others, 0.0, 1.0), maps(others, 0.5, 1.0))
    assert torch.equal(maps(["Sky", "MOTOR car"], 0.0, 1.0), maps(trained, 0.0, 1.0))
    # With exponent 0 the pooled CLIP features have no effect.
    torch.testing.assert_close(maps(others, 0.0, 0.0), maps(others, 0.0, 0.0, clip_scale=5.0))
    assert not torch.allclose(maps(others, 0.0, 0.8), maps(others, 0.0, 0.8, clip_scale=5.0))


def test_logits_are_log_probabilities_of_masks(make_head, make_image):
    """The probabilities of all categories sum to at most 1 for each query."""
    maps = maps_of(make_head(KIND), make_image(32, 48), ["sky", "car", "cat"])
    total = maps.exp().sum(0)
    assert (total > 0).all() and (total <= 6 + 1e-4).all()


@torch.no_grad()
def test_an_untrained_query_classifies_its_mask_as_clip(make_cfg, head_options, make_image):
    torch.manual_seed(0)
    model = build_model(make_cfg("dcp-tiny-cnn", head_options(KIND))).eval()
    vocabulary = Vocabulary(["sky", "car", "cat"])
    pixels = (make_image(64, 96) - model.pixel_mean)[None] / model.pixel_std
    _, _, predictions = model.segment(pixels, [(64, 96)], vocabulary, None)
    text = model.text_encoder.encode_vocabulary(vocabulary).embeddings
    unit = F.normalize(model.backbone(pixels)["dense"], dim=1)  # (1, D, 2, 3)
    for classes, masks in zip(predictions.class_logits, predictions.mask_logits):
        shares = F.avg_pool2d(masks.sigmoid(), 8)
        pooled = F.normalize(torch.einsum("bnhw,bdhw->bnd", shares, unit), dim=2)
        torch.testing.assert_close(classes[..., :-1], 20 * pooled @ text.T)


def test_pooling_under_masks_is_precise_under_autocast():
    """The sum over the positions of a large image overflows float16."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(1, 2, 24, 24, generator=generator)
    features = 5 + torch.rand(1, 3, 24, 24, generator=generator)
    expected = mask_pool(weights, features)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mask_pool(weights, features), expected)
