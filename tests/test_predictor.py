"""Predictor: label maps of the size of the image, for any vocabulary."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dcp_clip import model_zoo
from dcp_clip import predictor as module
from dcp_clip.config import get_cfg
from dcp_clip.data.vocabularies import dataset_vocabulary, parse_vocabulary
from dcp_clip.predictor import Predictor
from dcp_clip.structures import SemSegProposals
from dcp_clip.utils.images.reading import ImageReadError
from dcp_clip.vocabulary import Vocabulary, VocabularyError

CONFIG = Path(__file__).parents[1] / "configs" / "camvid" / "dcp_clip_tiny.yaml"
CPU = ("MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "64")
CPU += ("MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR", "")


class FakeModel(torch.nn.Module):
    """Red, green and blue pixels are the last three categories of the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[dict] = []

    def set_vocabulary(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        (x,) = batched_inputs
        self.inputs.append(x)
        size = (x["height"], x["width"])
        logits = F.interpolate(x["image"][None].float(), size, mode="bilinear")[0]
        count = len(self.vocabulary)
        ids = torch.arange(max(0, count - 3), count)
        sem_seg = SemSegProposals(logits[: len(ids)], ids, count)
        # The proposals and the maps may have different orders.
        return [{"sem_seg": sem_seg, "proposals": {"ids": ids.flip(0), "scores": ids.flip(0) / 10}}]


def make_predictor(vocabulary="other; red; green; blue", **options) -> Predictor:
    cfg = get_cfg()
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 32, 128
    return Predictor(cfg, vocabulary, model=FakeModel(), **options)


def stripes(height: int, width: int) -> np.ndarray:
    """Half red, a quarter green, a quarter blue, from left to right."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2, 0] = 255
    image[:, width // 2 : 3 * width // 4, 1] = 255
    image[:, 3 * width // 4 :, 2] = 255
    return image


def test_labels_shares_and_scores():
    predictor = make_predictor()
    prediction = predictor(stripes(32, 64))
    assert prediction.label_map.shape == (32, 64)
    assert (prediction.label_map[:, :32] == 1).all()
    assert (prediction.label_map[:, 48:] == 3).all()
    assert sum(prediction.shares.values()) == pytest.approx(1)
    assert prediction.category_ids.tolist() == [1, 2, 3]
    np.testing.assert_allclose(prediction.scores, [0.1, 0.2, 0.3])
    assert prediction.milliseconds > 0
    largest = prediction.found[0]
    assert largest.share == pytest.approx(0.5)
    assert largest.score == pytest.approx(largest.id / 10)
    assert list(prediction.shares)[0] == largest.name


def test_files_and_arrays_have_the_same_label_map(tmp_path):
    image = stripes(40, 60)
    Image.fromarray(image).save(tmp_path / "ü.png")
    predictor = make_predictor()
    np.testing.assert_array_equal(
        predictor(tmp_path / "ü.png").label_map, predictor(image).label_map
    )
    assert predictor(str(tmp_path / "ü.png")).overlay(image).shape[2] == 3
    with pytest.raises(ImageReadError, match="absent.png"):
        predictor(tmp_path / "absent.png")


def test_label_map_of_a_reduced_file_has_the_original_size(tmp_path):
    image = stripes(600, 800)
    Image.fromarray(image).save(tmp_path / "a.png")
    label_map = make_predictor(max_input_pixels=30_000)(tmp_path / "a.png").label_map
    assert label_map.shape == (600, 800)
    assert label_map.dtype == np.uint8
    whole = make_predictor()(image).label_map
    assert (label_map != whole).mean() < 0.02


@pytest.mark.parametrize("size", [(1, 1), (1, 10_000), (10_000, 1), (3, 500)])
def test_any_size(size):
    prediction = make_predictor()(np.full((*size, 3), 90, np.uint8))
    assert prediction.label_map.shape == size


def test_min_size_0_does_not_resize():
    predictor = make_predictor()
    predictor.cfg.INPUT.MIN_SIZE_TEST = 0
    other = Predictor(predictor.cfg, "a; b; c", model=FakeModel())
    other(np.zeros((50, 70, 3), np.uint8))
    assert other.model.inputs[0]["image"].shape == (3, 50, 70)


def test_too_long_names_do_not_change_the_vocabulary(make_cfg, make_model):
    model = make_model()
    predictor = Predictor(make_cfg(), "sky; tree", model=model)
    with pytest.raises(VocabularyError, match="tokens in the prompt"):
        predictor.set_vocabulary(["word " * 200])
    assert list(predictor.vocabulary.display_names) == ["sky", "tree"]
    assert model.vocabulary == predictor.vocabulary


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cpu_is_used_without_a_cuda_device(make_cfg, caplog):
    cfg = make_cfg(opts={"MODEL.DEVICE": "cuda"})
    cfg.freeze()
    predictor = Predictor(cfg, "sky; tree", allow_random_weights=True)
    assert predictor.model.device.type == "cpu" and "no CUDA device" in caplog.text


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        None,
    ],
)
def test_invalid_arrays(image):
    with pytest.raises(ValueError, match="uint8 RGB array, got"):
        make_predictor()(image)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5,), (5, 6, 3), (5.5, 6), "56", 5, ()])
def test_invalid_sizes(size):
    predictor = make_predictor()
    for call in (predictor, predictor.set_image):
        with pytest.raises(ValueError, match=r"^size must be \(height, width\)"):
            call(stripes(8, 16), size=size)


def test_set_vocabulary():
    predictor = make_predictor()
    predictor.set_vocabulary(["rot", "grün", "blau"])
    assert list(predictor(stripes(8, 16)).shares) == ["rot", "grün", "blau"]
    with pytest.raises(VocabularyError):
        predictor.set_vocabulary(" ")
    assert list(predictor(stripes(8, 16)).shares) == ["rot", "grün", "blau"]
    assert predictor.model.vocabulary is predictor.vocabulary


def test_many_categories_and_equal_display_names():
    names = [f"category {i}" for i in range(19_998)] + ["mouse (animal)", "mouse (device)"]
    vocabulary = Vocabulary(names, display_names=names[:-2] + ["mouse", "mouse"])
    prediction = make_predictor(vocabulary)(stripes(8, 16))
    assert prediction.label_map.dtype == np.uint16
    assert prediction.shares == {
        "category 19997": 0.5,
        "mouse": 0.25,
        "mouse (19999)": 0.25,
    }


def test_missing_vocabulary():
    with pytest.raises(ValueError, match="DATASETS.TRAIN is empty"):
        make_predictor(vocabulary=None)


# ---- the tiny model with random weights


@pytest.fixture(scope="module")
def tiny() -> Predictor:
    torch.manual_seed(0)
    return Predictor.from_config_file(CONFIG, "", CPU, allow_random_weights=True)


def test_config_without_weights():
    with pytest.raises(ValueError, match="sets no weights. Set MODEL.WEIGHTS"):
        Predictor.from_config_file(CONFIG, weights="", opts=["MODEL.CLIP.PRETRAINED", ""])


@pytest.mark.parametrize(("name", "warned"), [("dcp_clip_tiny", True), ("training_free", False)])
def test_warns_about_untrained_decoders(caplog, name, warned):
    """CLIP's weights are sufficient only for the training-free mode."""
    config = CONFIG.parents[1] / "emoji_scenes" / f"{name}.yaml"
    Predictor.from_config_file(config, "", CPU, vocabulary="sky; tree")
    assert ("MODEL.WEIGHTS is empty" in caplog.text) == warned


def test_vocabulary_of_a_data_set(tiny):
    tiny.set_vocabulary("camvid_sem_seg_train")
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    prediction = tiny(image)
    assert prediction.label_map.shape == (90, 120)
    assert sum(prediction.shares.values()) == pytest.approx(1)
    assert set(prediction.shares) <= set(dataset_vocabulary("camvid_sem_seg_train").display_names)


@pytest.mark.parametrize("vocabulary", ["sky", "sky; tree; car, automobile", "空; дерево; Straße"])
def test_vocabularies_of_strings(tiny, vocabulary):
    tiny.set_vocabulary(vocabulary)
    prediction = tiny(np.zeros((1, 1, 3), np.uint8))
    assert len(prediction.found) == 1
    assert prediction.category_ids.max() < len(parse_vocabulary(vocabulary))


def test_weights_are_loaded(tiny, tmp_path):
    weights = tmp_path / "model.pth"
    torch.save({"model": tiny.model.state_dict()}, weights)
    loaded = Predictor.from_config_file(CONFIG, weights, CPU, vocabulary="sky; tree; car")
    tiny.set_vocabulary("sky; tree; car")
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    np.testing.assert_array_equal(loaded(image).label_map, tiny(image).label_map)


def test_shipped_weights_of_a_config(monkeypatch):
    seen = []

    def load(cfg, allow_random_weights):
        seen.append(cfg.MODEL.WEIGHTS)
        return FakeModel()

    monkeypatch.setattr(module, "load_model", load)
    camvid, emoji = "camvid/dcp_clip_tiny.yaml", "emoji_scenes/dcp_clip_tiny.yaml"
    for config, options in (
        (camvid, {}),
        (model_zoo.get_config_file(emoji), {"opts": ["INPUT.MIN_SIZE_TEST", "96"]}),
        (emoji, {"weights": "mine.pth"}),
        (emoji, {"opts": ["MODEL.WEIGHTS", "mine.pth"]}),
        (emoji, {"opts": ["MODEL.CLIP.PRETRAINED", "mine.pth"]}),
        (emoji, {"allow_random_weights": True}),
        ("camvid/fpn_tiny.yaml", {}),
    ):
        Predictor.from_config_file(config, **options)
    shipped = [model_zoo.get_weights(camvid), model_zoo.get_weights(emoji)]
    assert seen == [*shipped, "mine.pth", "mine.pth", "", "", ""]


def test_a_mirrored_view_of_a_large_array(make_cfg, make_model, monkeypatch):
    """For example image[..., ::-1], from BGR to RGB."""
    opts = {"INPUT.MIN_SIZE_TEST": 32, "MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE": 64}
    predictor = Predictor(make_cfg(opts=opts), "sky; tree", model=make_model(opts=opts))
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)[..., ::-1]
    monkeypatch.setattr(module, "LARGE_IMAGE_PIXELS", 1000)
    found = predictor(image)
    np.testing.assert_array_equal(found.label_map, predictor(image.copy()).label_map)


def test_a_shipped_file_of_weights_is_found_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "dcp_clip/weights/camvid_tiny.pth"
    shipped = Predictor.from_config_file("camvid/dcp_clip_tiny.yaml", vocabulary="sky")
    other = Predictor.from_config_file("camvid/dcp_clip_tiny.yaml", name, vocabulary="sky")
    assert (other.fingerprint, other.temperature) == (shipped.fingerprint, shipped.temperature)


def test_an_option_without_a_value_is_named():
    with pytest.raises(ValueError, match="'MODEL.DEVICE' has no value"):
        Predictor.from_config_file("camvid/dcp_clip_tiny.yaml", opts=["MODEL.DEVICE"])


def test_options_in_one_text_are_an_error():
    with pytest.raises(ValueError, match="opts is 'SEED 1', but must be a list"):
        Predictor.from_config_file("camvid/dcp_clip_tiny.yaml", opts="SEED 1")
