"""Random convolutions of the drawn images."""

import numpy as np
import pytest
import torch

from dcp_clip.emoji_scenes.pretraining.drawing import random_convolutions


def noise(count, seed=0):
    return 60 + 120 * torch.rand(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 8, 19])
@pytest.mark.parametrize("seed", range(3))
def test_random_convolutions_change_colours_but_not_their_statistics(count, seed):
    images = noise(count)
    changed = random_convolutions(np.random.default_rng(seed), images, 1.0)
    assert changed.shape == images.shape and changed.min() >= 0 and changed.max() <= 255
    assert not torch.equal(changed, images)
    old, new = images.mean((0, 2, 3)), changed.mean((0, 2, 3))
    torch.testing.assert_close(new, old, atol=3.0, rtol=0)
    # A blend of two images with the same standard deviation has at most this one.
    assert (changed.std((0, 2, 3)) <= 1.05 * images.std((0, 2, 3))).all()


def test_random_convolutions_depend_on_the_generator_only():
    first, again, other = (
        random_convolutions(np.random.default_rng(seed), noise(9), 0.5) for seed in (4, 4, 5)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_rate_is_the_fraction_of_changed_groups():
    images, rng = noise(8), np.random.default_rng(0)
    assert torch.equal(random_convolutions(rng, images, 0.0), images)
    changes = [
        (random_convolutions(rng, images, 0.25) != images).flatten(1).any(1) for _ in range(60)
    ]
    assert 0.15 < torch.cat(changes).float().mean() < 0.35


def test_an_image_of_one_colour_stays_finite():
    flat = torch.full((2, 3, 8, 8), 128.0)
    changed = random_convolutions(np.random.default_rng(0), flat, 1.0)
    assert changed.isfinite().all()
