"""Images with captions, drawn on the fly: the training data of the small CLIP.

The images show augmented sprites of the seen styles on textures. They are simpler than the scenes
of the benchmark and are drawn in batches, because pre-training needs a million of them. They have
no label maps: only the names of what was drawn are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.emoji_scenes.names import NameList
from dcp_clip.emoji_scenes.pretraining.drawing import PLAIN, STRONG, DrawingBank, Look, uniform
from dcp_clip.vocabulary.prompts import build_prompts

__all__ = ["PairBatch", "PairOptions", "PairSource"]


@dataclass(frozen=True)
class PairOptions:
    """Parameters of the images and captions. Lengths are fractions of the image size."""

    # Size of a drawing in an image of one thing, and in an image of several things.
    single_size: tuple[float, float] = (0.5, 1.05)
    scene_size: tuple[float, float] = (0.2, 0.6)
    # Minimum and maximum number of things in an image of several things.
    scene_things: tuple[int, int] = (1, 5)
    # Fraction of the images of one thing that show a texture only.
    texture_rate: float = 0.06
    # Largest amplitude of the noise in grey levels; factor of the brightness of the whole image.
    noise: float = 8.0
    image_gain: tuple[float, float] = (0.85, 1.12)
    # Probability that a caption uses a synonym; number of textures of each kind of stuff.
    synonym_rate: float = 0.25
    textures: int = 48


@dataclass
class PairBatch:
    """Images and captions.

    Attributes:
        images: (B, 3, R, R) float, RGB, 0 to 255.
        captions: T texts, each with the name of one thing or stuff.
        match: (B, T) int8: 1 if the caption describes the image, 0 if not, -1 if it names the
            texture behind a single thing; the loss ignores such pairs.
    """

    images: Tensor
    captions: list[str]
    match: Tensor


class PairSource:
    """Draws batches of images with captions. A batch depends on the seed and its number only."""

    def __init__(
        self,
        sprites: str | Path,
        styles: tuple[str, ...],
        names: NameList,
        templates: tuple[str, ...],
        *,
        seed: int = 0,
        options: PairOptions = PairOptions(),
    ):
        """
        Args:
            sprites: folder of the sprites.
            styles: the styles to draw things in; things without a drawing are left out.
            names: all things and stuff.
            templates: templates of captions, with ``{}`` for the name.
            seed: seed of the random generators.
            options: parameters of the images and captions.

        Raises:
            DatasetError: if the sprites are missing.
        """
        self.names, self.options, self.seed = names, options, seed
        self.templates = templates
        self._bank = DrawingBank(sprites, styles, names, options.textures)
        self.things = self._bank.things
        first = len(names.things)
        self._grounds = np.array(
            [first + i for i, s in enumerate(names.stuff) if s.place == "ground"]
        )
        self._backdrops = np.array(
            [first + i for i, s in enumerate(names.stuff) if s.place != "ground"]
        )
        self._stuff = np.arange(first, len(names.entries))

    def singles(self, number: int, size: int, count: int, *, look: Look = STRONG) -> PairBatch:
        """Draw a batch of images that show one thing on a texture.

        No thing occurs twice in a batch if there are enough of them, so that each image has exactly
        one correct caption.

        Args:
            number: number of the batch.
            size: R, size of the images in pixels.
            count: B, number of images.
            look: the augmentation of the drawings.
        """
        o, rng = self.options, np.random.default_rng([self.seed, 0, number])
        plain = min(round(o.texture_rate * count), len(self._stuff))
        repeats = -(-(count - plain) // len(self.things))
        order = np.concatenate([rng.permutation(self.things) for _ in range(repeats)])
        things = order[: count - plain]
        behind = np.concatenate(
            [
                rng.choice(self._stuff, len(things)),
                rng.choice(self._stuff, plain, replace=False).astype(np.int64),
            ]
        )
        canvas = self._bank.textures(rng, behind, size)
        sides = uniform(rng, *o.single_size, len(things))
        room = np.maximum(1 - 0.75 * sides, 0.05)
        centres = uniform(rng, -1, 1, (len(things), 2)) * room[:, None]
        drawn = self._bank.drawings(rng, things, sides, centres, size, look)
        canvas[: len(things)] = drawn[:, :3] + canvas[: len(things)] * (1 - drawn[:, 3:])
        present = np.zeros((count, len(self.names.entries)), np.int8)
        present[np.arange(count), behind] = -1
        present[np.arange(len(things)), things] = 1
        present[np.arange(len(things), count), behind[len(things) :]] = 1
        return self._finish(rng, canvas, present, extra=0)

    def scenes(
        self, number: int, size: int, count: int, *, look: Look = STRONG, extra: int = 160
    ) -> PairBatch:
        """Draw a batch of images that show several things on one or two kinds of stuff.

        Args:
            number: number of the batch.
            size: R, size of the images in pixels.
            count: B, number of images.
            look: the augmentation of the drawings.
            extra: largest number of captions that describe none of the images.
        """
        o, rng = self.options, np.random.default_rng([self.seed, 1, number])
        canvas, present = self._draw_stuff(rng, size, count)
        low, high = o.scene_things
        amount = rng.integers(low, high + 1, count)
        most = amount.max()  # can be less than `high` in a small batch
        owner = torch.full((count, 1, size, size), -1)  # the visible thing of each pixel
        dealt = np.stack([rng.choice(self.things, high, replace=False) for _ in range(count)])
        for k in range(most):
            rows = np.nonzero(amount > k)[0]
            things = dealt[rows, k]
            sides = uniform(rng, *o.scene_size, len(rows))
            centres = uniform(rng, -0.8, 0.8, (len(rows), 2))
            drawn = self._bank.drawings(rng, things, sides, centres, size, look)
            alpha = drawn[:, 3:]
            index = torch.from_numpy(rows)
            shade = F.avg_pool2d(alpha.roll(size // 32 + 1, 2), 3, 1, 1)
            strength = torch.from_numpy(rng.choice([0, 0.2, 0.35], (len(rows), 1, 1, 1)))
            ground = canvas[index] * (1 - strength.float() * shade)
            canvas[index] = drawn[:, :3] + ground * (1 - alpha)
            owner[index] = torch.where(alpha > 0.5, k, owner[index])
        # Things that later things cover almost completely have no caption.
        for k in range(most):
            seen = (owner == k).flatten(1).float().mean(1).numpy() > 0.008
            rows = np.nonzero(seen)[0]
            present[rows, dealt[rows, k]] = 1
        return self._finish(rng, canvas, present, extra)

    def probe(self, size: int, number: int = 0) -> tuple[Tensor, Tensor]:
        """Draw images for zero-shot classification: every thing once on a texture, not augmented.

        Args:
            size: R, size of the images in pixels.
            number: number of the batch; another number gives other images of the same things.

        Returns:
            (N, 3, R, R) float images, 0 to 255, and (N,) ids of the things.
        """
        rng = np.random.default_rng([self.seed, 2, number])
        canvas = self._bank.textures(rng, rng.choice(self._stuff, len(self.things)), size)
        sides = uniform(rng, 0.65, 0.95, len(self.things))
        centres = uniform(rng, -1, 1, (len(sides), 2)) * (1 - sides)[:, None]
        drawn = self._bank.drawings(rng, self.things, sides, centres, size, PLAIN)
        images = drawn[:, :3] + canvas * (1 - drawn[:, 3:])
        return images.clamp(0, 255), torch.from_numpy(self.things)

    def _draw_stuff(
        self, rng: np.random.Generator, size: int, count: int
    ) -> tuple[Tensor, np.ndarray]:
        """Draw the stuff of scenes: a ground, and in most images a backdrop above it.

        Returns:
            (B, 3, R, R) images, and (B, all names) int8, 1 for the names that are present.
        """
        present = np.zeros((count, len(self.names.entries)), np.int8)
        grounds, backdrops = rng.choice(self._grounds, count), rng.choice(self._backdrops, count)
        horizon = uniform(rng, -0.5, 0.4, count)
        horizon[rng.random(count) < 0.3] = -2.0  # ground alone
        tilt = uniform(rng, -0.15, 0.15, count)
        axis = torch.linspace(-1, 1, size)
        edge = torch.from_numpy(np.stack([horizon, tilt], 1)).float()
        above = axis[None, :, None] < edge[:, :1, None] + edge[:, 1:, None] * axis[None, None]
        canvas = torch.where(
            above[:, None],
            self._bank.textures(rng, backdrops, size),
            self._bank.textures(rng, grounds, size),
        )
        present[np.arange(count), grounds] = 1
        rows = np.nonzero(horizon > -1)[0]
        present[rows, backdrops[rows]] = 1
        return canvas, present

    def _finish(
        self, rng: np.random.Generator, canvas: Tensor, present: np.ndarray, extra: int
    ) -> PairBatch:
        """Add brightness and noise to images (B, 3, R, R), and captions."""
        o = self.options
        gain = uniform(rng, *o.image_gain, (len(canvas), 1, 1, 1))
        canvas = canvas * torch.from_numpy(gain).float()
        noise = torch.from_numpy(rng.random((len(canvas), 1, 1, 1)) * o.noise).float()
        grain = torch.from_numpy(rng.random(canvas.shape, dtype=np.float32) * 2 - 1)
        described = np.nonzero((present == 1).any(0))[0]
        if extra:
            others = np.setdiff1d(np.concatenate([self.things, self._stuff]), described)
            more = rng.choice(others, min(extra, len(others)), replace=False)
            described = np.concatenate([described, more])
        return PairBatch(
            (canvas + noise * grain).clamp(0, 255),
            [self._caption(rng, int(i)) for i in described],
            torch.from_numpy(present[:, described]),
        )

    def _caption(self, rng: np.random.Generator, entry: int) -> str:
        entry = self.names.entries[entry]
        name = entry.name
        if entry.synonyms and rng.random() < self.options.synonym_rate:
            name = entry.synonyms[int(rng.integers(len(entry.synonyms)))]
        if rng.random() < 0.5:
            return name
        template = self.templates[int(rng.integers(len(self.templates)))]
        return build_prompts([name], [template])[0]
