"""Images with captions: their labels, and determinism."""

import numpy as np
import pytest
import torch

from dcp_clip.emoji_scenes.art import SEEN_ART
from dcp_clip.emoji_scenes.pretraining.pairs import PairOptions, PairSource

STYLES = tuple(art.style for art in SEEN_ART)


@pytest.fixture(scope="module")
def source(sprite_folder, names):
    return PairSource(
        sprite_folder, STYLES, names, ("a {}",), options=PairOptions(textures=2, synonym_rate=0.5)
    )


@pytest.fixture(scope="module")
def meaning(names):
    """Name or synonym to id."""
    return {n: i for i, e in enumerate(names.entries) for n in (e.name, *e.synonyms)}


def ids_of(batch, meaning):
    return np.array([meaning[c.removeprefix("a ")] for c in batch.captions])


def test_images_of_one_thing_have_one_caption_each(source, names, meaning):
    batch = source.singles(0, 32, 40)
    assert batch.images.shape == (40, 3, 32, 32)
    assert batch.images.min() >= 0 and batch.images.max() <= 255
    assert ((batch.match == 1).sum(1) == 1).all() and ((batch.match == 1).sum(0) == 1).all()
    ids = ids_of(batch, meaning)
    assert len(set(ids)) == len(ids) == 40  # no caption matches two images
    # The texture behind a thing is ignored.
    ignored = (batch.match == -1).any(0).numpy()
    assert (ids[ignored] >= len(names.things)).all()


def test_captions_of_scenes_name_things_stuff_and_absent_names(source, names, meaning):
    batch = source.scenes(3, 48, 12, extra=20)
    ids = ids_of(batch, meaning)
    described = (batch.match == 1).numpy()
    stuff = ids >= len(names.things)
    assert (1 <= described[:, stuff].sum(1)).all() and (described[:, stuff].sum(1) <= 2).all()
    assert (described[:, ~stuff].sum(1) <= source.options.scene_things[1]).all()
    assert described[:, ~stuff].any()
    assert (~described.any(0)).sum() == 20


def test_small_batches_of_scenes(source):
    for number in range(20):  # about half of them have no image with the maximum number of things
        batch = source.scenes(number, 32, 2)
        assert batch.images.shape == (2, 3, 32, 32) and batch.images.isfinite().all()


def test_batches_depend_on_their_number_only(source):
    for draw in (lambda i: source.singles(i, 32, 8), lambda i: source.scenes(i, 32, 8)):
        first, again, other = draw(5), draw(5), draw(6)
        assert torch.equal(first.images, again.images) and first.captions == again.captions
        assert not torch.equal(first.images, other.images)


def test_views_of_the_same_thing_are_similar(sprite_folder, names):
    source = PairSource(sprite_folder, STYLES, names, ("a {}",))
    images, ids = source.probe(48)
    assert len(images) == len(ids) == len(source.things)
    assert len(set(ids.tolist())) == len(ids)
    # The colours at the centre differ less between two views of a thing than between things.
    centre = images[:, :, 18:30, 18:30].flatten(1)
    again = source.probe(48, 1)[0][:, :, 18:30, 18:30].flatten(1)
    distance = torch.cdist(centre, again)
    same = distance.diagonal().mean()
    assert same < distance.mean()
