"""Draws the textures of stuff, one function for each name.

Lengths are fractions of the image size, so that scenes of 128 and 256 pixels look alike.
"""

from collections.abc import Callable

import numpy as np

from dcp_clip.emoji_scenes.noise import (
    color,
    field,
    grain,
    grid,
    mix,
    smoothstep,
    stones,
    stretched_field,
    wave,
)

_DRAW: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {}


def draw_stuff(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a random texture of this name: (size, size, 3) float32, 0 to 255."""
    image = _DRAW[name](rng, size)
    return np.clip(np.broadcast_to(image, (size, size, 3)), 0, 255).astype(np.float32)


def drawable() -> frozenset[str]:
    """The names that :func:`draw_stuff` can draw."""
    return frozenset(_DRAW)


def _draws(name: str):
    def register(function):
        _DRAW[name] = function
        return function

    return register


# ---- backdrops


@_draws("sky")
def _sky(rng, n):
    y, _ = grid(n)
    blue = mix(color(rng, (70, 135, 225), (100, 160, 235)), color(rng, (185, 215, 245)), y)
    cloud = smoothstep(stretched_field(rng, n, 4, 3, 4), rng.integers(0, 12) / 10, 2.2)
    return mix(blue, color(rng, (250, 250, 252), spread=4), 0.9 * cloud)


@_draws("sunset sky")
def _sunset(rng, n):
    y, _ = grid(n)
    top = color(rng, (80, 60, 130), (60, 70, 140), (120, 60, 120))
    middle, low = color(rng, (240, 120, 90), (230, 110, 130)), color(rng, (255, 205, 110))
    sky = mix(mix(top, middle, smoothstep(y, 0, 0.65)), low, smoothstep(y, 0.5, 1))
    streak = smoothstep(stretched_field(rng, n, 9, 2, 2), 0.5, 2)
    return mix(sky, color(rng, (255, 170, 140), (120, 70, 110)), 0.6 * streak)


@_draws("night sky")
def _night(rng, n):
    y, _ = grid(n)
    sky = mix(color(rng, (10, 12, 40), spread=6), color(rng, (40, 35, 85), (25, 45, 90)), y)
    sky = sky + 5 * field(rng, n, 3)
    stars = rng.integers(0, 256, (n, n, 1), dtype=np.uint8) >= 254
    few = rng.integers(0, 256, (n, n, 1)).astype(np.float32) * stars
    return sky + np.float32(0.95) * few


@_draws("brick wall")
def _bricks(rng, n):
    rows = int(rng.integers(8, 14))
    columns = rows // 2
    y, x = grid(n)
    row = np.floor(y * rows)
    xs = x * columns + (row % 2) / 2
    shade = rng.integers(-22, 23, (rows, columns + 2)).astype(np.float32)
    brick = color(rng, (165, 75, 55), (145, 65, 50), (180, 105, 75)) + grain(rng, n, 7)
    brick = brick + shade[row.astype(int), np.floor(xs).astype(int)]
    joint = ((y * rows) % 1 < 0.14) | (xs % 1 < 0.07)
    return np.where(joint, color(rng, (200, 190, 178), (150, 145, 140)) + grain(rng, n, 4), brick)


@_draws("concrete")
def _concrete(rng, n):
    wall = color(rng, (165, 165, 162), (145, 147, 150), spread=8)
    wall = wall + 7 * field(rng, n, 3, 4) + grain(rng, n, 4)
    panels = int(rng.integers(1, 4))
    y, x = (axis * panels + rng.integers(0, 256) / 256 for axis in grid(n))
    seam = np.minimum(np.abs(y % 1 - 0.5), np.abs(x % 1 - 0.5)) < 0.006 * panels
    return wall - 35 * seam


@_draws("wallpaper")
def _wallpaper(rng, n):
    stripes = int(rng.integers(4, 9))
    y, x = grid(n)
    paper = color(rng, (240, 225, 200), (215, 230, 225), (235, 215, 225), spread=8)
    other = color(rng, (200, 150, 140), (130, 170, 165), (160, 150, 195), (205, 180, 120))
    u, v = (x * stripes) % 1, (y * stripes) % 1
    dot = (u - 0.75) * (u - 0.75) + (v - 0.5) * (v - 0.5) < 0.02
    wall = np.where(u < 0.5, other, paper)
    return np.where(dot, other, wall) + 2 * field(rng, n, 4) + grain(rng, n, 2)


@_draws("foliage")
def _foliage(rng, n):
    leaves = int(rng.integers(14, 22))
    dark = color(rng, (30, 70, 35), (40, 75, 30), spread=8) + 8 * field(rng, n, 4)
    middle = color(rng, (60, 125, 50), (75, 130, 45))
    bush = mix(dark, middle, smoothstep(field(rng, n, leaves, 2), -0.1, 0.4))
    return mix(bush, middle + np.float32([45, 45, 20]), smoothstep(field(rng, n, leaves), 0.7, 1.1))


@_draws("marble")
def _marble(rng, n):
    y, x = grid(n)
    stone = color(rng, (238, 236, 232), (225, 228, 230), (235, 225, 215), spread=5)
    vein = color(rng, (120, 120, 128), (140, 120, 105))
    way = rng.integers(-10, 11, 2) / 5
    turns = y * np.float32(way[0]) + x * np.float32(way[1]) + np.float32(0.55) * field(rng, n, 2, 4)
    sharp = np.abs(wave(turns))
    fine = np.abs(wave(turns * 2 + np.float32(0.4) * field(rng, n, 4, 3)))
    stone = mix(stone, vein, 0.6 * (1 - smoothstep(sharp, 0, 0.3)))
    return mix(stone, vein, 0.25 * (1 - smoothstep(fine, 0, 0.25))) + 3 * field(rng, n, 3)


@_draws("stone wall")
def _stone_wall(rng, n):
    rows = int(rng.integers(5, 8))
    value, inside = stones(rng, n, rows, max(3, rows * 2 // 3))
    stone = color(rng, (150, 140, 125), (135, 130, 128), (165, 145, 115)) + 24 * value
    stone = stone + 9 * field(rng, n, 8) + grain(rng, n, 5)
    return mix(color(rng, (95, 90, 82), (190, 182, 168)), stone, smoothstep(inside, 0.06, 0.2))


@_draws("curtain")
def _curtain(rng, n):
    y, x = grid(n)
    cloth = color(rng, (150, 35, 50), (40, 80, 120), (60, 100, 75), (190, 150, 90), (110, 60, 120))
    bend = np.float32(0.35) * stretched_field(rng, n, 2, 4)
    fold = wave(x * int(rng.integers(4, 9)) + bend)
    return cloth * (1 + np.float32(0.38) * fold - np.float32(0.08) * y) + grain(rng, n, 2)


@_draws("corrugated metal")
def _metal(rng, n):
    _, x = grid(n)
    metal = color(rng, (165, 172, 178), (140, 155, 165), spread=8)
    ridge = wave(x * int(rng.integers(12, 20)))
    rust = smoothstep(stretched_field(rng, n, 2, 6, 3), rng.integers(5, 15) / 10, 2.5)
    return mix(metal + 38 * ridge, color(rng, (150, 85, 50)) + 22 * ridge, 0.75 * rust)


# ---- ground


@_draws("grass")
def _grass(rng, n):
    blades = stretched_field(rng, n, n // 8, n // 2, 1)
    lawn = color(rng, (80, 145, 55), (95, 155, 65), (70, 130, 60))
    return lawn + np.float32([9, 12, 5]) * field(rng, n, 5) + np.float32([14, 19, 9]) * blades


@_draws("sand")
def _sand(rng, n):
    y, _ = grid(n)
    ripple = wave(y * int(rng.integers(6, 14)) + np.float32(0.6) * stretched_field(rng, n, 3, 2))
    sand = color(rng, (222, 196, 142), (230, 205, 160), (205, 175, 125))
    return sand + rng.integers(2, 7) * ripple + 4 * field(rng, n, 4) + grain(rng, n, 8)


@_draws("water")
def _water(rng, n):
    y, _ = grid(n)
    deep = color(rng, (35, 105, 165), (30, 125, 150), (45, 90, 140))
    ripple = wave(y * int(rng.integers(7, 14)) + np.float32(0.8) * stretched_field(rng, n, 5, 3))
    light = smoothstep(ripple + np.float32(0.35) * stretched_field(rng, n, 24, 9), 0.55, 1.3)
    return mix(deep + 14 * ripple, color(rng, (190, 225, 240), spread=6), 0.65 * light)


@_draws("snow")
def _snow(rng, n):
    hollow = smoothstep(stretched_field(rng, n, 4, 3, 3), -0.5, 2)
    snow = mix(color(rng, (244, 247, 252), spread=3), color(rng, (198, 212, 235)), 0.7 * hollow)
    return snow + grain(rng, n, 3)


@_draws("wood floor")
def _wood(rng, n):
    planks, length = int(rng.integers(6, 11)), int(rng.integers(1, 3))
    y, x = grid(n)
    row = np.floor(y * planks)
    shift = rng.integers(0, 256, planks).astype(np.float32)[row.astype(int)] / 256
    xs = x * length + shift
    shade = rng.integers(-20, 21, (planks, length + 2)).astype(np.float32)
    wood = color(rng, (165, 115, 70), (140, 90, 52), (190, 145, 95))
    wood = wood + shade[row.astype(int), np.floor(xs).astype(int)]
    wood = wood + 9 * stretched_field(rng, n, planks * 6, 3, 1) + 4 * stretched_field(rng, n, n, 4)
    joint = ((y * planks) % 1 < 0.1) | (xs % 1 < 0.012 * length)
    wood = wood * np.where(joint, np.float32(0.5), np.float32(1))
    return wood if rng.integers(2) else wood.transpose(1, 0, 2)


@_draws("tile floor")
def _tiles(rng, n):
    tiles = int(rng.integers(4, 8))
    y, x = (axis * tiles for axis in grid(n))
    light = color(rng, (225, 222, 215), (205, 215, 220), spread=6)
    dark = color(rng, (75, 80, 90), (170, 120, 95), (120, 150, 150))
    odd = (np.floor(y) + np.floor(x)) % 2 == 1
    tile = np.where(odd, dark, light) if rng.integers(2) else light + 0 * odd
    shade = rng.integers(-7, 8, (tiles, tiles, 1)).astype(np.float32)
    tile = tile + shade[np.floor(y[:, 0, 0]).astype(int)][:, np.floor(x[0, :, 0]).astype(int)]
    joint = (y % 1 < 0.07) | (x % 1 < 0.07)
    return np.where(joint, color(rng, (150, 148, 145)), tile) + 2 * field(rng, n, 5)


@_draws("asphalt")
def _asphalt(rng, n):
    _, x = grid(n)
    road = color(rng, (78, 78, 84), (95, 95, 98), (62, 63, 68), spread=6)
    road = road + 4 * field(rng, n, 3) + grain(rng, n, 13)
    line = np.abs(x - rng.integers(64, 192) / 256) < 0.02
    worn = (grain(rng, n, 10) > -8) & line
    return np.where(worn, np.float32(205), road) if rng.integers(3) == 0 else road


@_draws("soil")
def _soil(rng, n):
    soil = color(rng, (105, 72, 48), (85, 60, 42), (125, 85, 60), spread=8)
    soil = soil + 13 * field(rng, n, 10, 3) + grain(rng, n, 7)
    pebble = smoothstep(field(rng, n, 22, 1), 1.5, 1.9)
    return mix(soil, color(rng, (150, 130, 110)), 0.8 * pebble)


@_draws("flower meadow")
def _meadow(rng, n):
    meadow = _grass(rng, n) * np.float32(0.92)
    cells = int(rng.integers(12, 18))
    value, inside = stones(rng, n, cells, cells)
    petals = [color(rng, c) for c in ((235, 85, 110), (250, 215, 70), (245, 240, 245))]
    flower = inside > rng.integers(50, 65) / 100
    for low, petal in zip((-0.2, 0.2, 0.6), petals):
        meadow = np.where(flower & (value > low), petal, meadow)
    return meadow


@_draws("cobblestone")
def _cobbles(rng, n):
    cells = int(rng.integers(9, 14))
    value, inside = stones(rng, n, cells, cells)
    stone = color(rng, (140, 136, 132), (120, 122, 128), spread=8) + 20 * value + grain(rng, n, 5)
    return stone * mix(0.4, 1.12, smoothstep(inside, 0, 0.55))


@_draws("carpet")
def _carpet(rng, n):
    tiles = int(rng.integers(4, 8))
    y, x = (np.abs((axis * tiles) % 1 - np.float32(0.5)) for axis in grid(n))
    ground = color(rng, (140, 40, 55), (50, 60, 110), (110, 45, 105), (45, 95, 85))
    pattern, core = color(rng, (205, 165, 110), (220, 200, 170)), color(rng, (30, 40, 80))
    rhomb = x + y
    pile = np.where(rhomb < 0.33, pattern, ground)
    pile = np.where((rhomb < 0.14) | ((rhomb > 0.85) & (rhomb < 0.93)), core, pile)
    return pile + grain(rng, n, 10)


@_draws("wheat field")
def _wheat(rng, n):
    stalks = stretched_field(rng, n, n // 14, n // 2, 1)
    ears = smoothstep(stretched_field(rng, n, n // 6, n // 3, 1), 0.9, 1.5)
    wheat = color(rng, (205, 165, 70), (220, 180, 85), (190, 150, 60))
    wheat = wheat + np.float32([22, 20, 11]) * stalks + 8 * stretched_field(rng, n, 6, 3)
    return mix(wheat, color(rng, (245, 215, 130)), 0.7 * ears)


@_draws("checkered tablecloth")
def _tablecloth(rng, n):
    checks = int(rng.integers(4, 9))
    y, x = (((axis * checks) % 1 < 0.5).astype(np.float32) for axis in grid(n))
    dye = color(rng, (200, 40, 45), (45, 85, 170), (50, 130, 80), (230, 165, 50))
    cloth = mix(np.float32([248, 246, 242]), dye, (x + y) / 2 * np.float32(0.92))
    return cloth + 4 * field(rng, n, 3) + grain(rng, n, 3)
