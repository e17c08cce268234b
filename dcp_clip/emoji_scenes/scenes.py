"""Composes stuff and sprites into an image with an exact label map.

A scene depends only on its random generator and on the things and stuff to choose from. It does not
depend on other scenes or on the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from dcp_clip.emoji_scenes.noise import field, grid
from dcp_clip.emoji_scenes.textures import draw_stuff

# A pixel belongs to a thing if its alpha, 0 to 255, is at least this.
MASK_ALPHA = 128


@dataclass(frozen=True)
class SceneOptions:
    """Parameters of the scenes. Lengths are fractions of the image size."""

    # Size of the image in pixels.
    size: int = 128
    # Minimum and maximum number of things.
    things: tuple[int, int] = (2, 6)
    # Side of the square around a drawing, before the two changes below.
    thing_size: tuple[float, float] = (0.22, 0.52)
    # Scale of things at the top edge, which are farther away.
    far_scale: float = 0.8
    # Ratio of height to width.
    aspect: tuple[float, float] = (0.87, 1.15)
    # Largest rotation in degrees, in both directions.
    rotation: int = 25
    # Range of the centre, in both coordinates.
    centre: tuple[float, float] = (0.1, 0.9)
    # Fraction of a thing that must lie in the image; fractions of a thing and of a stuff region
    # that must stay visible.
    inside: float = 0.7
    thing_visible: float = 0.65
    stuff_visible: float = 0.3
    # Number of positions that are tried for a thing before it is left out.
    tries: int = 6
    # Position of the horizon in a scene with a backdrop.
    horizon: tuple[float, float] = (0.25, 0.65)
    # Probability of a backdrop above the ground (else the ground is seen from above), and of a
    # patch of another ground.
    backdrop_rate: float = 0.75
    patch_rate: float = 0.3
    # Probability and strength of shadows.
    shadow_rate: float = 0.6
    shadow: tuple[float, float] = (0.15, 0.4)
    # Factors of a thing's brightness, of each of its channels, and of the image's brightness.
    thing_gain: tuple[float, float] = (0.75, 1.15)
    channel_gain: tuple[float, float] = (0.92, 1.08)
    image_gain: tuple[float, float] = (0.9, 1.08)
    # Largest amplitude of the noise in grey levels.
    noise: int = 6


@dataclass
class Scene:
    """A composed scene.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        labels: (size, size) uint16 ids.
        stuff: ids of the stuff regions, in the order in which they were drawn.
        things: the things in the order in which they were drawn: id, style, box (x0, y0, x1, y1) of
            the whole thing within the image, and number of visible pixels.
    """

    image: np.ndarray
    labels: np.ndarray
    stuff: list[int]
    things: list[dict]


@dataclass(frozen=True)
class ThingChoice:
    """A thing to draw: its id, the name of the style, and the sprite (S, S, 4) uint8 RGBA."""

    id: int
    style: str
    sprite: np.ndarray


def compose_scene(
    rng: np.random.Generator,
    things: Sequence[ThingChoice],
    backdrops: Sequence[tuple[int, str]],
    grounds: Sequence[tuple[int, str]],
    options: SceneOptions = SceneOptions(),
) -> Scene:
    """Draw one scene.

    Args:
        rng: random generator.
        things: the things to draw; a thing without a valid position is left out.
        backdrops: (id, name) of vertical stuff.
        grounds: (id, name) of horizontal stuff, at least two.
        options: parameters of the scene.
    """
    canvas, labels, stuff = _draw_regions(rng, backdrops, grounds, options)
    full = np.bincount(labels.ravel()).astype(np.int64)  # pixels of each id before occlusion
    kept = {i: options.stuff_visible for i in stuff}
    shadow = _uniform(rng, *options.shadow) if rng.random() < options.shadow_rate else 0.0
    drawn = []
    places = [(_place(rng, options), thing) for thing in things]
    for (x, y, scale), thing in sorted(
        places, key=lambda place: place[0][1]
    ):  # distant things first
        rgba = transform_sprite(rng, thing.sprite, scale, options)
        full = np.pad(full, (0, max(0, thing.id + 1 - len(full))))
        for _ in range(options.tries):
            window = _Window(rgba, x, y, options.size)
            if _fits(window, labels, full, kept, options):
                break
            x, y = (_uniform(rng, *options.centre) for _ in range(2))
        else:
            continue
        if shadow:
            _cast_shadow(canvas, rgba, x, y, shadow)
        full[thing.id] = window.paste(canvas, labels, thing.id)
        kept[thing.id] = options.thing_visible
        drawn.append({"id": thing.id, "style": thing.style, "box": window.box()})
    for entry in drawn:
        entry["visible"] = int((labels == entry["id"]).sum())
    canvas *= np.float32(_uniform(rng, *options.image_gain))
    strength = int(rng.integers(0, options.noise + 1))
    canvas += rng.integers(-strength, strength + 1, canvas.shape, dtype=np.int8)
    image = (np.clip(canvas, 0, 255) + np.float32(0.5)).astype(np.uint8)
    return Scene(image, labels, stuff, drawn)


def transform_sprite(
    rng: np.random.Generator, sprite: np.ndarray, scale: float, options: SceneOptions
) -> np.ndarray:
    """Resize, mirror, rotate and recolour a sprite (S, S, 4): (h, w, 4) float32 RGBA, 0 to 255."""
    side = max(4, round(scale * options.size))
    height = max(4, round(side * _uniform(rng, *options.aspect)))
    image = Image.fromarray(sprite).resize((side, height), Image.Resampling.BICUBIC)
    if rng.integers(2):
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = int(rng.integers(-options.rotation, options.rotation + 1))
    if angle:
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    rgba = np.asarray(image, np.float32).copy()
    gains = [_uniform(rng, *options.channel_gain) for _ in range(3)]
    rgba[..., :3] *= np.float32(gains) * np.float32(_uniform(rng, *options.thing_gain))
    return rgba


class _Window:
    """A sprite at a position: the part of it that lies in the image."""

    def __init__(self, rgba: np.ndarray, x: float, y: float, size: int) -> None:
        height, width = rgba.shape[:2]
        left, top = round(x * size - width / 2), round(y * size - height / 2)
        rows = slice(max(0, top), min(size, top + height))
        columns = slice(max(0, left), min(size, left + width))
        self.place = (rows, columns)
        self.rgba = rgba[rows.start - top : rows.stop - top, columns.start - left :][
            :, : columns.stop - columns.start
        ]
        self.mask = self.rgba[..., 3] >= MASK_ALPHA
        self.inside = self.mask.sum() / max(1, (rgba[..., 3] >= MASK_ALPHA).sum())

    def paste(self, canvas: np.ndarray, labels: np.ndarray, label: int) -> int:
        """Draw the sprite, set its labels and return the number of its pixels."""
        alpha = self.rgba[..., 3:] / np.float32(255)
        part = canvas[self.place]
        canvas[self.place] = part + (self.rgba[..., :3] - part) * alpha
        labels[self.place][self.mask] = label
        return int(self.mask.sum())

    def box(self) -> list[int]:
        """x0, y0, x1, y1 of the labelled pixels; x1 and y1 are exclusive."""
        rows, columns = np.nonzero(self.mask)
        y, x = self.place[0].start, self.place[1].start
        return [int(v) for v in (x + columns.min(), y + rows.min())] + [
            int(v) for v in (x + columns.max() + 1, y + rows.max() + 1)
        ]


def _fits(
    window: _Window,
    labels: np.ndarray,
    full: np.ndarray,
    kept: dict[int, float],
    options: SceneOptions,
) -> bool:
    """Whether enough of the thing is in the image and enough of all else stays visible."""
    if window.inside < options.inside:
        return False
    covered = np.bincount(labels[window.place][window.mask], minlength=len(full))
    visible = np.bincount(labels.ravel(), minlength=len(full))
    return all(visible[i] - covered[i] >= share * full[i] for i, share in kept.items())


def _place(rng: np.random.Generator, options: SceneOptions) -> tuple[float, float, float]:
    x, y = (_uniform(rng, *options.centre) for _ in range(2))
    scale = _uniform(rng, *options.thing_size)
    return x, y, scale * (options.far_scale + (1 - options.far_scale) * y)


def _cast_shadow(canvas: np.ndarray, rgba: np.ndarray, x: float, y: float, strength: float) -> None:
    size = len(canvas)
    alpha = Image.fromarray(rgba[..., 3].astype(np.uint8))
    border = max(2, size // 32)
    wide = Image.new("L", tuple(side + 2 * border for side in alpha.size))
    wide.paste(alpha, (border, border))
    dark = np.asarray(wide.filter(ImageFilter.BoxBlur(border // 2)), np.float32)[..., None]
    window = _Window(np.repeat(dark, 4, axis=2), x + 0.01, y + 0.03, size)
    canvas[window.place] *= 1 - window.rgba[..., 3:] * np.float32(strength / 255)


def _draw_regions(rng, backdrops, grounds, options) -> tuple[np.ndarray, np.ndarray, list[int]]:
    size = options.size
    order = rng.permutation(len(grounds))
    ground, other = (grounds[int(i)] for i in order[:2])
    horizon, top = 0, None
    if backdrops and rng.random() < options.backdrop_rate:
        top = backdrops[int(rng.integers(len(backdrops)))]
        horizon = round(_uniform(rng, *options.horizon) * size)
    canvas = _draw_ground(rng, ground[1], size, horizon)
    labels = np.full((size, size), ground[0], np.uint16)
    stuff = [ground[0]]
    if rng.random() < options.patch_rate:
        patch = _patch(rng, size, horizon)
        canvas = np.where(patch[..., None], _draw_ground(rng, other[1], size, horizon), canvas)
        labels[patch] = other[0]
        stuff.append(other[0])
    if top is not None:
        bumps = rng.integers(0, 5)  # from a straight wall to rolling hills
        edge = horizon + bumps * np.float32(size / 128) * field(rng, size, 3, 2)[0, :, 0]
        above = np.arange(size)[:, None] < edge
        canvas = np.where(above[..., None], draw_stuff(top[1], rng, size), canvas)
        labels[above] = top[0]
        stuff.append(top[0])
    return canvas.astype(np.float32), labels, [i for i in stuff if (labels == i).any()]


def _draw_ground(rng, name: str, size: int, horizon: int) -> np.ndarray:
    """A ground, seen from above or in perspective below a horizon."""
    if horizon == 0:
        return draw_stuff(name, rng, size)
    # At the horizon, the perspective shows twice the width. The texture is drawn in a larger size
    # because the perspective enlarges its lower part.
    source = round(1.4 * size)
    texture = Image.fromarray(draw_stuff(name, rng, source).astype(np.uint8))
    top = max(0, horizon - size // 8)  # hills reach above the horizon
    height, recede = size - top, 1.0
    matrix = (
        source / size,
        source / 2 * recede / height,
        0.0,
        0.0,
        min(1.0, 1.2 * height / size) * source * (1 + recede) / height,
        0.0,
        0.0,
        recede / height,
    )
    image = texture.transform(
        (size, height), Image.Transform.PERSPECTIVE, matrix, Image.Resampling.BILINEAR
    )
    canvas = np.zeros((size, size, 3), np.float32)
    canvas[top:] = np.asarray(image, np.float32)
    # Bilinear sampling makes pixels at the border of the texture black.
    canvas[:, 0], canvas[:, -1], canvas[-1] = canvas[:, 1], canvas[:, -2], canvas[-2]
    canvas[top] = canvas[top + 1]
    return canvas


def _patch(rng: np.random.Generator, size: int, horizon: int) -> np.ndarray:
    """A region of the ground, like a pond: (size, size) bool, with a smooth or rough border."""
    y, x = (axis[..., 0] for axis in grid(size))
    floor = horizon / size
    cx, cy = _uniform(rng, 0.25, 0.75), floor + (1 - floor) * _uniform(rng, 0.45, 0.7)
    rx, ry = _uniform(rng, 0.25, 0.45), (1 - floor) * _uniform(rng, 0.2, 0.35)
    u, v = (x - np.float32(cx)) / np.float32(rx), (y - np.float32(cy)) / np.float32(ry)
    rough = rng.integers(0, 5) / 20
    return u * u + v * v + np.float32(rough) * field(rng, size, 5, 2)[..., 0] < 1


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())
