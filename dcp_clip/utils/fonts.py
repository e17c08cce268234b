"""Find a font that has the characters of a text."""

import functools
import logging
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

__all__ = ["font_for"]

logger = logging.getLogger(__name__)

# Matplotlib ships this font, so it is always installed.
_DEFAULT_FONT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
# Debian's and Ubuntu's packages by the first word of a character's Unicode name.
_PACKAGES = {
    **dict.fromkeys(("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "BOPOMOFO"), "fonts-noto-cjk"),
    **dict.fromkeys(("FULLWIDTH", "IDEOGRAPHIC", "KATAKANA-HIRAGANA"), "fonts-noto-cjk"),
    "EMOJI": "fonts-symbola",
}
_EMOJI = range(0x1F000, 0x1FB00)
_OTHER_PACKAGE = "fonts-noto-core"  # Arabic, Devanagari, Thai and most other scripts


def font_for(text: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a font of `size` pixels that has all characters of the text, if one is installed.

    Without such a font, characters appear as boxes. One warning for each package of fonts says
    which one to install.
    """
    return _load_font(_find_font(text), size)


@functools.lru_cache(maxsize=64)
def _load_font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(file, size)


@functools.lru_cache(maxsize=4096)
def _find_font(text: str) -> str:
    """Return the file of the default font, or of another font if it lacks characters."""
    if _has_characters(_DEFAULT_FONT, text):
        return _DEFAULT_FONT
    for file in _installed_fonts():
        if _has_characters(file, text):
            return file
    _warn_about(_package_for(set(map(ord, text)) - _charmap(_DEFAULT_FONT)))
    return _DEFAULT_FONT


@functools.lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    """Return the files of the installed fonts, upright fonts of usual weight first."""
    from matplotlib import font_manager  # late, because this import takes long

    # Not Matplotlib's list of fonts, which it stores: new fonts would be missing.
    # "Last Resort" claims to have all characters, but it shows boxes.
    files = {
        file
        for file in font_manager.findSystemFonts()
        if "lastresort" not in Path(file).stem.lower().replace(" ", "")
    }
    styles = ("bold", "italic", "oblique", "black", "light", "thin", "mono", "serif", "condensed")

    def rank(file: str) -> tuple[int, str]:
        name = Path(file).stem.lower()
        return sum(style in name for style in styles), file

    return tuple(sorted(files, key=rank))


def _package_for(characters: Iterable[int]) -> str:
    for character in sorted(characters):
        word = unicodedata.name(chr(character), "").split(" ")[0]
        package = _PACKAGES["EMOJI"] if character in _EMOJI else _PACKAGES.get(word)
        if package:
            return package
    return _OTHER_PACKAGE


@functools.lru_cache(maxsize=16)
def _warn_about(package: str) -> None:
    logger.warning(
        "No installed font has all characters of some names, so they appear as boxes in pictures. "
        "Install such a font, for example with 'apt install %s'. The names in label maps and "
        "results are not affected.",
        package,
    )


def _has_characters(file: str, text: str) -> bool:
    try:
        return set(map(ord, text)) <= _charmap(file)
    except (OSError, RuntimeError):  # FreeType cannot read this font
        return False


@functools.lru_cache(maxsize=8)
def _charmap(file: str) -> frozenset[int]:
    return frozenset(FT2Font(file).get_charmap())
