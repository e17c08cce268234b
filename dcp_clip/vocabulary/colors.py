"""Colours of categories in pictures."""

import colorsys
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from dcp_clip.vocabulary.category import VocabularyError

Color = tuple[int, int, int]


@functools.cache
def natural_colors() -> dict[str, Color]:
    """Return fixed colours of common names: trees are green and the sky is blue."""
    text = Path(__file__).with_name("natural_colors.json").read_text(encoding="utf-8")
    return {name: tuple(color) for name, color in json.loads(text).items()}


def default_color(name: str) -> Color:
    """Return the RGB colour of a category without a colour of its own.

    The colour depends only on the name, so a category has the same colour in every vocabulary. Two
    names can get similar colours. The colour is saturated, and never close to black or white.
    """
    if (natural := natural_colors().get(name.casefold())) is not None:
        return natural
    hue, saturation, value = hashlib.blake2b(
        name.encode("utf-8", "replace"), digest_size=3
    ).digest()
    rgb = colorsys.hsv_to_rgb(hue / 256, 0.45 + 0.55 * saturation / 255, 0.55 + 0.45 * value / 255)
    return tuple(round(255 * channel) for channel in rgb)


def check_color(color: Sequence[int], name: str) -> Color:
    """Return the RGB colour of the category ``name`` as a tuple.

    Raises:
        VocabularyError: if the colour is not three integers from 0 to 255.
    """
    try:
        channels = tuple(int(channel) for channel in color)
        valid = channels == tuple(color) and len(channels) == 3
    except (TypeError, ValueError):
        valid = False
    if not valid or not all(0 <= channel <= 255 for channel in channels):
        raise VocabularyError(
            f"The colour of '{name}' must be three integers from 0 to 255, got {color!r}."
        )
    return channels
