"""PAMR, against its formula written with loops."""

import math

import torch

from dcp_clip.modeling.training_free.pamr import pixel_adaptive_refinement


def one_step(maps, image, dilations):
    (channels, height, width), refined = image.shape, torch.zeros_like(maps)
    steps = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    for y in range(height):
        for x in range(width):
            places = [
                (min(max(y + d * dy, 0), height - 1), min(max(x + d * dx, 0), width - 1))
                for d in dilations
                for dy, dx in steps
            ]
            neighbours = [p for i, p in enumerate(places) if i % 9 != 4]
            weights = []
            for j in neighbours:
                distances = []
                for c in range(channels):
                    values = [image[c][p].item() for p in places]
                    mean = sum(values) / len(values)
                    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
                    difference = abs(image[c, y, x].item() - image[c][j].item())
                    distances.append(difference / (0.1 * math.sqrt(variance) + 1e-8))
                weights.append(math.exp(-sum(distances) / channels))
            for weight, (a, b) in zip(weights, neighbours, strict=True):
                refined[:, y, x] += weight / sum(weights) * maps[:, a, b]
    return refined


def test_it_follows_the_formula():
    torch.manual_seed(0)
    maps, image = torch.randn(4, 6, 7), torch.randn(3, 6, 7)
    expected = one_step(one_step(maps, image, (1, 3)), image, (1, 3))
    found = pixel_adaptive_refinement(maps, image, 2, (1, 3))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_border_of_colour_stops_it():
    """Two halves of different colours: noise is averaged inside of a half only."""
    image = torch.zeros(3, 64, 64)
    image[:, :, 32:] = 1
    truth = (image[:1] > 0.5).float()
    noise = 0.5 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    refined = pixel_adaptive_refinement(truth + noise, image, 10)
    assert (refined - truth).abs().mean() < 0.25 * noise.abs().mean()
    assert ((refined > 0.5) == (truth > 0.5)).all()
    flat = pixel_adaptive_refinement(truth, torch.zeros_like(image), 1)  # equal colours: the mean
    assert flat.isfinite().all()
