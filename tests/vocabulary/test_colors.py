"""Fixed colours of common names, and colours in files. test_vocabulary.py tests other colours."""

import pytest

from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import read_categories
from dcp_clip.vocabulary.colors import natural_colors


def test_common_names_have_natural_colours():
    names = list(natural_colors())
    vocabulary = Vocabulary([*names, "unheard-of thing"])
    for color in vocabulary.colors:
        assert max(color) >= 128 and min(color) < 150  # not close to black or white
    red, green, blue = vocabulary.colors[names.index("grass")]
    assert green > red > blue
    assert Vocabulary(["Grass"]).colors[0] == (red, green, blue)


@pytest.mark.parametrize("color", ["navy", " Navy ", "#000080", "rgba(0, 0, 128, 0.7)"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xml", '<View><Label value="sky" background="{}"/></View>'),
        ("a.json", '[{{"name": "sky", "color": "{}"}}]'),
        ("a.csv", 'name,color\nsky,"{}"\n'),
    ],
)
def test_colours_of_css(tmp_path, name, content, color):
    path = tmp_path / name
    path.write_text(content.format(color))
    assert read_categories(path)[0].color == (0, 0, 128)
