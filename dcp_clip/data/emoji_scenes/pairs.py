"""Images with captions, drawn on the fly: what the tiny CLIP is pre-trained on.

The pictures are simpler than the benchmark's scenes and drawn a batch at a time with tensors, as a
pre-training needs a million of them: sprites of the seen styles, warped and tinted, over textures.
No label map is made; all that a picture comes with is the names of what was drawn.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.data.emoji_scenes.names import NameList
from dcp_clip.data.emoji_scenes.sprites import load_sprites
from dcp_clip.data.emoji_scenes.textures import draw_stuff

__all__ = ["MILD", "PairBatch", "PairOptions", "PairSource"]

# Sides of the textures in pixels; sprites are kept at their own size and at half of it.
_TEXTURE_SIZES = (128, 64)
# Rows of YIQ: luma, and the two axes of colour.
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True)
class PairOptions:
    """How the pictures vary. Lengths are shares of a picture's side."""

    # Side of a drawing in a picture of one thing, and in one of several.
    single_size: tuple[float, float] = (0.5, 1.05)
    scene_size: tuple[float, float] = (0.2, 0.6)
    # Things in a picture of several, both included.
    scene_things: tuple[int, int] = (1, 5)
    # Share of the pictures of one thing that show a texture alone.
    texture_rate: float = 0.06
    # Degrees to both sides; height against width; bending of the outline.
    rotation: float = 25.0
    aspect: tuple[float, float] = (0.8, 1.25)
    bend: float = 0.1
    # A drawing's brightness, the gain of each channel, its saturation, and the turn of its hues in
    # radians to both sides.
    gain: tuple[float, float] = (0.7, 1.25)
    channel_gain: tuple[float, float] = (0.9, 1.1)
    saturation: tuple[float, float] = (0.5, 1.4)
    hue: float = 0.25
    # Grey levels of noise, at most; and brightness of the whole picture.
    noise: float = 8.0
    image_gain: tuple[float, float] = (0.85, 1.12)
    # How often a synonym stands for the name, and textures drawn of each kind of stuff.
    synonym_rate: float = 0.25
    textures: int = 48


# Drawings warped and tinted about as the benchmark's scenes do.
MILD = PairOptions(
    aspect=(0.85, 1.18),
    bend=0.03,
    gain=(0.75, 1.15),
    channel_gain=(0.92, 1.08),
    saturation=(0.8, 1.15),
    hue=0.08,
)


@dataclass
class PairBatch:
    """Pictures and captions.

    Attributes:
        images: (B, 3, R, R) float, RGB, 0 to 255.
        captions: T texts, each naming one thing or stuff.
        match: (B, T) int8: 1 where the caption tells what is in the picture, 0 where not, -1 where
            it tells of the texture behind a single thing, which is neither asked for nor denied.
    """

    images: Tensor
    captions: list[str]
    match: Tensor


class PairSource:
    """Draws batches of pictures with captions; the same for the same seed and number."""

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
            styles: the styles to draw things in; a thing that none of them draws is left out.
            names: all things and stuff.
            templates: captions with ``{}`` for the name; the name alone is always one of them.
            seed: of everything drawn.
            options: how pictures vary.

        Raises:
            DatasetError: if the sprites are missing.
        """
        self.names, self.options, self.seed = names, options, seed
        self.templates = templates
        bank = load_sprites(sprites, styles)
        self._rows: dict[int, list[tuple[int, int]]] = {}  # thing -> (first row, rows) by style
        images, row = [], 0
        for i, thing in enumerate(names.things):
            for style in styles:
                drawings = bank.get((style, thing.name))
                if drawings is not None:
                    self._rows.setdefault(i, []).append((row, len(drawings)))
                    images.append(drawings)
                    row += len(drawings)
        self.things = np.array(sorted(self._rows))
        self._sprites = _sprite_levels(np.concatenate(images))
        first = len(names.things)
        self._grounds = np.array(
            [first + i for i, s in enumerate(names.stuff) if s.place == "ground"]
        )
        self._backdrops = np.array(
            [first + i for i, s in enumerate(names.stuff) if s.place != "ground"]
        )
        self._stuff = np.arange(first, len(names.entries))

    def singles(self, number: int, size: int, count: int) -> PairBatch:
        """Batch `number` of `count` pictures of `size` pixels, each of one thing on a texture.

        No thing comes twice in a batch as long as there are enough of them, so that no caption but
        its own is right for a picture.
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
        canvas = self._texture(rng, behind, size)
        sides = _uniform(rng, *o.single_size, len(things))
        room = np.maximum(1 - 0.75 * sides, 0.05)
        centres = _uniform(rng, -1, 1, (len(things), 2)) * room[:, None]
        drawn = self._draw(rng, things, sides, centres, size)
        canvas[: len(things)] = drawn[:, :3] + canvas[: len(things)] * (1 - drawn[:, 3:])
        present = np.zeros((count, len(self.names.entries)), np.int8)
        present[np.arange(count), behind] = -1
        present[np.arange(len(things)), things] = 1
        present[np.arange(len(things), count), behind[len(things) :]] = 1
        return self._finish(rng, canvas, present, extra=0)

    def scenes(self, number: int, size: int, count: int, extra: int = 160) -> PairBatch:
        """Batch `number` of `count` pictures of several things on one or two kinds of stuff.

        Args:
            number: of the batch.
            size: R, pixels.
            count: B.
            extra: captions, at most, of what is in none of the pictures.
        """
        o, rng = self.options, np.random.default_rng([self.seed, 1, number])
        canvas, present = self._stage(rng, size, count)
        low, high = o.scene_things
        amount = rng.integers(low, high + 1, count)
        cover = torch.zeros(count, 1, size, size)
        owner = torch.full((count, 1, size, size), -1, dtype=torch.int16)
        dealt = np.stack([rng.choice(self.things, high, replace=False) for _ in range(count)])
        for k in range(high):
            rows = np.nonzero(amount > k)[0]
            things = dealt[rows, k]
            sides = _uniform(rng, *o.scene_size, len(rows))
            centres = _uniform(rng, -0.8, 0.8, (len(rows), 2))
            drawn = self._draw(rng, things, sides, centres, size)
            alpha = drawn[:, 3:]
            index = torch.from_numpy(rows)
            shade = F.avg_pool2d(alpha.roll(size // 32 + 1, 2), 3, 1, 1)
            strength = torch.from_numpy(rng.choice([0, 0.2, 0.35], (len(rows), 1, 1, 1)))
            ground = canvas[index] * (1 - strength.float() * shade)
            canvas[index] = drawn[:, :3] + ground * (1 - alpha)
            cover[index] = torch.maximum(cover[index], alpha)
            owner[index] = torch.where(alpha > 0.5, k, owner[index].int()).to(torch.int16)
        # What later things hid almost wholly is not told.
        for k in range(high):
            seen = (owner == k).flatten(1).float().mean(1).numpy() > 0.008
            rows = np.nonzero(seen)[0]
            present[rows, dealt[rows, k]] = 1
        return self._finish(rng, canvas, present, extra)

    def probe(self, size: int, number: int = 0) -> tuple[Tensor, Tensor]:
        """For zero-shot classification: every thing once, upright, on a texture.

        Returns:
            (N, 3, R, R) float pictures, 0 to 255, and the (N,) ids of what is in them.
        """
        rng = np.random.default_rng([self.seed, 2, number])
        canvas = self._texture(rng, rng.choice(self._stuff, len(self.things)), size)
        sides = _uniform(rng, 0.65, 0.95, len(self.things))
        centres = _uniform(rng, -1, 1, (len(sides), 2)) * (1 - sides)[:, None]
        drawn = self._draw(rng, self.things, sides, centres, size, plain=True)
        images = drawn[:, :3] + canvas * (1 - drawn[:, 3:])
        return images.clamp(0, 255), torch.from_numpy(self.things)

    def _stage(self, rng: np.random.Generator, size: int, count: int) -> tuple[Tensor, np.ndarray]:
        """Ground, and a backdrop above it in most pictures."""
        present = np.zeros((count, len(self.names.entries)), np.int8)
        grounds, backdrops = rng.choice(self._grounds, count), rng.choice(self._backdrops, count)
        horizon = _uniform(rng, -0.5, 0.4, count)
        horizon[rng.random(count) < 0.3] = -2.0  # ground alone
        tilt = _uniform(rng, -0.15, 0.15, count)
        axis = torch.linspace(-1, 1, size)
        edge = torch.from_numpy(np.stack([horizon, tilt], 1)).float()
        above = axis[None, :, None] < edge[:, :1, None] + edge[:, 1:, None] * axis[None, None]
        canvas = torch.where(
            above[:, None],
            self._texture(rng, backdrops, size),
            self._texture(rng, grounds, size),
        )
        present[np.arange(count), grounds] = 1
        rows = np.nonzero(horizon > -1)[0]
        present[rows, backdrops[rows]] = 1
        return canvas, present

    def _texture(self, rng: np.random.Generator, stuff: np.ndarray, size: int) -> Tensor:
        """(B, 3, size, size): a part of a texture of each of these kinds, mirrored or not."""
        bank = _texture_bank(
            tuple(s.name for s in self.names.stuff), self.options.textures, size > 64
        )
        which = (stuff - len(self.names.things)) * self.options.textures
        which = which + rng.integers(self.options.textures, size=len(stuff))
        zoom = _uniform(rng, 0.5, 1.0, len(stuff))
        offset = _uniform(rng, -1, 1, (len(stuff), 2)) * (1 - zoom)[:, None]
        flip = rng.choice([-1.0, 1.0], len(stuff))
        theta = np.zeros((len(stuff), 2, 3))
        theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
        theta[:, :, 2] = offset
        return _sample(bank, which, theta, size)

    def _draw(
        self,
        rng: np.random.Generator,
        things: np.ndarray,
        sides: np.ndarray,
        centres: np.ndarray,
        size: int,
        plain: bool = False,
    ) -> Tensor:
        """(B, 4, size, size): a drawing of each thing, RGB 0 to 255 times alpha, and alpha 0 to 1.

        Args:
            rng: decides the rest.
            things: (B,) ids.
            sides: (B,) of the drawing, shares of the picture's.
            centres: (B, 2), x and y from -1 to 1.
            size: pixels of the picture.
            plain: upright and in its own colours.
        """
        o, n = self.options, len(things)
        rows = np.empty(n, np.int64)
        for i, thing in enumerate(things):
            drawn_in = self._rows[int(thing)]
            start, length = drawn_in[int(rng.integers(len(drawn_in)))]
            rows[i] = start + rng.integers(length)
        angle = np.deg2rad(_uniform(rng, -o.rotation, o.rotation, n)) * (not plain)
        stretch = np.sqrt(_uniform(rng, *o.aspect, n)) ** (not plain)
        flip = rng.choice([-1.0, 1.0], n)
        cos, sin = np.cos(angle) / sides, np.sin(angle) / sides
        theta = np.stack(
            [
                np.stack([cos * flip * stretch, sin * flip * stretch], 1),
                np.stack([-sin / stretch, cos / stretch], 1),
            ],
            1,
        )
        shift = -np.einsum("bij,bj->bi", theta, centres)
        theta = np.concatenate([theta, shift[..., None]], 2)
        bend = None
        if not plain:
            bend = o.bend * torch.from_numpy(rng.standard_normal((n, 2, 4, 4), dtype=np.float32))
        small = size * sides.max() <= 0.6 * self._sprites[0].shape[-1]
        drawn = _sample(self._sprites[1 if small else 0], rows, theta, size, bend) / 255
        if not plain:
            colors = torch.from_numpy(_color_matrices(rng, n, o)).float()
            drawn[:, :3] = torch.einsum("bij,bjhw->bihw", colors, drawn[:, :3])
        # Colours may not exceed what their alpha allows.
        drawn[:, :3] = torch.minimum(drawn[:, :3].clamp(min=0), drawn[:, 3:]) * 255
        return drawn

    def _finish(
        self, rng: np.random.Generator, canvas: Tensor, present: np.ndarray, extra: int
    ) -> PairBatch:
        o = self.options
        canvas = (
            canvas * torch.from_numpy(_uniform(rng, *o.image_gain, (len(canvas), 1, 1, 1))).float()
        )
        noise = torch.from_numpy(rng.random((len(canvas), 1, 1, 1)) * o.noise).float()
        grain = torch.from_numpy(rng.random(canvas.shape, dtype=np.float32) * 2 - 1)
        told = np.nonzero((present == 1).any(0))[0]
        if extra:
            others = np.setdiff1d(np.concatenate([self.things, self._stuff]), told)
            more = rng.choice(others, min(extra, len(others)), replace=False)
            told = np.concatenate([told, more])
        return PairBatch(
            (canvas + noise * grain).clamp(0, 255),
            [self._caption(rng, int(i)) for i in told],
            torch.from_numpy(present[:, told]),
        )

    def _caption(self, rng: np.random.Generator, entry: int) -> str:
        entry = self.names.entries[entry]
        name = entry.name
        if entry.synonyms and rng.random() < self.options.synonym_rate:
            name = entry.synonyms[int(rng.integers(len(entry.synonyms)))]
        if rng.random() < 0.5:
            return name
        return self.templates[int(rng.integers(len(self.templates)))].replace("{}", name)


def _uniform(rng: np.random.Generator, low: float, high: float, size) -> np.ndarray:
    return low + (high - low) * rng.random(size)


def _sprite_levels(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """(N, S, S, 4) straight RGBA to (N, 4, S, S) and (N, 4, S/2, S/2) uint8 premultiplied."""
    levels: tuple[list[Tensor], list[Tensor]] = ([], [])
    for part in np.array_split(images, max(1, len(images) // 256)):
        x = torch.from_numpy(part).permute(0, 3, 1, 2).float()
        x[:, :3] *= x[:, 3:] / 255
        levels[0].append(x.round().to(torch.uint8))
        levels[1].append(F.avg_pool2d(x, 2).round().to(torch.uint8))
    return torch.cat(levels[0]), torch.cat(levels[1])


@functools.lru_cache(maxsize=4)
def _texture_bank(stuff: tuple[str, ...], count: int, large: bool) -> Tensor:
    """(len(stuff) * count, 3, S, S) uint8."""
    if not large:
        bank = _texture_bank(stuff, count, True)
        small = [F.avg_pool2d(part.float(), 2) for part in bank.split(256)]
        return torch.cat([part.round().to(torch.uint8) for part in small])
    images = [
        draw_stuff(name, np.random.default_rng([k, i]), _TEXTURE_SIZES[0])
        for k, name in enumerate(stuff)
        for i in range(count)
    ]
    return torch.from_numpy(np.stack(images).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def _sample(
    bank: Tensor, rows: np.ndarray, theta: np.ndarray, size: int, bend: Tensor | None = None
) -> Tensor:
    """(B, C, size, size) float: rows of a bank (N, C, S, S) under affine maps (B, 2, 3)."""
    images = bank[torch.from_numpy(rows)].float()
    shape = (len(rows), images.shape[1], size, size)
    grid = F.affine_grid(torch.from_numpy(theta).float(), shape, align_corners=False)
    if bend is not None:
        wave = F.interpolate(bend, size=(size, size), mode="bilinear", align_corners=True)
        grid = grid + wave.permute(0, 2, 3, 1)
    return F.grid_sample(
        images,
        grid,
        padding_mode="zeros" if images.shape[1] == 4 else "border",
        align_corners=False,
    )


def _color_matrices(rng: np.random.Generator, count: int, o: PairOptions) -> np.ndarray:
    """(B, 3, 3) maps of RGB: brightness, channel gains, saturation and hue."""
    to_yiq = np.array(_TO_YIQ)
    turn = _uniform(rng, -o.hue, o.hue, count)
    colorful = _uniform(rng, *o.saturation, count)
    inner = np.zeros((count, 3, 3))
    inner[:, 0, 0] = 1
    inner[:, 1, 1] = inner[:, 2, 2] = np.cos(turn) * colorful
    inner[:, 1, 2], inner[:, 2, 1] = -np.sin(turn) * colorful, np.sin(turn) * colorful
    matrix = np.linalg.inv(to_yiq) @ inner @ to_yiq
    gains = _uniform(rng, *o.gain, (count, 1)) * _uniform(rng, *o.channel_gain, (count, 3))
    return gains[..., None] * matrix
