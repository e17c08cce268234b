"""Composition: exact masks, occlusion, and the same pixels on every machine."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcp_clip.emoji_scenes.scenes import SceneOptions, ThingChoice, compose_scene
from dcp_clip.emoji_scenes.textures import draw_stuff, drawable

BACKDROPS = ((900, "sky"), (901, "brick wall"))
GROUNDS = ((902, "grass"), (903, "sand"), (904, "tile floor"))
# No change of colours and edges.
PLAIN = SceneOptions(
    size=48,
    rotation=0,
    thing_gain=(1, 1),
    channel_gain=(1, 1),
    image_gain=(1, 1),
    shadow_rate=0,
    noise=0,
)


def square(i, color, alpha=255):
    sprite = np.empty((20, 20, 4), np.uint8)
    sprite[:] = (*color, alpha)
    return ThingChoice(i, "test", sprite)


COLORS = [(255, 0, 254), (254, 0, 255), (255, 1, 255), (253, 0, 253)]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_labels_are_exactly_the_pixels_of_the_things(seed):
    things = [square(10 + i, color) for i, color in enumerate(COLORS)]
    scene = compose_scene(np.random.default_rng(seed), things, BACKDROPS, GROUNDS, PLAIN)
    assert scene.image.shape == (48, 48, 3) and scene.labels.shape == (48, 48)
    for i, color in enumerate(COLORS):
        np.testing.assert_array_equal(scene.labels == 10 + i, (scene.image == color).all(2))
    # The description agrees with the label map, and the last thing is on top.
    assert {t["id"] for t in scene.things} | set(scene.stuff) >= set(np.unique(scene.labels))
    for number, thing in enumerate(scene.things):
        mask = scene.labels == thing["id"]
        x0, y0, x1, y1 = thing["box"]
        area = (x1 - x0) * (y1 - y0)
        assert thing["visible"] == mask.sum() == mask[y0:y1, x0:x1].sum()
        assert thing["visible"] >= PLAIN.thing_visible * area
        if number == len(scene.things) - 1:
            assert mask.sum() == area


def test_later_things_hide_earlier_ones():
    stack = replace(PLAIN, centre=(0.5, 0.5), thing_size=(0.5, 0.5), aspect=(1, 1))
    things = [square(10, COLORS[0]), square(11, COLORS[1])]
    rng = np.random.default_rng(0)
    scene = compose_scene(rng, things, BACKDROPS, GROUNDS, replace(stack, thing_visible=0.0))
    assert [(t["id"], t["visible"] > 0) for t in scene.things] == [(10, False), (11, True)]
    # A thing that would hide another is left out.
    scene = compose_scene(np.random.default_rng(0), things, BACKDROPS, GROUNDS, stack)
    assert [t["id"] for t in scene.things] == [10] and 11 not in scene.labels


@pytest.mark.parametrize(("alpha", "labelled"), [(127, False), (128, True)])
def test_half_transparent_pixels(alpha, labelled):
    things = [square(10, COLORS[0], alpha)]
    # A thing without a labelled pixel is left out.
    scene = compose_scene(np.random.default_rng(1), things, BACKDROPS, GROUNDS, PLAIN)
    assert (10 in scene.labels) == labelled == bool(scene.things)


def test_soft_edges_are_labelled_by_the_threshold():
    sprite = np.full((20, 20, 4), 255, np.uint8)
    sprite[:, :8, 3], sprite[:, 8:12, 3] = 100, 200
    options = replace(PLAIN, thing_size=(20 / 48, 20 / 48), aspect=(1, 1), far_scale=1)
    scene = compose_scene(
        np.random.default_rng(3), [ThingChoice(10, "test", sprite)], (), GROUNDS, options
    )
    # The resize is the identity, the mirror image may differ: 12 of 20 columns reach the threshold.
    assert (scene.labels == 10).sum() == 12 * 20


def test_stuff_is_where_its_texture_is():
    """A scene without things contains one ground, or a backdrop, a ground and a patch."""
    options = replace(PLAIN, backdrop_rate=0, patch_rate=0)
    scene = compose_scene(np.random.default_rng(0), (), BACKDROPS, GROUNDS, options)
    assert np.unique(scene.labels).tolist() == scene.stuff and len(scene.stuff) == 1
    options = replace(PLAIN, backdrop_rate=1, patch_rate=1)
    scene = compose_scene(np.random.default_rng(0), (), BACKDROPS, GROUNDS, options)
    assert sorted(scene.stuff) == np.unique(scene.labels).tolist() and len(scene.stuff) == 3
    assert scene.labels[0, 0] in (900, 901) and scene.labels[-1, 0] in (902, 903, 904)


@pytest.mark.parametrize("name", sorted(drawable()))
def test_textures(name):
    first, again, other = (draw_stuff(name, np.random.default_rng(s), 40) for s in (1, 1, 2))
    assert first.shape == (40, 40, 3) and first.dtype == np.float32
    assert 0 <= first.min() and first.max() <= 255 and first.std() > 1
    assert (first == again).all() and (first != other).any()
    assert draw_stuff(name, np.random.default_rng(1), 64).shape == (64, 64, 3)


def test_same_pixels_on_every_machine():
    """The digest was computed on x86-64 with AVX2."""
    y, x = np.mgrid[:30, :30]
    sprite = np.stack([8 * x, 8 * y, 4 * (x + y), 255 * (x * y % 7 < 5)], 2).astype(np.uint8)
    things = [ThingChoice(i, "test", sprite) for i in range(4)]
    names = sorted(drawable())
    digest = hashlib.sha256()
    for name in names:
        texture = draw_stuff(name, np.random.default_rng(0), 64)
        digest.update(texture.astype(np.uint8).tobytes())
    for seed in range(6):
        scene = compose_scene(
            np.random.default_rng(seed),
            things,
            [(100 + seed, names[seed])],
            [(110, names[2 * seed + 6]), (111, names[2 * seed + 7])],
            SceneOptions(size=64),
        )
        digest.update(scene.image.tobytes() + scene.labels.astype("<u2").tobytes())
    assert digest.hexdigest() == (
        "a997369738fac290d740d1b5e3c56a3a2b0fcff05e67bb71a5e91600bdf1455e"
    )
