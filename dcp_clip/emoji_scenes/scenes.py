"""Composition: stuff and sprites become an image with an exact label map.

A scene depends on its generator and on the pools it is given, on nothing else: neither on other
scenes, nor on how many processes draw them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from dcp_clip.emoji_scenes.noise import field, grid
from dcp_clip.emoji_scenes.textures import draw_stuff

# Alpha, of 255, from which a pixel belongs to the thing.
MASK_ALPHA = 128


@dataclass(frozen=True)
class SceneOptions:
    """What a scene looks like. Lengths are shares of the image's side."""

    # Side of the image in pixels.
    size: int = 128
    # Things that are tried, both included.
    things: tuple[int, int] = (2, 6)
    # Side of the square that a thing's drawing just fits in, before the two changes below.
    thing_size: tuple[float, float] = (0.22, 0.52)
    # A thing at the top edge has this share of its size: what is farther away is smaller.
    far_scale: float = 0.8
    # Height against width.
    aspect: tuple[float, float] = (0.87, 1.15)
    # Degrees, to both sides.
    rotation: int = 25
    # Where the centre may be, in both directions.
    centre: tuple[float, float] = (0.1, 0.9)
    # Share of a thing's pixels that must lie in the image, and of a thing's and of a stuff region's
    # that later things must leave visible.
    inside: float = 0.7
    thing_visible: float = 0.65
    stuff_visible: float = 0.3
    # Places tried for a thing before it is left out.
    tries: int = 6
    # The horizon of a scene with backdrop and ground.
    horizon: tuple[float, float] = (0.25, 0.65)
    # How often a scene is backdrop above ground (else one ground, seen from above), and how often
    # a patch of another ground lies on the ground.
    backdrop_rate: float = 0.75
    patch_rate: float = 0.3
    # How often things throw shadows, and their strength.
    shadow_rate: float = 0.6
    shadow: tuple[float, float] = (0.15, 0.4)
    # Factor of a thing's brightness, of each of its channels, and of the whole image.
    thing_gain: tuple[float, float] = (0.75, 1.15)
    channel_gain: tuple[float, float] = (0.92, 1.08)
    image_gain: tuple[float, float] = (0.9, 1.08)
    # Largest grey level of the noise added to every pixel and channel.
    noise: int = 6


@dataclass
class Scene:
    """A composed scene.

    Attributes:
        image: (size, size, 3) uint8 RGB.
        labels: (size, size) uint16, the ids that the pools gave.
        stuff: ids of the stuff regions, in the order they were laid.
        things: the things in the order they were laid: id, style, box (x0, y0, x1, y1) of the whole
            thing within the image, pixels of it that are visible.
    """

    image: np.ndarray
    labels: np.ndarray
    stuff: list[int]
    things: list[dict]


@dataclass(frozen=True)
class ThingChoice:
    """A thing to lay: its id, the style it is drawn in and its drawing (S, S, 4) uint8 RGBA."""

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
        rng: decides everything that `things` leaves open.
        things: what to lay; a thing that finds no place is left out.
        backdrops: (id, name) of stuff that stands upright.
        grounds: (id, name) of stuff that lies, at least two.
        options: the scene's looks.
    """
    canvas, labels, stuff = _lay_stuff(rng, backdrops, grounds, options)
    full = np.bincount(labels.ravel()).astype(np.int64)  # pixels of an id before it was covered
    kept = {i: options.stuff_visible for i in stuff}
    shadow = _uniform(rng, *options.shadow) if rng.random() < options.shadow_rate else 0.0
    laid = []
    places = [(_place(rng, options), thing) for thing in things]
    for (x, y, scale), thing in sorted(places, key=lambda place: place[0][1]):  # far ones first
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
        laid.append({"id": thing.id, "style": thing.style, "box": window.box()})
    for entry in laid:
        entry["visible"] = int((labels == entry["id"]).sum())
    canvas *= np.float32(_uniform(rng, *options.image_gain))
    strength = int(rng.integers(0, options.noise + 1))
    canvas += rng.integers(-strength, strength + 1, canvas.shape, dtype=np.int8)
    image = (np.clip(canvas, 0, 255) + np.float32(0.5)).astype(np.uint8)
    return Scene(image, labels, stuff, laid)


def transform_sprite(
    rng: np.random.Generator, sprite: np.ndarray, scale: float, options: SceneOptions
) -> np.ndarray:
    """Size, turn, mirror and tint a sprite (S, S, 4): (h, w, 4) float32 RGBA, 0 ... 255."""
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
    """A sprite at a place: the part of it that lies in the image."""

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
        """Lay it on the canvas and label its pixels; returns how many there are."""
        alpha = self.rgba[..., 3:] / np.float32(255)
        part = canvas[self.place]
        canvas[self.place] = part + (self.rgba[..., :3] - part) * alpha
        labels[self.place][self.mask] = label
        return int(self.mask.sum())

    def box(self) -> list[int]:
        """x0, y0, x1, y1 of the labelled pixels, the last two excluded."""
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
    """Whether enough of the thing is in the image and of everything else stays visible."""
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


def _lay_stuff(rng, backdrops, grounds, options) -> tuple[np.ndarray, np.ndarray, list[int]]:
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
    """Stuff that lies: from straight above, or receding towards a horizon."""
    if horizon == 0:
        return draw_stuff(name, rng, size)
    # A projection that shows twice the width at the horizon; drawn larger, as it is enlarged below.
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
    # Bilinear sampling leaves the outermost row black where it reaches over the texture's border.
    canvas[:, 0], canvas[:, -1], canvas[-1] = canvas[:, 1], canvas[:, -2], canvas[-2]
    canvas[top] = canvas[top + 1]
    return canvas


def _patch(rng: np.random.Generator, size: int, horizon: int) -> np.ndarray:
    """A pond, a rug: a region of the ground (size, size) bool, with a smooth or a rough border."""
    y, x = (axis[..., 0] for axis in grid(size))
    floor = horizon / size
    cx, cy = _uniform(rng, 0.25, 0.75), floor + (1 - floor) * _uniform(rng, 0.45, 0.7)
    rx, ry = _uniform(rng, 0.25, 0.45), (1 - floor) * _uniform(rng, 0.2, 0.35)
    u, v = (x - np.float32(cx)) / np.float32(rx), (y - np.float32(cy)) / np.float32(ry)
    rough = rng.integers(0, 5) / 20
    return u * u + v * v + np.float32(rough) * field(rng, size, 5, 2)[..., 0] < 1


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(rng.random())
