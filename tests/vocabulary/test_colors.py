"""Fixed colours of common names. test_vocabulary.py tests the colours of other names."""

from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.colors import natural_colors


def test_common_names_have_natural_colours():
    names = list(natural_colors())
    vocabulary = Vocabulary([*names, "unheard-of thing"])
    for color in vocabulary.colors:
        assert max(color) >= 128 and min(color) < 150  # not close to black or white
    red, green, blue = vocabulary.colors[names.index("grass")]
    assert green > red > blue
    assert Vocabulary(["Grass"]).colors[0] == (red, green, blue)
