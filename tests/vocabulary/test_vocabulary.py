"""Vocabularies, and the strings and files from which they are created."""

import copy
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dcp_clip.vocabulary
from dcp_clip.vocabulary import Vocabulary, VocabularyError
from dcp_clip.vocabulary.categories import load_names

# Normalised names without separators, which the string format can express.
_word = st.text(st.characters(categories=["Ll", "Lu", "Nd"], codec="ascii"), min_size=1)
_names = st.lists(_word, min_size=1, max_size=3).map(" ".join)
_categories = st.lists(
    st.lists(_names, min_size=1, max_size=3, unique=True).map(tuple),
    min_size=1,
    max_size=6,
    unique_by=lambda category: frozenset(category),
)


def test_string_with_synonyms():
    vocabulary = Vocabulary.from_string("sky; tree; car, automobile")
    assert vocabulary.synonyms == (("sky",), ("tree",), ("car", "automobile"))
    assert vocabulary.display_names == ("sky", "tree", "car")
    assert len(vocabulary) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sky, tree", (("sky",), ("tree",))),
        ("sky, tree;", (("sky", "tree"),)),
        ("sky\n\ntree, bush\n", (("sky",), ("tree", "bush"))),
        ("sky, tree\n", (("sky",), ("tree",))),
        ("  traffic \t light ", (("traffic light",),)),
        ("Straße; 木; cafe\u0301", (("Straße",), ("木",), ("caf\u00e9",))),
        ("car, car, auto;", (("car", "auto"),)),
    ],
)
def test_separators_in_strings(text, expected):
    assert Vocabulary.from_string(text).synonyms == expected


@given(_categories)
def test_string_round_trip(categories):
    text = "; ".join(", ".join(names) for names in categories) + ";"
    assert Vocabulary.from_string(text).synonyms == tuple(categories)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "empty"),
        (["sky", " "], "Category 1 .* empty name"),
        (["sky", ["tree", ""]], "Category 1 .* empty name"),
        (["sky", []], "Category 1 .* no name"),
        (["sky", 3], "Category 1"),
        (["sky", [3]], "Category 1 .* not a string"),
        (["sky", "tree", "sky "], "categories 0 and 2 are 'sky'"),
        (
            ["a", "b", "a", ["c", "d"], "b", ["d", "c"], "b"],
            "0 and 2 are 'a'; 1, 4 and 6 are 'b'; 3 and 5 are 'c, d' ",
        ),
        (["sky", "a\x00b"], "Category 1 .* not text"),
        (["sky", "\ud800"], "Category 1 .* not text"),
        (["sky", "\u200b\u2060"], "Category 1 .* empty name"),
        ([["a", "b"], ["b", "a"]], "categories 0 and 1"),
        ("sky", "from_string"),
        ({"sky", "tree"}, "fixed order"),
        (None, "NoneType"),
    ],
)
def test_invalid_names(names, message):
    with pytest.raises(VocabularyError, match=message):
        Vocabulary(names)


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("\u200bsky", "sky"),
        ("!\u200b sky \u2060", "sky"),
        ("\u200b!sky", "sky"),
        ("traffic\u200b light\ufeff", "traffic light"),
        ("auto\u00admobile", "automobile"),
        ("\u200e sky \u200d\u200c", "sky"),
        ("\u200c\u0645\u06cc\u200c\u0634\u0648\u062f", "\u0645\u06cc\u200c\u0634\u0648\u062f"),
        ("\U0001f469\u200d\U0001f680", "\U0001f469\u200d\U0001f680"),  # astronaut
        ("\U0001f3f4\U000e0067\U000e007f", "\U0001f3f4\U000e0067\U000e007f"),  # flag
    ],
)
def test_invisible_characters(name, cleaned):
    assert Vocabulary([name, "road"]).display_names[0] == cleaned
    assert Vocabulary.from_string(f"{name}; road").display_names[0] == cleaned


@pytest.mark.parametrize("text", ["", " \n ", ";", "sky;;tree", "sky,,tree", ",", "sky; ,tree"])
def test_invalid_strings(text):
    with pytest.raises(VocabularyError):
        Vocabulary.from_string(text)


def test_invalid_lengths_and_colours():
    with pytest.raises(VocabularyError, match="1 colours for 2"):
        Vocabulary(["sky", "tree"], colors=[(0, 0, 0)])
    with pytest.raises(VocabularyError, match="3 display names for 2"):
        Vocabulary(["sky", "tree"], display_names=["a", "b", "c"])
    for color in [(0, 0), (0, 0, 256), (0, 0, 0.5), "red", 7]:
        with pytest.raises(VocabularyError, match="colour of 'sky'"):
            Vocabulary(["sky"], colors=[color])


def test_warns_once_about_a_shared_name(caplog):
    with caplog.at_level(logging.WARNING):
        Vocabulary([["screen", "silver screen"], ["monitor", "Screen"]])
        Vocabulary([["screen", "silver screen"], ["monitor", "Screen"]])
    assert [record.getMessage().count("screen") for record in caplog.records] == [1]


@given(st.lists(_names, min_size=1, max_size=8, unique_by=str.casefold), st.randoms())
def test_colours_depend_only_on_the_name(names, random):
    shuffled = random.sample(names, len(names))
    colors = dict(zip(names, Vocabulary(names).colors, strict=True))
    assert colors == dict(zip(shuffled, Vocabulary(shuffled).colors, strict=True))
    for color in colors.values():
        assert max(color) >= 128 and min(color) < 150  # not close to black or white


def test_colours_differ():
    names = load_names("camvid_11")
    colors = set(Vocabulary([category.name for category in names]).colors)
    assert len(colors) == len(names)
    many = Vocabulary([f"thing {i}" for i in range(1000)]).colors
    assert len(set(many)) > 990


def test_colours_of_the_user():
    vocabulary = Vocabulary(["sky", "tree"], colors=[(1, 2, 3), None])
    assert vocabulary.colors[0] == (1, 2, 3)
    assert vocabulary.colors[1] == Vocabulary(["tree"]).colors[0]


def test_many_names_and_long_names():
    vocabulary = Vocabulary([f"thing {i}" for i in range(20_000)])
    assert vocabulary.index("thing 19999") == 19_999
    assert len(pickle.loads(pickle.dumps(vocabulary))) == 20_000
    assert Vocabulary(["x" * 1000]).display_names == ("x" * 1000,)


def test_immutable_hashable_picklable():
    vocabulary = Vocabulary([["car", "auto"], "sky"], display_names=["Car", "Sky"])
    clone = pickle.loads(pickle.dumps(vocabulary))
    assert clone == vocabulary and hash(clone) == hash(vocabulary)
    assert clone.colors == vocabulary.colors and clone.index("auto") == 0
    assert copy.deepcopy({"vocabulary": vocabulary})["vocabulary"] == vocabulary
    with pytest.raises(AttributeError):
        vocabulary.colors = ()
    with pytest.raises(AttributeError):
        vocabulary.other = 1


def test_fingerprint_depends_only_on_names_and_their_order():
    base = Vocabulary(["sky", "tree"])
    assert base.fingerprint() == Vocabulary(["sky", "tree"], colors=[(0, 0, 9)] * 2).fingerprint()
    assert base != Vocabulary(["sky", "tree"], colors=[(0, 0, 9)] * 2)
    others = (["tree", "sky"], [["sky", "tree"]], ["sky, tree"], ["sky", "trees"])
    fingerprints = {Vocabulary(names).fingerprint() for names in others}
    assert len(fingerprints | {base.fingerprint()}) == 5
    assert base != "sky; tree"


def test_index():
    vocabulary = Vocabulary(
        [["car", "auto"], ["auto shop", "shop"], ["mall", "shop"]], display_names=["Car", "b", "c"]
    )
    assert [vocabulary.index(name) for name in ("car", "Car", " auto ", "auto shop")] == [
        0,
        0,
        0,
        1,
    ]
    with pytest.raises(VocabularyError, match="ambiguous"):
        vocabulary.index("shop")
    with pytest.raises(VocabularyError, match="Did you mean .*mall"):
        vocabulary.index("malls")


def test_text_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text(
        "\ufeff# street\nsky\n\ncar, automobile # any\ntree; bush\nc#\n", encoding="utf-8"
    )
    vocabulary = Vocabulary.from_file(path)
    assert vocabulary.synonyms == (("sky",), ("car", "automobile"), ("tree", "bush"), ("c#",))
    assert Vocabulary.parse(str(path)) == Vocabulary.parse(path) == vocabulary


def test_json_file(tmp_path):
    path = tmp_path / "names.json"
    path.write_text(
        json.dumps(
            {
                "categories": [
                    {"name": "sky", "synonyms": ["heaven"], "color": [1, 2, 3], "raw_id": 7},
                    {"name": "tree"},
                ]
            }
        )
    )
    vocabulary = Vocabulary.from_file(path)
    assert vocabulary.synonyms == (("sky", "heaven"), ("tree",))
    assert vocabulary.colors[0] == (1, 2, 3)
    path.write_text('["sky", ["car", "automobile"]]')
    assert Vocabulary.from_file(path).synonyms == (("sky",), ("car", "automobile"))


def test_parse_accepts_vocabularies_lists_strings_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vocabulary = Vocabulary(["sky"])
    assert Vocabulary.parse(vocabulary) is vocabulary
    assert Vocabulary.parse(["sky", ("car", "auto")]).synonyms == (("sky",), ("car", "auto"))
    assert Vocabulary.parse("sky") == vocabulary


@pytest.mark.parametrize("spec", ["missing.txt", "folder/missing.JSON"])
def test_missing_file_is_not_read_as_a_name(spec):
    with pytest.raises(VocabularyError, match=spec):
        Vocabulary.parse(spec)


def test_a_file_of_an_unknown_user():
    with pytest.raises(VocabularyError, match="'~nosuchuser/names.txt' does not exist"):
        Vocabulary.parse("~nosuchuser/names.txt")


def test_aliases_of_yaml_are_refused(tmp_path):
    """They would turn a short text into a very long list."""
    with pytest.raises(VocabularyError, match="line 1: a list of names cannot contain aliases"):
        Vocabulary.from_string("[&a [x, y], *a, *a]")
    path = tmp_path / "names.yaml"
    path.write_text("names:\n- &a sky\n- *a\n")
    with pytest.raises(VocabularyError, match="line 3: .*aliases"):
        Vocabulary.from_file(path)


def test_needs_neither_torch_nor_detectron2():
    # The subprocess replaces dcp_clip/__init__.py, which imports torch, by an empty package.
    code = (
        "import sys, types; package = types.ModuleType('dcp_clip');"
        "package.__path__ = [sys.argv[1]]; sys.modules['dcp_clip'] = package;"
        "import dcp_clip.vocabulary; sys.exit(bool({'torch', 'detectron2'} & set(sys.modules)))"
    )
    folder = Path(dcp_clip.vocabulary.__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code, folder]).returncode == 0
