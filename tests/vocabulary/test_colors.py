"""Colours that are right by nature; tests/test_vocabulary.py has those of other names."""

from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.colors import natural_colors


def test_everyday_names_have_the_colours_of_nature():
    names = list(natural_colors())
    vocabulary = Vocabulary([*names, "unheard-of thing"])
    for color in vocabulary.colors:
        assert max(color) >= 128 and min(color) < 150  # neither black nor white
    red, green, blue = vocabulary.colors[names.index("grass")]
    assert green > red > blue
    assert Vocabulary(["Grass"]).colors[0] == (red, green, blue)
