"""The configs of training_free: no learned weights, the contracts, and images of known labels."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcp_clip.config import setup_cfg
from dcp_clip.modeling.clip.loading import load_clip
from dcp_clip.structures import TextFeatures
from dcp_clip.vocabulary import Vocabulary

CONFIGS = Path(__file__).parents[2] / "configs" / "training_free"
FILES = sorted(path for path in CONFIGS.glob("*.yaml") if path.name != "Base.yaml")
SIZES = st.sampled_from([(33, 47), (64, 64), (1, 1), (5, 200), (97, 20)])
FEW = settings(max_examples=5, deadline=None, phases=[Phase.reuse, Phase.generate])
STAGES = "MODEL.DCP_CLIP."
# A small tower for each config, with windows of two patches if the config has windows.
MINIATURES = {
    "vit_b16": ("test-vit-16", 32, 16),
    "vit_l14_336": ("test-vit-14-quickgelu", 28, 14),
    "convnext_b": ("test-convnext", 0, 112),
    "convnext_l": ("test-convnext-mlp", 0, 112),
}


@pytest.fixture(scope="module")
def models(tiny_clips, randomize):
    """``models(stem, {key: value})``: the model of a config with a small tower, built once."""
    built = {}

    def get(stem, opts=None):
        key = (stem, str(opts))
        if key not in built:
            name, window, stride = MINIATURES[stem]
            options = {
                "MODEL.CLIP.NAME": name,
                "MODEL.CLIP.PRETRAINED": "",
                "MODEL.CLIP.ENCODER_WINDOW": window,
                "MODEL.CLIP.ENCODER_WINDOW_STRIDE": stride,
                "MODEL.DEVICE": "cpu",
                STAGES + "VOCABULARY.TEMPLATES": "single",
                STAGES + "VOCABULARY.CACHE_DIR": "",
                STAGES + "PROPOSAL.NUM_PROPOSALS": 4,
            } | (opts or {})
            flat = [x for pair in options.items() for x in pair]
            torch.manual_seed(0)
            built[key] = randomize(build_model(setup_cfg(CONFIGS / f"{stem}.yaml", flat))).eval()
        return built[key]

    return get


STEMS = list(MINIATURES)


def test_every_config_is_tested():
    for path in FILES:
        if path.stem.startswith(("siglip2", "pe_core", "mobileclip2")):
            continue  # in tests/modeling/clip/families/test_encoder_configs.py
        cfg = setup_cfg(path)
        name, window, _ = MINIATURES[path.stem]
        assert bool(cfg.MODEL.CLIP.ENCODER_WINDOW) == bool(window)
        assert cfg.MODEL.CLIP.PRETRAINED and not cfg.MODEL.WEIGHTS


@pytest.mark.parametrize("stem", STEMS)
def test_the_only_weights_are_those_of_clip_and_none_trains(models, make_cfg, stem):
    model = models(stem)
    assert not [name for name, p in model.named_parameters() if p.requires_grad]
    clip = load_clip(make_cfg(MINIATURES[stem][0])).state_dict()
    names = {
        name.removeprefix("backbone.").removeprefix("text_encoder."): value
        for name, value in model.state_dict().items()
    }
    assert names.keys() <= clip.keys()
    assert all(value.shape == clip[name].shape for name, value in names.items())
    assert clip.keys() - names.keys() <= {"logit_scale", "logit_bias"}


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (70, 3), (33, 47)])
def test_7_any_image_size(models, make_image, stem, size, twelve_categories, run):
    _, _, sem_seg = run(models(stem), make_image(*size), twelve_categories)
    assert sem_seg.image_size == size


@pytest.mark.parametrize("stem", STEMS)
@FEW
@given(data=st.data())
def test_2_3_4_the_vocabulary(models, make_image, stem, data, twelve_categories, run, assert_same):
    """Order, additional names, and enough proposals for all names."""
    model = models(stem)
    image = make_image(*data.draw(SIZES), seed=data.draw(st.integers(0, 5)))
    everything = run(model, image, twelve_categories)
    assert_same(everything, run(model, image, data.draw(st.permutations(twelve_categories))))
    proposed = [name for name in twelve_categories if name[0] in everything[0]]
    assert len(proposed) == 4
    assert_same(everything, run(model, image, proposed), exact=True)
    limited = models(stem, {STAGES + "PROPOSAL.NUM_PROPOSALS": 12})
    unlimited = models(stem, {STAGES + "PROPOSAL.NAME": "AllCategories"})
    assert_same(
        run(limited, image, twelve_categories), run(unlimited, image, twelve_categories), exact=True
    )


@pytest.mark.parametrize("stem", STEMS)
def test_7_any_vocabulary_size(models, make_image, stem, run):
    for count in (1, 2, 300):
        names = [f"thing {i}" for i in range(count)]
        assert len(run(models(stem), make_image(40, 50), names)[0]) == min(count, 4)


@pytest.mark.parametrize("stem", STEMS)
def test_5_images_of_a_batch_do_not_influence_each_other(
    models, make_image, stem, twelve_categories
):
    model, vocabulary = models(stem), Vocabulary(twelve_categories)
    sizes = [(33, 47), (64, 80), (33, 47)]
    inputs = [
        {"image": make_image(*size, seed=i), "vocabulary": vocabulary}
        for i, size in enumerate(sizes)
    ]
    with torch.no_grad():
        together, alone = model(inputs), [model([x])[0] for x in inputs]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["proposals"]["ids"], b["proposals"]["ids"])
        torch.testing.assert_close(a["sem_seg"].logits, b["sem_seg"].logits, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("stem", STEMS)
def test_each_part_changes_the_logits(models, make_image, stem, twelve_categories, run):
    image = make_image(60, 90)
    logits = run(models(stem), image, twelve_categories[:4])[2].logits
    is_vit = stem.startswith("vit")
    refinement = "MaskPooledRefinement" if is_vit else "NoRefinement"
    switches = [("FINE_DECODER", "BilinearDecoder"), ("CLASS_REFINEMENT", refinement)]
    opts = [{f"{STAGES}{node}.NAME": name} for node, name in switches]
    if is_vit:
        opts += [{"MODEL.CLIP.ENCODER_WINDOW": 0}, {"MODEL.CLIP.DENSE": "maskclip"}]
    for change in opts:
        other = run(models(stem, change), image, twelve_categories[:4])[2].logits
        assert (logits - other).abs().max() > 1e-2, change


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


# ---- images of known labels


class ColourBackbone(torch.nn.Module):
    """Replaces CLIP's image tower: the colour of a pixel selects the text feature of a category.

    ``dense`` is the mean over cells of 16 pixels, so smaller details are lost, as in CLIP.
    """

    size_divisibility = 16

    def __init__(self, colours, text):
        super().__init__()
        self.colours, self.text = colours, text

    def forward(self, images):
        distance = (images[:, None] - self.colours[:, :, None, None]).square().sum(2)
        pixels = self.text[distance.argmin(1)].permute(0, 3, 1, 2)
        dense = F.avg_pool2d(pixels, 16)
        pooled = dense.mean((2, 3))
        return {"dense": dense, "pooled": pooled, "image": images, "res2": F.avg_pool2d(images, 4)}


class FixedTextEncoder(torch.nn.Module):
    """Replaces the text tower: one vector for each name, with cosine similarities of 0.7."""

    def encode_vocabulary(self, vocabulary):
        features = []
        for (name,) in vocabulary.synonyms:
            own = unit(24, seed=sum(map(ord, name)))
            features.append(F.normalize(0.65 * own + unit(24), dim=0))
        return TextFeatures(torch.stack(features), torch.arange(len(vocabulary))[:, None])


def paint(model, labels, colours):
    """An image (3, H, W) whose normalised pixels are the colours of the labels."""
    return colours[labels].permute(2, 0, 1) * model.pixel_std + model.pixel_mean


COLOURS = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1, -1, 0], [-1, 1, 0.5]])
NAMES = ["sky", "tree", "car", "road"]


@pytest.fixture
def known_answer(models):
    def make(opts=None, others=()):
        options = {STAGES + "PROPOSAL.NUM_PROPOSALS": 8} | (opts or {})
        vocabulary = Vocabulary([*NAMES, *others])
        model = models("vit_b16", options)
        undo.append((model, model.backbone, model.text_encoder))
        model.text_encoder = FixedTextEncoder()
        text = model.text_encoder.encode_vocabulary(vocabulary).embeddings[: len(NAMES)]
        model.backbone = ColourBackbone(COLOURS, text)
        model.set_vocabulary(vocabulary)
        return model

    undo = []
    yield make
    for model, backbone, text_encoder in reversed(undo):
        model.backbone, model.text_encoder = backbone, text_encoder


@torch.no_grad()
@pytest.mark.parametrize("others", [(), [f"thing {i}" for i in range(200)]])
def test_regions_of_whole_cells_are_labelled_exactly(known_answer, others):
    model = known_answer(others=others)
    cells = torch.tensor([[0, 0, 0, 1, 1], [0, 2, 2, 1, 1], [3, 3, 2, 2, 1], [3, 3, 3, 3, 1]])
    labels = cells.repeat_interleave(32, 0).repeat_interleave(32, 1)
    image = paint(model, labels, COLOURS)
    output = model([{"image": image}, {"image": image, "height": 32, "width": 40}])
    full, fourth = (x["sem_seg"].argmax() for x in output)
    assert torch.equal(fourth, labels[::4, ::4])
    # Upsampling from stride 4 is bilinear, which changes one pixel at each corner.
    wrong = (full != labels).nonzero()
    assert len(wrong) < 10
    for y, x in wrong.tolist():
        assert len(labels[y - 1 : y + 2, x - 1 : x + 2].unique()) > 1


@torch.no_grad()
def test_borders_inside_of_cells_are_recovered_from_the_image(
    known_answer, make_scene, boundary_iou
):
    """Boundary IoU of the whole model, with and without the guidance of the image."""
    guided, bilinear = (
        known_answer(),
        known_answer({STAGES + "FINE_DECODER.NAME": "BilinearDecoder"}),
    )
    scores = []
    for seed in range(3):
        labels = make_scene(seed)[0]
        image = paint(guided, labels, COLOURS)
        masks = [m([{"image": image}])[0]["sem_seg"].argmax() for m in (guided, bilinear)]
        scores.append([boundary_iou(mask, labels) for mask in masks])
    assert all(a > b + 0.05 for a, b in scores), scores
