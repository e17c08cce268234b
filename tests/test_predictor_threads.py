"""A predictor that several threads share: every answer belongs to the vocabulary it names."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dcp_clip.predictor import Predictor
from dcp_clip.vocabulary import Vocabulary, VocabularyError

# Of different lengths, so that an answer with the ids of another vocabulary is seen.
VOCABULARIES = [
    Vocabulary([f"name {i} {j}" for j in range(2 + i)], colors=[(i, j, 0) for j in range(2 + i)])
    for i in range(4)
]


@pytest.fixture(scope="module")
def predictor(make_cfg, make_model):
    opts = {"MODEL.DCP_CLIP.VOCABULARY.CACHE_DIR": "", "INPUT.MIN_SIZE_TEST": 64}
    return Predictor(make_cfg(opts=opts), VOCABULARIES[0], model=make_model(opts=opts))


@pytest.fixture(scope="module")
def image(make_image):
    return np.ascontiguousarray(make_image(64, 64).permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def expected(predictor, image):
    return [predictor(image, vocabulary=vocabulary) for vocabulary in VOCABULARIES]


def _assert_same(prediction, expected):
    assert prediction.vocabulary == expected.vocabulary
    np.testing.assert_array_equal(prediction.label_map, expected.label_map)
    np.testing.assert_array_equal(prediction.category_ids, expected.category_ids)
    np.testing.assert_array_equal(prediction.scores, expected.scores)
    assert prediction.found == expected.found


def test_the_vocabularies_have_different_answers(expected):
    assert len({tuple(prediction.shares) for prediction in expected}) == len(expected)


def test_a_call_with_a_vocabulary_leaves_the_current_one(predictor, image, expected):
    predictor.set_vocabulary(VOCABULARIES[1])
    _assert_same(predictor(image, vocabulary=VOCABULARIES[3]), expected[3])
    _assert_same(predictor(image), expected[1])
    text = "; ".join(VOCABULARIES[2].display_names)
    assert predictor(image, vocabulary=text).vocabulary.synonyms == VOCABULARIES[2].synonyms
    with pytest.raises(VocabularyError, match="tokens in the prompt"):
        predictor(image, vocabulary=["word " * 200])
    _assert_same(predictor(image), expected[1])


def _run(calls, use, threads=6):
    """Call `use` with 0, 1, ... in several threads that begin at the same time."""
    start = threading.Barrier(threads)

    def work(thread):
        start.wait()
        for i in range(thread, calls, threads):
            use(i)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, range(threads)))


def test_threads_with_a_vocabulary_for_each_call(predictor, image, expected):
    def use(i):
        vocabulary = i % len(VOCABULARIES)
        prediction = predictor(image, vocabulary=VOCABULARIES[vocabulary])
        _assert_same(prediction, expected[vocabulary])

    _run(24, use)


def test_threads_that_set_vocabularies(predictor, image, expected):
    """Which vocabulary is the current one depends on the threads. The answer does not mix two."""
    answers = {len(prediction.vocabulary): prediction for prediction in expected}

    def use(i):
        predictor.set_vocabulary(VOCABULARIES[i % len(VOCABULARIES)])
        prediction = predictor(image)
        _assert_same(prediction, answers[len(prediction.vocabulary)])

    _run(24, use)


def test_a_vocabulary_that_is_set_during_a_call(predictor, image, expected, monkeypatch):
    """Without threads: the model runs after another vocabulary was set."""
    predictor.set_vocabulary(VOCABULARIES[1])
    resize = predictor._resizing.model_input

    def set_another(image):
        predictor.set_vocabulary(VOCABULARIES[3])
        return resize(image)

    monkeypatch.setattr(predictor._resizing, "model_input", set_another)
    _assert_same(predictor(image), expected[1])


def test_two_predictors_share_a_model(predictor, make_cfg, image, expected):
    cfg = make_cfg(opts={"INPUT.MIN_SIZE_TEST": 64})
    other = Predictor(cfg, VOCABULARIES[2], model=predictor.model)
    predictor.set_vocabulary(VOCABULARIES[1])
    _assert_same(other(image), expected[2])
    _assert_same(predictor(image), expected[1])


def test_threads_with_kept_images(predictor, make_image):
    images = [np.ascontiguousarray(make_image(64, 64, seed=i).permute(1, 2, 0)) for i in range(3)]
    answers = [[predictor(image, vocabulary=v) for v in VOCABULARIES] for image in images]

    def use(i):
        encoded = predictor.set_image(images[i % 3])
        prediction = predictor(encoded, vocabulary=VOCABULARIES[i % 4])
        _assert_same(prediction, answers[i % 3][i % 4])

    _run(24, use)
