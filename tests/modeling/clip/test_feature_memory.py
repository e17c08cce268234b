"""The text features in memory: bounded, and shared by threads."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from dcp_clip.modeling.clip.feature_memory import FeatureMemory
from dcp_clip.structures import TextFeatures
from dcp_clip.vocabulary import Vocabulary


def _features(value):
    return TextFeatures(torch.full((1, 2), float(value)), torch.zeros(1, 1, dtype=torch.long))


def test_threads_get_the_features_of_their_key():
    memory = FeatureMemory(4)
    start = threading.Barrier(8)

    def use(seed):
        start.wait()
        for step in range(500):
            key = (seed + step) % 11
            features = memory.get_or_compute((key,), lambda key=key: _features(key))
            assert features.embeddings[0, 0] == key
            memory.put((key,), features)
            assert len(memory) <= 5  # one of another thread may just be added

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert len(memory) == 4


def test_features_are_computed_once():
    memory, computed, start = FeatureMemory(4), [], threading.Barrier(6)

    def use(_):
        start.wait()
        return memory.get_or_compute(("a",), lambda: computed.append(1) or _features(1))

    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(use, range(6)))
    assert len(computed) == 1 and all(features is found[0] for features in found)


def test_an_error_does_not_block_other_threads():
    memory = FeatureMemory(4)
    for _ in range(2):
        try:
            memory.get_or_compute(("a",), lambda: 1 / 0)
        except ZeroDivisionError:
            pass
    assert memory.get_or_compute(("a",), lambda: _features(2)).embeddings[0, 0] == 2


def test_copies_are_empty():
    memory = FeatureMemory(3)
    memory.put(("a",), _features(1))
    for other in (copy.deepcopy(memory), pickle.loads(pickle.dumps(memory))):
        assert len(other) == 0 and other.size == 3


def test_threads_that_encode_several_vocabularies(make_encoder):
    encoder = make_encoder()
    vocabularies = [Vocabulary([f"name {i}", "sky"]) for i in range(12)]  # more than memory keeps
    expected = [make_encoder(cache="").encode_vocabulary(v).embeddings for v in vocabularies]
    start = threading.Barrier(6)

    def encode(seed):
        start.wait()
        for step in range(24):
            i = (5 * seed + step) % 12
            found = encoder.encode_vocabulary(vocabularies[i]).embeddings
            assert torch.equal(found, expected[i])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(encode, range(6)))
    assert len(encoder._cache) <= 8
