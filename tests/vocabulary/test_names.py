"""The category lists of the package have the size and the order of the benchmarks."""

import re
from collections import Counter

import pytest

from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import load_names

# Number of categories, sum of raw_ids, number of synonyms, number of changed spellings.
LISTS = {
    "camvid_11": (11, 55, 0, 0),
    "coco_stuff_171": (171, 15892, 0, 31),
    "ade20k_150": (150, 11325, 183, 0),
    "ade20k_847": (847, 1343266, 434, 1),
    "pascal_context_59": (59, 12378, 0, 3),
    "pascal_context_459": (459, 105570, 0, 96),
    "pascal_voc_20": (20, 210, 0, 3),
    "pascal_voc_20b": (59, 210, 0, 3),
    "pascal_voc_21": (21, 210, 0, 3),
    "pascal_context_60": (60, 12378, 0, 3),
    "coco_object_81": (81, 3516, 0, 0),
    "pascal_voc_20_sclip": (20, 0, 10, 0),
    "pascal_voc_21_sclip": (21, 0, 35, 1),
    "pascal_context_59_sclip": (59, 0, 0, 0),
    "pascal_context_60_sclip": (60, 0, 0, 0),
    "coco_object_81_sclip": (81, 0, 32, 1),
    "coco_stuff_171_sclip": (171, 0, 0, 0),
    "ade20k_150_sclip": (150, 0, 0, 0),
    "pascal_voc_20_maskclip": (20, 0, 0, 0),
    "pascal_context_59_maskclip": (59, 0, 0, 0),
    "coco_stuff_171_maskclip": (171, 0, 0, 0),
}
ROWS = [  # list, train id, raw id, name, official, synonyms
    ("coco_stuff_171", 0, 0, "person", "person", ()),
    ("coco_stuff_171", 11, 12, "stop sign", "stop sign", ()),
    ("coco_stuff_171", 79, 89, "toothbrush", "toothbrush", ()),
    ("coco_stuff_171", 80, 91, "banner", "banner", ()),
    ("coco_stuff_171", 161, 172, "wall", "wall-other", ()),
    ("coco_stuff_171", 133, 144, "playing field", "playingfield", ()),
    ("coco_stuff_171", 170, 181, "wood", "wood", ()),
    ("ade20k_150", 7, 8, "bed", "bed", ()),
    ("ade20k_150", 14, 15, "door", "door", ("double door",)),
    ("ade20k_150", 44, 45, "chest of drawers", None, ("chest", "bureau", "dresser")),
    ("ade20k_150", 130, 131, "screen", "screen", ("silver screen", "projection screen")),
    ("ade20k_150", 149, 150, "flag", "flag", ()),
    ("ade20k_847", 0, 2978, "wall", "wall", ()),
    ("ade20k_847", 62, 1948, "pool table", None, ("billiard table", "snooker table")),
    ("ade20k_847", 259, 3105, "dog", "dog", ("domestic dog", "canis familiaris")),
    ("ade20k_847", 449, 482, "check-in desk", "check-in-desk", ()),
    ("ade20k_847", 846, 3148, "adding machine", None, ("totalizer", "totaliser")),
    ("pascal_context_59", 0, 2, "aeroplane", "aeroplane", ()),
    ("pascal_context_59", 49, 397, "dining table", "diningtable", ()),
    ("pascal_context_59", 58, 458, "wood", "wood", ()),
    ("pascal_context_459", 2, 3, "air conditioner", "airconditioner", ()),
    ("pascal_context_459", 208, 209, "hot-air balloon", "hot-airballoon", ()),
    ("pascal_context_459", 430, 431, "unknown", "unknown", ()),
    ("pascal_context_459", 458, 459, "wool", "wool", ()),
    ("pascal_voc_20", 10, 11, "dining table", "diningtable", ()),
    ("pascal_voc_20", 15, 16, "potted plant", "pottedplant", ()),
    ("pascal_voc_20", 19, 20, "tv monitor", "tvmonitor", ()),
    ("pascal_voc_20b", 20, None, "bag", "bag", ()),
    ("pascal_voc_21_sclip", 4, None, "ship", "ship", ()),
    ("pascal_context_60_sclip", 50, None, "table", "table", ()),
    ("coco_object_81_sclip", 80, None, "toothbrush", "toothbrush", ()),
    ("coco_stuff_171_sclip", 9, None, "trafficlight", "trafficlight", ()),
    ("coco_stuff_171_maskclip", 168, None, "blind window", "blind window", ()),
]


@pytest.mark.parametrize("name", LISTS)
def test_counts_order_and_uniqueness(name):
    categories = load_names(name)
    raw_ids = [c.raw_id for c in categories if c.raw_id is not None]
    assert LISTS[name] == (
        len(categories),
        sum(raw_ids),
        sum(len(c.synonyms) for c in categories),
        sum(c.official != c.name for c in categories),
    )
    assert [c.train_id for c in categories] == list(range(len(categories)))
    assert len(set(raw_ids)) == len(raw_ids)
    assert len({c.all_names for c in categories}) == len(categories)
    for category in categories:
        assert len(set(category.all_names)) == len(category.all_names)
        for text in category.all_names:
            assert re.fullmatch(r"[a-z0-9](?:[a-z0-9'-]| (?! ))*", text), text


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_sample_rows(row):
    name, train_id, raw_id, text, official, synonyms = row
    category = load_names(name)[train_id]
    assert (category.raw_id, category.name, category.synonyms) == (raw_id, text, synonyms)
    assert category.official == (official or text)


@pytest.mark.parametrize("name", ["coco_stuff_171", "pascal_context_59", "pascal_voc_20"])
def test_raw_ids_ascend(name):
    raw_ids = [c.raw_id for c in load_names(name)]
    assert raw_ids == sorted(raw_ids)


def test_raw_ids_are_consecutive():
    for name in ("ade20k_150", "pascal_context_459", "pascal_voc_20"):
        assert all(c.raw_id == c.train_id + 1 for c in load_names(name))


def test_coco_omits_unused_raw_ids():
    raw_ids = {c.raw_id for c in load_names("coco_stuff_171")}
    assert set(range(182)) - raw_ids == {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}


@pytest.mark.parametrize(
    ("with_background", "without", "count"),
    [
        ("pascal_voc_21", "pascal_voc_20", 20),
        ("pascal_context_60", "pascal_context_59", 59),
        ("coco_object_81", "coco_stuff_171", 80),
        ("pascal_voc_21_sclip", "pascal_voc_20_sclip", 20),
        ("pascal_context_60_sclip", "pascal_context_59_sclip", 59),
    ],
)
def test_background_comes_first(with_background, without, count):
    background, *others = load_names(with_background)
    assert background.official == "background"
    assert [c.all_names for c in others] == [c.all_names for c in load_names(without)[:count]]


def test_pascal_voc_20b_is_voc_and_the_rest_of_pascal_context_59():
    voc, context, both = map(load_names, ("pascal_voc_20", "pascal_context_59", "pascal_voc_20b"))
    assert both[:20] == voc
    voc_names = {c.official for c in voc}
    assert [c.official for c in both[20:]] == [
        c.official for c in context if c.official not in voc_names
    ]
    assert all(c.raw_id is None for c in both[20:])


def test_pascal_context_lists_agree():
    """Both lists have the same raw_ids, and the same names with one exception."""
    full = load_names("pascal_context_459")
    differing = {
        c.name: full[c.raw_id - 1].name
        for c in load_names("pascal_context_59")
        if c.name != full[c.raw_id - 1].name
    }
    assert differing == {"dining table": "table"}


def test_changed_spelling_only_adds_spaces():
    """Without spaces, our names are PASCAL's own names, with these exceptions."""
    exceptions = {
        c.official: c.name
        for c in load_names("pascal_context_459")
        if c.name.replace(" ", "") != c.official
    }
    assert exceptions == {
        "casetterecorder": "cassette recorder",
        "eyeglass": "eyeglasses",
        "sunglass": "sunglasses",
        "tong": "tongs",
    }


@pytest.mark.parametrize(("name", "shared"), [("ade20k_150", 5), ("ade20k_847", 41)])
def test_ade20k_has_names_shared_by_categories(name, shared, caplog):
    """No warning is necessary, because the titles are different."""
    names = [c.all_names for c in load_names(name)]
    every = Counter(text for category in names for text in category)
    assert sum(count > 1 for count in every.values()) == shared
    vocabulary = Vocabulary(names, warn_shared=False)
    assert not caplog.records
    assert len(set(vocabulary.display_names)) == len(names)


def test_titles_of_categories_with_the_same_first_name():
    vocabulary = Vocabulary([c.all_names for c in load_names("ade20k_847")], warn_shared=False)
    assert [vocabulary.display_names[i] for i in (114, 191, 252)] == [
        "bag",
        "bag (traveling bag)",
        "bag (handbag)",
    ]
    assert vocabulary.index("bag (handbag)") == 252
    assert vocabulary.synonyms[252] == ("bag", "handbag", "pocketbook", "purse")
