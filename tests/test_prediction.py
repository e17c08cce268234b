"""Kept images, confidence, unknown pixels and negative names."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dcp_clip.prediction import make_prediction
from dcp_clip.predictor import Predictor
from dcp_clip.structures import SemSegLabels, SemSegProposals
from dcp_clip.utils.images.reading import ImageReadError
from dcp_clip.utils.label_maps import save_label_map
from dcp_clip.vocabulary import Vocabulary, VocabularyError

WINDOWS = {"MODEL.DCP_CLIP.SLIDING_WINDOW.SIZE": 64, "MODEL.DCP_CLIP.SLIDING_WINDOW.STRIDE": 32}
OPTS = {"MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "", "INPUT.MIN_SIZE_TEST": 96}
NAMES = "sky; tree; car; road; wall; cat"


@pytest.fixture(scope="module", params=["whole", "windows"])
def predictor(request, make_cfg, make_model):
    opts = OPTS | (WINDOWS if request.param == "windows" else {})
    model = make_model(opts=opts)
    model.temperature = 2.0
    return Predictor(make_cfg(opts=opts), NAMES, model=model)


@pytest.fixture(scope="module")
def image(make_image):
    return np.ascontiguousarray(make_image(96, 128).permute(1, 2, 0).numpy())


def count_encodings(model, monkeypatch):
    calls = []
    forward = model.backbone.forward
    monkeypatch.setattr(model.backbone, "forward", lambda x: calls.append(x.shape) or forward(x))
    return calls


def test_a_kept_image_gives_the_same_answers_without_the_encoder(predictor, image, monkeypatch):
    vocabularies = [NAMES, "sofa; cup; lamp", "one"]
    expected = [predictor(image, vocabulary=v, size=(50, 70)) for v in vocabularies]
    calls = count_encodings(predictor.model, monkeypatch)
    encoded = predictor.set_image(image, size=(50, 70))
    windows = len(calls)
    assert windows == len(encoded.features) == (1 if predictor.model.window is None else 1 + 2 * 3)
    assert encoded.nbytes > 3 * 4 * image.shape[0] * image.shape[1]
    np.testing.assert_array_equal(encoded.image, image)
    for vocabulary, wanted in zip(vocabularies, expected):
        for answer in (predictor.predict(vocabulary), predictor(encoded, vocabulary=vocabulary)):
            np.testing.assert_array_equal(answer.label_map, wanted.label_map)
            np.testing.assert_array_equal(answer.scores, wanted.scores)
            np.testing.assert_array_equal(answer.confidence, wanted.confidence)
    assert predictor(encoded, size=(9, 8)).label_map.shape == (9, 8)
    with pytest.raises(ValueError, match=r"got \(0, 5\)"):
        predictor(encoded, size=(0, 5))
    assert len(calls) == windows
    other = predictor.set_image(image[:64, :64])
    assert predictor.predict().label_map.shape == (64, 64) and predictor.image is other
    assert predictor(encoded).label_map.shape == (50, 70)


def test_without_an_image(predictor, make_cfg):
    fresh = Predictor(make_cfg(opts=OPTS), NAMES, model=predictor.model)
    with pytest.raises(ValueError, match="call set_image first"):
        fresh.predict()
    with pytest.raises(ImageReadError, match="absent.png"):
        fresh.set_image("absent.png")


def test_baselines_keep_images_too(make_cfg, make_model, image):
    opts = OPTS | {"MODEL.META_ARCHITECTURE": "PixelTextSegmentor"}
    predictor = Predictor(make_cfg(opts=opts), NAMES, model=make_model(opts=opts))
    predictor.set_image(image)
    np.testing.assert_array_equal(predictor.predict().label_map, predictor(image).label_map)


@settings(max_examples=25, deadline=None)
@given(
    k=st.integers(1, 5),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
)
def test_confidence_is_the_largest_probability(k, size, temperature):
    maps = torch.randn(k, 4, 5, generator=torch.Generator().manual_seed(k))
    sem_seg = SemSegProposals(maps, torch.arange(k), k, size, temperature=temperature)
    expected = (sem_seg.to_dense() / temperature).softmax(0).amax(0)
    np.testing.assert_allclose(sem_seg.confidence(), expected, atol=1e-3)
    assert sem_seg.confidence().dtype == np.float16 and sem_seg.to("cpu").temperature == temperature
    again = SemSegProposals(maps, torch.arange(k), k, size)
    np.testing.assert_array_equal(sem_seg.label_map(), again.label_map())
    sem_seg.maps.zero_()
    np.testing.assert_allclose(sem_seg.confidence(), expected, atol=1e-3)


def test_the_confidence_of_windows_can_be_left_out(predictor, image):
    wanted, answer = predictor(image), predictor(image, confidence=False)
    np.testing.assert_array_equal(answer.label_map, wanted.label_map)
    if predictor.model.window is None:  # it is computed when it is read
        np.testing.assert_array_equal(answer.confidence, wanted.confidence)
    else:
        with pytest.raises(ValueError, match="confidence=True"):
            answer.confidence  # noqa: B018
    unknown = predictor(image, unknown_below=0.5, confidence=False)
    np.testing.assert_array_equal(unknown.confidence, wanted.confidence)


def test_confidence_of_both_kinds(predictor, image):
    """tests/modeling/test_sliding_window.py compares windows with the whole image."""
    prediction = predictor(image)
    assert prediction.confidence.shape == prediction.label_map.shape
    # The probability of the best of 4 proposals is between 1/4 and 1.
    assert 0.25 <= prediction.confidence.min() < prediction.confidence.max() <= 1
    temperature = predictor.model.temperature
    try:
        predictor.model.temperature = 1e4
        flat = predictor(image)
    finally:
        predictor.model.temperature = temperature
    np.testing.assert_array_equal(flat.label_map, prediction.label_map)
    np.testing.assert_allclose(flat.confidence, 0.25, atol=1e-2)


def test_unknown_below(predictor, image):
    plain = predictor(image)
    below = float(np.quantile(plain.confidence.astype(np.float32), 0.3))
    prediction = predictor(image, unknown_below=below)
    unknown = plain.confidence < below
    assert 0.1 < unknown.mean() < 0.5 and prediction.unknown_id == 255
    np.testing.assert_array_equal(prediction.label_map, np.where(unknown, 255, plain.label_map))
    np.testing.assert_array_equal(prediction.confidence, plain.confidence)
    assert prediction.shares["unknown"] == pytest.approx(unknown.mean())
    assert sum(prediction.shares.values()) == pytest.approx(1)
    (entry,) = (c for c in prediction.found if c.name == "unknown")
    assert entry.id == 255 and entry.score is None
    stripes = (prediction.overlay(image) == 120).all(axis=2)
    assert stripes.mean() > 0.02 > (plain.overlay(image) == 120).all(axis=2).mean()
    assert predictor(image, unknown_below=1.0).found[0].name == "unknown"
    assert "unknown" not in plain.shares


def test_the_threshold_is_a_config_key(predictor, make_cfg, image):
    cfg = make_cfg(opts=OPTS | {"TEST.UNKNOWN_BELOW": 0.999})
    kept = Predictor(cfg, NAMES, model=predictor.model)
    assert kept(image).found[0].name == "unknown"
    assert "unknown" not in kept(image, unknown_below=0).shares
    assert Predictor(cfg, NAMES, model=predictor.model, unknown_below=0.2).unknown_below == 0.2
    for value in (-0.1, 40, float("nan")):
        with pytest.raises(ValueError, match="from 0 to 1"):
            predictor(image, unknown_below=value)
    with pytest.raises(ValueError, match="TEST.UNKNOWN_BELOW"):
        Predictor(make_cfg(opts={"TEST.UNKNOWN_BELOW": 2.0}), NAMES, model=predictor.model)


@pytest.mark.parametrize("count, dtype, value", [(255, "uint8", 255), (256, "uint16", 65535)])
def test_the_unknown_id_is_no_category(predictor, image, count, dtype, value, tmp_path):
    vocabulary = Vocabulary([f"name {i}" for i in range(count)])
    prediction = predictor(image, vocabulary=vocabulary, unknown_below=1.0)
    assert prediction.label_map.dtype == dtype and prediction.unknown_id == value
    assert (prediction.label_map[prediction.confidence < 1] == value).all()
    save_label_map(tmp_path / "a.png", prediction.label_map, vocabulary)
    assert predictor(image, vocabulary=vocabulary).label_map.dtype == "uint8"


def test_a_category_keeps_the_name_unknown(predictor, image):
    """Also where it has no pixel, or a smaller area than the unknown pixels."""
    name = predictor(image).found[0].name
    for vocabulary in (NAMES.replace(name, "unknown"), f"{NAMES}; unknown"):
        prediction = predictor(image, vocabulary=vocabulary, unknown_below=0.9)
        labels = prediction.label_map
        shares = [(labels == i).mean() for i in (vocabulary.split("; ").index("unknown"), 255)]
        names = ("unknown", "unknown (255)")
        assert shares[1] > 0
        assert [prediction.shares.get(n, 0) for n in names] == pytest.approx(shares)


def test_negative_names_are_written_as_unknown(predictor, image):
    plain = predictor(image)
    first = plain.found[0]
    names = [f"!{n}" if i == first.id else n for i, n in enumerate(NAMES.split("; "))]
    prediction = predictor(image, vocabulary="; ".join(names))
    negative = plain.label_map == first.id
    np.testing.assert_array_equal(prediction.label_map, np.where(negative, 255, plain.label_map))
    assert prediction.shares["unknown"] == pytest.approx(first.share)
    assert first.name not in prediction.shares
    assert prediction.vocabulary.display_names == plain.vocabulary.display_names


def test_marks_of_negative_names():
    vocabulary = Vocabulary.from_string("!hand, !palm; cup; ！ table, desk")
    assert vocabulary.synonyms == (("hand", "palm"), ("cup",), ("table", "desk"))
    assert vocabulary.negatives == (0, 2)
    plain = Vocabulary.from_string("hand, palm; cup; table, desk")
    assert plain.negatives == () and plain != vocabulary
    assert plain.fingerprint() == vocabulary.fingerprint()
    for text, message in [
        ("!a; !b", "All categories"),
        ("a, !b; c", "first name 'a'"),
        ("!; c", "empty name"),
        ("!a; a", "repeated"),
    ]:
        with pytest.raises(VocabularyError, match=message):
            Vocabulary.from_string(text)


def test_too_many_names_for_an_unknown_id():
    vocabulary = Vocabulary([f"name {i}" for i in range(65536)])
    sem_seg = SemSegLabels(np.zeros((2, 2), np.uint16), torch.tensor([0]), 65536, np.ones((2, 2)))
    with pytest.raises(ValueError, match="at most 65535"):
        make_prediction(sem_seg, {0: 0.0}, vocabulary, 0.5)
    assert make_prediction(sem_seg, {0: 0.0}, vocabulary, 0).shares == {"name 0": 1.0}


def test_overlay_reads_the_file_of_the_image(predictor, image, tmp_path):
    prediction = predictor(image)
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = prediction.overlay(image)
    np.testing.assert_array_equal(prediction.overlay(tmp_path / "a.png"), expected)
    with pytest.raises(ValueError, match="x.jpg: a label map is written as a PNG"):
        prediction.save(tmp_path / "x.jpg")
    assert not (tmp_path / "x.jpg").exists()
    with pytest.raises(ValueError, match=r"got Image\. For an image of Pillow give numpy"):
        predictor(Image.fromarray(image))


def test_a_kept_image_does_not_change_with_the_array_of_the_program(predictor, image):
    buffer = image.copy()
    encoded = predictor.set_image(buffer)
    expected = predictor(encoded).label_map.copy()
    buffer[:] = 255 - image
    np.testing.assert_array_equal(predictor(encoded).label_map, expected)
    np.testing.assert_array_equal(encoded.image, image)


def test_an_image_of_another_model_is_an_error(predictor, image, make_cfg, make_model):
    encoded = predictor.set_image(image)
    other = Predictor(make_cfg(opts=OPTS), NAMES, model=make_model(opts=OPTS))
    with pytest.raises(ValueError, match="Another model encoded this image"):
        other(encoded)
    same = Predictor(predictor.cfg, NAMES, model=predictor.model)
    np.testing.assert_array_equal(same(encoded).label_map, predictor(encoded).label_map)
    assert len({encoded, predictor(encoded), predictor(encoded)}) == 3 and encoded == encoded


def test_formats_without_confidence(predictor, image):
    prediction = predictor(image)
    expected = prediction.to_coco()
    labels = SemSegLabels(prediction.label_map, torch.from_numpy(prediction.category_ids), 6, None)
    unsure = dataclasses.replace(prediction, sem_seg=labels).to_coco()
    assert [a["area"] for a in unsure["annotations"]] == [
        a["area"] for a in expected["annotations"]
    ]
    assert not any("score" in annotation for annotation in unsure["annotations"])


@pytest.mark.parametrize("number", [0, -5, 10.5, "9"])
def test_wrong_limits_of_pixels(predictor, number):
    with pytest.raises(ValueError, match="max_input_pixels must be a whole number from 1 on"):
        Predictor(predictor.cfg, NAMES, model=predictor.model, max_input_pixels=number)


@pytest.mark.parametrize("below", ["0.4", np.array([0.4]), 2])
def test_thresholds_that_are_no_probability(predictor, image, below):
    with pytest.raises(ValueError, match="it is a probability from 0 to 1"):
        predictor(image, unknown_below=below)
