"""Random fields and patterns for textures, identical on every machine.

Sines, exponentials and OpenCV's resizing differ in the last bit between processors, and one bit can
change a pixel. So this module uses only NumPy's elementary arithmetic, integers from a seeded
generator, and Pillow's resizing of 8-bit images, which uses integers.
"""

import numpy as np
from PIL import Image


def field(rng: np.random.Generator, size: int, cells: int, octaves: int = 3) -> np.ndarray:
    """Make smooth noise (size, size, 1) float32 with mean 0 and standard deviation about 1.

    Args:
        rng: random generator.
        size: size of the image in pixels.
        cells: cells across the image in the coarsest octave; each octave has twice as many cells
            and half the amplitude.
        octaves: number of octaves.
    """
    return stretched_field(rng, size, cells, cells, octaves)


def stretched_field(
    rng: np.random.Generator, size: int, rows: int, columns: int, octaves: int = 2
) -> np.ndarray:
    """As :func:`field`, with `rows` by `columns` cells that are longer in one direction."""
    total, weight, power = np.zeros((size, size), np.float32), 1.0, 0.0
    for _ in range(octaves):
        grid = rng.integers(0, 256, (min(rows, size), min(columns, size)), dtype=np.uint8)
        smooth = Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)
        # The standard deviation of a uniform byte is 74; interpolation reduces it by a third.
        total += np.float32(weight / 50) * (np.asarray(smooth, np.float32) - np.float32(127.5))
        power += weight * weight
        rows, columns, weight = 2 * rows, 2 * columns, weight / 2
    return (total / np.float32(power**0.5))[..., None]


def grain(rng: np.random.Generator, size: int, strength: float) -> np.ndarray:
    """Make independent triangular noise of every pixel (size, size, 1) float32, with the standard
    deviation `strength`."""
    two = rng.integers(0, 256, (2, size, size), dtype=np.uint8).astype(np.float32)
    return ((two[0] + two[1] - np.float32(255)) * np.float32(strength / 104))[..., None]


def wave(turns: np.ndarray) -> np.ndarray:
    """A smooth wave with period 1 between -1 and 1, instead of a sine."""
    s = np.abs(2 * (turns - np.floor(turns)) - 1)
    return s * s * (3 - 2 * s) * 2 - 1


def smoothstep(x: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth in between."""
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of every pixel as fractions of the image: (size, 1, 1) and (1, size, 1)."""
    line = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    return line[:, None, None], line[None, :, None]


def color(rng: np.random.Generator, *choices: tuple[int, int, int], spread: int = 12) -> np.ndarray:
    """One of the colours, with each channel changed by up to `spread`: (3,) float32."""
    base = choices[int(rng.integers(len(choices)))]
    return np.array(base, np.float32) + rng.integers(-spread, spread + 1, 3).astype(np.float32)


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Interpolate: `a` where `share` is 0, `b` where it is 1."""
    return a + (b - a) * share


def stones(
    rng: np.random.Generator, size: int, rows: int, columns: int
) -> tuple[np.ndarray, np.ndarray]:
    """Make cells around jittered points.

    Returns:
        (size, size, 1) float32 from -1 to 1, a random value of each cell; (size, size, 1) float32,
        0 at the border of a cell and larger inside, in units of the cell.
    """
    points = rng.integers(48, 208, (2, rows + 4, columns + 4)).astype(np.float32) / 256
    values = rng.integers(-127, 128, (rows + 4, columns + 4)).astype(np.float32) / 127
    y, x = grid(size)
    y, x = y[..., 0] * rows + 2, x[..., 0] * columns + 2
    row, column = np.broadcast_arrays(np.floor(y).astype(int), np.floor(x).astype(int))
    nearest = np.full((size, size), 9, np.float32)
    second = nearest.copy()
    value = np.zeros((size, size), np.float32)
    for dr in (-1, 0, 1):
        for dc in (-1, 0, 1):
            r, c = row + dr, column + dc
            dy, dx = y - r - points[0, r, c], x - c - points[1, r, c]
            distance = dy * dy + dx * dx
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            value = np.where(closer, values[r, c], value)
            nearest = np.where(closer, distance, nearest)
    return value[..., None], (np.sqrt(second) - np.sqrt(nearest))[..., None]
