"""Vocabulary, prompt templates and the files they come from."""

import copy
import json
import logging
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.vocabulary import Vocabulary, VocabularyError
from dcp_clip.vocabulary.categories import load_names

# Names that the string format can express: no separators, already in their one spelling.
_words = st.text(st.characters(categories=["Ll", "Lu", "Nd"], codec="ascii"), min_size=1)
_names = st.lists(_words, min_size=1, max_size=3).map(" ".join)
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
def test_string_separators(text, expected):
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
        (["sky", [3]], "Category 1 .* no string"),
        (["sky", "tree", "sky "], "categories 0 and 2 .* 'sky'"),
        ([["a", "b"], ["b", "a"]], "categories 0 and 1"),
        ("sky", "from_string"),
        ({"sky", "tree"}, "fixed order"),
        (None, "NoneType"),
    ],
)
def test_unusable_names(names, message):
    with pytest.raises(VocabularyError, match=message):
        Vocabulary(names)


@pytest.mark.parametrize("text", ["", " \n ", ";", "sky;;tree", "sky,,tree", ",", "sky; ,tree"])
def test_unusable_strings(text):
    with pytest.raises(VocabularyError):
        Vocabulary.from_string(text)


def test_wrong_lengths_and_colours():
    with pytest.raises(VocabularyError, match="1 colours for 2"):
        Vocabulary(["sky", "tree"], colors=[(0, 0, 0)])
    with pytest.raises(VocabularyError, match="3 display names for 2"):
        Vocabulary(["sky", "tree"], display_names=["a", "b", "c"])
    for color in [(0, 0), (0, 0, 256), (0, 0, 0.5), "red", 7]:
        with pytest.raises(VocabularyError, match="colour of 'sky'"):
            Vocabulary(["sky"], colors=[color])


def test_shared_name_is_warned_about_once(caplog):
    with caplog.at_level(logging.WARNING):
        Vocabulary([["screen", "silver screen"], ["monitor", "Screen"]])
        Vocabulary([["screen", "silver screen"], ["monitor", "Screen"]])
    assert [record.getMessage().count("screen") for record in caplog.records] == [1]


@given(st.lists(_names, min_size=1, max_size=8, unique_by=str.casefold), st.randoms())
def test_colours_depend_on_the_name_only(names, random):
    shuffled = random.sample(names, len(names))
    colors = dict(zip(names, Vocabulary(names).colors, strict=True))
    assert colors == dict(zip(shuffled, Vocabulary(shuffled).colors, strict=True))
    for color in colors.values():
        assert max(color) >= 128 and min(color) < 150  # neither black nor white


def test_colours_are_well_apart():
    names = load_names("camvid_11")
    colors = set(Vocabulary([category.name for category in names]).colors)
    assert len(colors) == len(names)
    many = Vocabulary([f"thing {i}" for i in range(1000)]).colors
    assert len(set(many)) > 990


def test_given_colours_are_kept():
    vocabulary = Vocabulary(["sky", "tree"], colors=[(1, 2, 3), None])
    assert vocabulary.colors[0] == (1, 2, 3)
    assert vocabulary.colors[1] == Vocabulary(["tree"]).colors[0]


def test_twenty_thousand_and_one_and_long_names():
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


def test_fingerprint_is_of_names_and_their_order_only():
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


def test_text_file_of_one_line_is_one_category_and_warned_about(tmp_path, caplog):
    path = tmp_path / "names.txt"
    path.write_text("sky; tree; car")
    assert len(Vocabulary.from_file(path)) == 1
    assert str(path) in caplog.text


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "no category"),
        ("a.txt", "sky\ntree,\n", "line 2"),
        ("a.txt", "sky\nsky\n", "'sky'"),
        ("a.txt", b"sky\n\xff\xfe\n", "UTF-8"),
        ("a.json", "{", "JSON"),
        ("a.json", "3", "categories"),
        ("a.json", "[]", "no category"),
        ("a.json", '[{"nam": "sky"}]', "category 0"),
        ("a.json", '[{"name": "sky", "colour": [0, 0, 0]}]', "'colour'"),
        ("a.json", '[{"name": "sky", "train_id": 1}]', "train_id is 1"),
        ("a.json", '[{"name": "sky", "color": [0, 0]}]', "colour of 'sky'"),
        ("a.csv", "sky", "must end in"),
    ],
)
def test_unusable_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(VocabularyError, match=message) as error:
        Vocabulary.from_file(path)
    assert str(path) in str(error.value)


def test_parse_tries_files_then_datasets_then_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vocabulary = Vocabulary(["sky"])
    assert Vocabulary.parse(vocabulary) is vocabulary
    assert Vocabulary.parse(["sky", ("car", "auto")]).synonyms == (("sky",), ("car", "auto"))
    assert Vocabulary.parse("camvid_sem_seg_val").display_names[6] == "sign symbol"
    assert Vocabulary.parse("sky; a.txt").display_names == ("sky", "a.txt")
    (tmp_path / "sky").write_text("a file by chance")
    assert Vocabulary.parse("sky") == vocabulary


@pytest.mark.parametrize("spec", ["missing.txt", "folder/missing.JSON", "camvid_sem_seg_vall"])
def test_parse_does_not_take_a_misspelt_source_for_a_name(spec):
    with pytest.raises(VocabularyError, match=spec):
        Vocabulary.parse(spec)


def test_dataset_without_names_is_refused():
    from detectron2.data import DatasetCatalog, MetadataCatalog

    DatasetCatalog.register("nameless", list)
    try:
        with pytest.raises(VocabularyError, match="stuff_classes"):
            dataset_vocabulary("nameless")
    finally:
        DatasetCatalog.remove("nameless")
        MetadataCatalog.pop("nameless", None)
    with pytest.raises(VocabularyError, match="No dataset 'nameless'"):
        dataset_vocabulary("nameless")
    assert "nameless" not in MetadataCatalog.list()


def test_needs_no_torch():
    # Through -c in a fresh interpreter: this one has torch already. The package's __init__ is
    # stepped over, as what it imports is not this module's doing.
    code = (
        "import importlib.machinery as m, sys, types; p = types.ModuleType('dcp_clip');"
        "p.__path__ = [sys.argv[1]]; sys.modules['dcp_clip'] = p;"
        "import dcp_clip.vocabulary; sys.exit('torch' in sys.modules)"
    )
    import dcp_clip.vocabulary

    folder = dcp_clip.vocabulary.__file__.rsplit("/", 1)[0]
    assert subprocess.run([sys.executable, "-c", code, folder]).returncode == 0


@pytest.mark.parametrize(
    ("spec", "warning"),
    [
        ("emoji_scenes_unseen_tset", "Did you mean emoji_scenes_unseen_test"),
        ("my_data", "is no registered dataset"),
        ("sky", None),
        ("traffic_light; sky", None),
    ],
)
def test_a_mistyped_dataset_is_warned_of(caplog, spec, warning):
    Vocabulary.parse(spec)
    assert warning in caplog.text if warning else not caplog.text
