"""Subsets: their names, and that scenes differ and are reproducible."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from dcp_clip.emoji_scenes.prepare import scene_source
from dcp_clip.emoji_scenes.subsets import SCENE_COUNTS, SPLITS, get_subset, subset_names

ALL = [name for split in SPLITS for name in subset_names(split)]


def test_vocabulary_sizes_and_labels(names):
    sizes = {name: len(get_subset(names, name).vocabulary) for name in SCENE_COUNTS}
    assert sizes.pop("base_train") == 166
    assert sizes.pop("all_val") == sizes.pop("all_test") == 611
    assert set(sizes.values()) == {174}
    assert get_subset(names, "base_test").label_type == np.uint8
    assert get_subset(names, "all_test").label_type == np.uint16
    assert get_subset(names, "all_test").ignore_label == 65535
    for name in ALL:
        subset = get_subset(names, name)
        used = {i for i, *_ in (*subset.things, *subset.stuff)}
        assert used == set(subset.vocabulary)
        assert name.endswith(("train", "val")) or subset.scenes >= 1000


@pytest.mark.parametrize("split", SPLITS)
def test_training_sees_base_names_in_seen_styles_only(names, split):
    prefix = f"split{split}_" if split else ""
    train = get_subset(names, f"{prefix}base_train")
    assert train.styles == "seen"
    assert {i for i, *_ in train.stuff} == set(names.stuff_ids("base"))
    trained = {i for i, _ in train.things}
    for part in ("val", "test"):
        assert {i for i, _ in get_subset(names, f"{prefix}base_{part}").things} == trained
        for kind, styles in (("unseen", "seen"), ("unseen_style", "unseen")):
            subset = get_subset(names, f"{prefix}{kind}_{part}")
            assert not trained & {i for i, _ in subset.things} and subset.styles == styles
        assert get_subset(names, f"{prefix}all_{part}").styles == "unseen"


def test_unknown_subset(names):
    with pytest.raises(KeyError):
        get_subset(names, "base_holdout")


def test_scenes_of_different_subsets_and_indices_differ(settings):
    scenes = [
        source(index).labels.tobytes() + source(index).image.tobytes()
        for source in (scene_source(settings, name) for name in ALL)
        for index in range(2)
    ]
    assert len(set(scenes)) == len(scenes) == 36


def test_a_scene_does_not_depend_on_those_before(settings):
    source = scene_source(settings, "unseen_test")
    fifth = [source(i) for i in range(6)][5]
    again = scene_source(settings, "unseen_test")(5)
    assert (fifth.image == again.image).all() and (fifth.labels == again.labels).all()
    assert fifth.things == again.things
    other_seed = scene_source(replace(settings, seed=1), "unseen_test")(5)
    assert (fifth.image != other_seed.image).any()


def test_things_occur_equally_often_in_the_styles_of_the_subset(settings, names):
    source = scene_source(settings, "unseen_style_test")
    things = [thing for i in range(100) for thing in source(i).things]
    assert {thing["style"] for thing in things} == {"noto"}
    times = Counter(thing["id"] for thing in things)
    # 100 scenes deal four decks of 150 names and draw about two thirds of them.
    assert max(times.values()) <= 4 and len(times) > 140
    unseen = names.thing_ids("unseen")
    assert all(source.subset.vocabulary[i] in unseen for i in times)
    seen = {t["style"] for i in range(40) for t in scene_source(settings, "base_test")(i).things}
    assert "noto" not in seen and len(seen) == 7


@pytest.mark.parametrize("size", [128, 256])
def test_sizes(settings, size):
    scene = scene_source(replace(settings, size=size), "base_train")(0)
    assert scene.image.shape == (size, size, 3) and scene.labels.shape == (size, size)
