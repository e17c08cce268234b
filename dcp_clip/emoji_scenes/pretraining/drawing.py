"""Draws batches of sprites and textures as tensors, for :mod:`.pairs`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dcp_clip.emoji_scenes.names import NameList
from dcp_clip.emoji_scenes.sprites import load_sprites
from dcp_clip.emoji_scenes.textures import draw_stuff

__all__ = ["MILD", "PLAIN", "STRONG", "DrawingBank", "Look", "uniform"]

# Size of the textures in pixels. Images of at most half this size use half-size textures.
_TEXTURE_SIZE = 128
# RGB to YIQ: luma, and two components of colour.
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True)
class Look:
    """The augmentation of the drawings. Each value is drawn at random within these bounds."""

    # Largest rotation in degrees, ratio of height to width, and strength of the bending of the
    # outline, as a fraction of the image size.
    rotation: float
    aspect: tuple[float, float]
    bend: float
    # Factors of the brightness, of each channel and of the saturation; largest shift of the hue in
    # radians.
    gain: tuple[float, float]
    channel_gain: tuple[float, float]
    saturation: tuple[float, float]
    hue: float


STRONG = Look(25.0, (0.8, 1.25), 0.1, (0.7, 1.25), (0.9, 1.1), (0.5, 1.4), 0.25)
# Similar to the scenes of the benchmark.
MILD = Look(25.0, (0.85, 1.18), 0.03, (0.75, 1.15), (0.92, 1.08), (0.8, 1.15), 0.08)
# No augmentation.
PLAIN = Look(0.0, (1.0, 1.0), 0.0, (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), 0.0)


class DrawingBank:
    """The sprites of some styles and textures of all stuff, each in two sizes.

    Attributes:
        names: the list of all names, which defines the ids.
        things: (N,) ids of the things that have a drawing in at least one of the styles.
    """

    def __init__(
        self, sprites: str | Path, styles: tuple[str, ...], names: NameList, textures: int
    ):
        """
        Args:
            sprites: folder of the sprites.
            styles: the styles to draw things in.
            names: all things and stuff.
            textures: number of textures of each kind of stuff.

        Raises:
            DatasetError: if the sprites are missing.
        """
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
        self.names, self.things = names, np.array(sorted(self._rows))
        self._sprites = _levels(np.concatenate(images))
        self._num_textures = textures
        self._textures = _texture_levels(tuple(s.name for s in names.stuff), textures)

    def textures(self, rng: np.random.Generator, stuff: np.ndarray, size: int) -> Tensor:
        """Cut random crops from textures, and mirror half of them.

        Args:
            rng: random generator.
            stuff: (B,) ids of stuff.
            size: size of the images in pixels.

        Returns:
            (B, 3, size, size) float, 0 to 255.
        """
        which = (stuff - len(self.names.things)) * self._num_textures
        which = which + rng.integers(self._num_textures, size=len(stuff))
        zoom = uniform(rng, 0.5, 1.0, len(stuff))
        offset = uniform(rng, -1, 1, (len(stuff), 2)) * (1 - zoom)[:, None]
        flip = rng.choice([-1.0, 1.0], len(stuff))
        theta = np.zeros((len(stuff), 2, 3))
        theta[:, 0, 0], theta[:, 1, 1] = zoom * flip, zoom
        theta[:, :, 2] = offset
        bank = self._textures[0 if size > _TEXTURE_SIZE // 2 else 1]
        return _sample(bank, which, theta, size, "border")

    def drawings(
        self,
        rng: np.random.Generator,
        things: np.ndarray,
        sides: np.ndarray,
        centres: np.ndarray,
        size: int,
        look: Look,
    ) -> Tensor:
        """Draw each thing in a random style that has it.

        Args:
            rng: random generator.
            things: (B,) ids.
            sides: (B,) sizes of the drawings, as fractions of the image size.
            centres: (B, 2) positions, x and y from -1 to 1.
            size: size of the images in pixels.
            look: the augmentation.

        Returns:
            (B, 4, size, size): RGB from 0 to 255, premultiplied by alpha, and alpha from 0 to 1.
        """
        n = len(things)
        rows = np.array([self._choose(rng, int(thing)) for thing in things])
        angle = np.deg2rad(uniform(rng, -look.rotation, look.rotation, n))
        stretch = np.sqrt(uniform(rng, *look.aspect, n))
        flip = rng.choice([-1.0, 1.0], n)
        cos, sin = np.cos(angle) / sides, np.sin(angle) / sides
        turn = [[cos * flip * stretch, sin * flip * stretch], [-sin / stretch, cos / stretch]]
        turn = np.array(turn).transpose(2, 0, 1)  # (B, 2, 2), from the image to the sprite
        shift = -np.einsum("bij,bj->bi", turn, centres)
        theta = np.concatenate([turn, shift[..., None]], 2)
        wave = rng.standard_normal((n, 2, 4, 4), dtype=np.float32)
        small = size * sides.max() <= 0.6 * self._sprites[0].shape[-1]
        bend = look.bend * torch.from_numpy(wave)
        drawn = _sample(self._sprites[1 if small else 0], rows, theta, size, "zeros", bend) / 255
        colors = torch.from_numpy(_color_matrices(rng, n, look)).float()
        drawn[:, :3] = torch.einsum("bij,bjhw->bihw", colors, drawn[:, :3])
        # Premultiplied colours are at most alpha.
        drawn[:, :3] = torch.minimum(drawn[:, :3].clamp(min=0), drawn[:, 3:]) * 255
        return drawn

    def _choose(self, rng: np.random.Generator, thing: int) -> int:
        """The row of a random sprite of the thing: a random style, then one of its drawings."""
        drawn_in = self._rows[thing]
        start, length = drawn_in[int(rng.integers(len(drawn_in)))]
        return start + int(rng.integers(length))


def uniform(rng: np.random.Generator, low: float, high: float, size) -> np.ndarray:
    """Uniform random numbers from `low` to `high`."""
    return low + (high - low) * rng.random(size)


def _levels(images: np.ndarray) -> tuple[Tensor, Tensor]:
    """Convert images (N, S, S, C) uint8 to (N, C, S, S) and (N, C, S/2, S/2) uint8.

    The colours of RGBA images are premultiplied by alpha.
    """
    levels: tuple[list[Tensor], list[Tensor]] = ([], [])
    for part in np.array_split(images, max(1, len(images) // 256)):
        x = torch.from_numpy(part).permute(0, 3, 1, 2).float()
        if x.shape[1] == 4:
            x[:, :3] *= x[:, 3:] / 255
        levels[0].append(x.round().to(torch.uint8))
        levels[1].append(F.avg_pool2d(x, 2).round().to(torch.uint8))
    return torch.cat(levels[0]), torch.cat(levels[1])


@functools.lru_cache(maxsize=4)
def _texture_levels(stuff: tuple[str, ...], count: int) -> tuple[Tensor, Tensor]:
    """`count` textures of each kind of stuff, ordered by kind."""
    images = [
        draw_stuff(name, np.random.default_rng([k, i]), _TEXTURE_SIZE)
        for k, name in enumerate(stuff)
        for i in range(count)
    ]
    return _levels(np.stack(images).astype(np.uint8))


def _sample(
    bank: Tensor,
    rows: np.ndarray,
    theta: np.ndarray,
    size: int,
    outside: str,
    bend: Tensor | None = None,
) -> Tensor:
    """Sample images of a bank under affine maps.

    Args:
        bank: (N, C, S, S).
        rows: (B,) indices into the bank.
        theta: (B, 2, 3) affine maps, as in ``affine_grid``.
        size: size of the result in pixels.
        outside: padding mode, "zeros" or "border".
        bend: (B, 2, h, w) offsets that are added to the sampling grid, or None.

    Returns:
        (B, C, size, size) float.
    """
    images = bank[torch.from_numpy(rows)].float()
    shape = (len(rows), images.shape[1], size, size)
    grid = F.affine_grid(torch.from_numpy(theta).float(), shape, align_corners=False)
    if bend is not None:
        wave = F.interpolate(bend, size=(size, size), mode="bilinear", align_corners=True)
        grid = grid + wave.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, padding_mode=outside, align_corners=False)


def _color_matrices(rng: np.random.Generator, count: int, look: Look) -> np.ndarray:
    """(B, 3, 3) random colour matrices: brightness, channel gains, saturation and hue."""
    to_yiq = np.array(_TO_YIQ)
    turn = uniform(rng, -look.hue, look.hue, count)
    colorful = uniform(rng, *look.saturation, count)
    inner = np.zeros((count, 3, 3))
    inner[:, 0, 0] = 1
    inner[:, 1, 1] = inner[:, 2, 2] = np.cos(turn) * colorful
    inner[:, 1, 2], inner[:, 2, 1] = -np.sin(turn) * colorful, np.sin(turn) * colorful
    matrix = np.linalg.inv(to_yiq) @ inner @ to_yiq
    gains = uniform(rng, *look.gain, (count, 1)) * uniform(rng, *look.channel_gain, (count, 3))
    return gains[..., None] * matrix
