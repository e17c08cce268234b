"""Fonts for names in any script."""

import matplotlib
import numpy as np
import pytest

from dcp_clip.utils import fonts
from dcp_clip.utils.fonts import font_for
from dcp_clip.utils.visualization import draw_overlay
from dcp_clip.vocabulary import Vocabulary

PRIVATE = "\U000f0000"  # no font has a glyph for a private character


@pytest.fixture(autouse=True)
def forget():
    """Forget the fonts and the warnings of other tests."""
    for function in (fonts._find_font, fonts._installed_fonts, fonts._warn_about):
        function.cache_clear()
    yield
    for function in (fonts._find_font, fonts._installed_fonts):
        function.cache_clear()


def test_the_default_font_has_european_scripts(caplog, monkeypatch):
    monkeypatch.setattr(fonts, "_installed_fonts", lambda: pytest.fail("not needed"))
    assert font_for("Straße, дерево", 20).getname()[0] == "DejaVu Sans"
    assert not caplog.records


@pytest.mark.parametrize(
    ("names", "package"),
    [
        (["天空", "树", "道路"], "fonts-noto-cjk"),
        (["하늘", "そら", "ソラ"], "fonts-noto-cjk"),
        (["आकाश", "ท้องฟ้า"], "fonts-noto-core"),
        (["🚗🚗", "🌳"], "fonts-symbola"),
        ([PRIVATE, PRIVATE * 2], "fonts-noto-core"),
    ],
)
def test_one_warning_names_the_package(caplog, monkeypatch, names, package):
    monkeypatch.setattr(fonts, "_installed_fonts", lambda: (fonts._DEFAULT_FONT, "missing.ttf"))
    vocabulary = Vocabulary(names)
    labels = np.arange(480 * 480).reshape(480, 480) % len(names)
    for _ in range(2):
        draw_overlay(np.zeros((480, 480, 3), np.uint8), labels, vocabulary)
    assert [f"apt install {package}'" in r.getMessage() for r in caplog.records] == [True]


def test_an_installed_font_is_found(caplog, monkeypatch, tmp_path):
    """Also one that is not in Matplotlib's stored list of fonts."""
    from matplotlib import font_manager

    folder = f"{matplotlib.get_data_path()}/fonts/ttf"
    names = ["DejaVuSans-Bold.ttf", "STIXGeneralItalic.ttf", "STIXGeneral.ttf"]
    damaged = tmp_path / "damaged.ttf"
    damaged.write_bytes(b"no font")
    files = [str(damaged), *(f"{folder}/{name}" for name in names)]
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: files)
    script = "\u2fff\u213c"  # not in DejaVu
    stix = fonts._charmap(f"{folder}/STIXGeneral.ttf") - fonts._charmap(fonts._DEFAULT_FONT)
    script = chr(min(stix))
    assert font_for(script, 20).getname() == ("STIXGeneral", "Regular")  # not the italic one
    assert not caplog.records
