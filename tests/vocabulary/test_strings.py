"""Vocabularies as strings: what is unambiguous is read, the rest is an error with the spelling."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcp_clip.vocabulary import Vocabulary, VocabularyError
from dcp_clip.vocabulary.categories import READERS

SKY_TREE_ROAD = (("sky",), ("tree",), ("road",))


@pytest.mark.parametrize(
    "text",
    [
        "sky . tree . road .",
        "sky . tree . road",
        "sky. tree. road",
        "sky. tree. road.",
        "sky | tree | road",
        "sky|tree|road|",
        "sky；tree；road",
        "sky，tree，road",
        "sky、tree、road",
        "sky؛ tree؛ road",
        "sky， tree, road",
        "sky；tree;\nroad",
        '["sky", "tree", "road"]',
        "['sky', 'tree', 'road']",
        "[sky, tree, road]",
        '  ["sky",\n "tree", ["road"]] ',
        '{"names": ["sky", "tree", "road"]}',
        "{0: sky, 1: tree, 2: road}",
        '"sky", "tree", "road"',
        "'sky'; 'tree'; 'road'",
        "“sky”, “tree”, “road”",
        "\ufeffsky; tree; road",
        '"sky"\u200b; \u2060"tree"; ro\u00adad',
        "sky\r\ntree\r\n\r\nroad\r\n",
    ],
)
def test_several_categories(text):
    assert Vocabulary.parse(text).synonyms == SKY_TREE_ROAD


def test_synonyms_with_other_separators():
    expected = (("天空",), ("车", "汽车"))
    assert Vocabulary.parse("天空；车，汽车").synonyms == expected
    assert Vocabulary.parse('["天空", ["车", "汽车"]]').synonyms == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("St. Bernard;", "St. Bernard"),
        ("cat.", "cat"),
        ("traffic light.", "traffic light"),
        ("no-entry sign", "no-entry sign"),
        ("rock 'n' roll", "rock 'n' roll"),
        ('["car/truck"]', "car/truck"),
        ("mp3", "mp3"),
        ("c++", "c++"),
        ("St.Bernard", "St.Bernard"),
    ],
)
def test_one_category(text, name):
    assert Vocabulary.parse(text).synonyms == ((name,),)


@pytest.mark.parametrize(
    "text",
    [
        "cup; !wine glass",
        'cup; !"wine glass"',
        'cup; "!wine glass"',
        "cup, ! 'wine glass'",
        "cup | ！“wine glass”",
        "['cup', '!wine glass']",
    ],
)
def test_marks_and_quotes(text):
    vocabulary = Vocabulary.parse(text)
    assert vocabulary.synonyms == (("cup",), ("wine glass",)) and vocabulary.negatives == (1,)


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("St. Bernard", "'St; Bernard'.*'St. Bernard;'"),
        ("J. R. R. Tolkien", "'J; R; R; Tolkien'"),
        ("car | auto; tree", "sky; tree; car, automobile"),
        ("car, auto | tree", "sky; tree; car, automobile"),
        ('"car, auto"; sky', "sky; tree; car, automobile"),
        ('!"car, auto"; sky', "sky; tree; car, automobile"),
        ("[sky, tree", r'\["sky", \["car", "automobile"\]\]'),
        ("[cup, !wine glass]", "line 1: .*'!wine glass' in quotes"),
        ("[cup, !hand]", "line 1: .*'!hand' in quotes"),
        ('{"sky": "tree"}', r'\["sky"'),
        ("0: sky, 1: tree", "sky; tree"),
        ("car/truck", r"'car, truck;'.*\[\"car/truck\"\]"),
        ("sky / tree", "'sky, tree;'"),
        ("sky\\ntree", "path"),
    ],
)
def test_an_ambiguous_string_is_an_error_with_the_right_spelling(text, spelling):
    with pytest.raises(VocabularyError, match=spelling) as error:
        Vocabulary.parse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "names.docx",
        "names.xlsx",
        "names.html",
        "model_final.pth",
        "photo.jpg",
        "photos/",
        "./photos",
        "../names",
        "~/names",
        "/data/names",
        "C:\\names",
        "data\\names",
        "https://example.org/names",
        "sky; names.csv",
        "sky, photo.JPG",
        '["names.csv"]',
        *(f"missing{suffix}" for suffix in READERS),
        *(f"folder/missing{suffix.upper()}" for suffix in READERS),
        "names, other.csv",
    ],
)
def test_a_path_is_not_a_category(text):
    with pytest.raises(VocabularyError):
        Vocabulary.parse(text)


@pytest.mark.parametrize("name", ["back\\slash", "a\\table", 'the "big" / sky', "天空/海"])
def test_the_advice_for_a_path_is_the_name(name):
    with pytest.raises(VocabularyError, match="looks like a path") as error:
        Vocabulary.parse(f"{name}; tree")
    advice = str(error.value).partition("write a list: ")[2]
    assert Vocabulary.parse(advice.removesuffix(".")).synonyms == ((name,),)


def test_files_and_folders_are_not_categories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sky").write_text("The name of this file has no extension.")
    (tmp_path / "tree.csv").mkdir()
    (tmp_path / "car").mkdir()
    for name in ("sky", "car"):
        with pytest.raises(VocabularyError, match=f"file or folder.*'{name};'"):
            Vocabulary.parse(name)
        assert Vocabulary.from_string(name).display_names == (name,)
        assert Vocabulary.parse(f"{name};").display_names == (name,)
        assert Vocabulary.parse(f"{name}, road").display_names == (name, "road")
    with pytest.raises(VocabularyError, match="tree.csv is a folder"):
        Vocabulary.parse("tree.csv")


def test_a_file_without_an_extension(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "names").write_text("sky\ntree\n")
    for text in ("names", "./names", "~/names", str(tmp_path / "names")):
        with pytest.raises(VocabularyError, match="is a file or folder.*end its name in .txt"):
            Vocabulary.parse(text)


@pytest.mark.parametrize("text", ["./names", "../names", "~/names", "names/"])
def test_a_folder_in_a_path_is_no_synonym(text):
    with pytest.raises(VocabularyError, match="looks like a path. If it is one name"):
        Vocabulary.parse(text)


def test_a_list_that_contains_a_file_is_an_error():
    for names in (["names.txt"], ("sky", "names.JSON")):
        with pytest.raises(VocabularyError, match="Give the file alone"):
            Vocabulary.parse(names)
    assert len(Vocabulary(["names.txt"])) == 1  # the constructor takes names as they are


@given(
    st.one_of(
        st.text(),
        st.text(st.sampled_from("ab ;,|.[]{}\"':/\\\n\t\r\0#&*!~-?%@`；，、\ufeff\ud800\u200b012")),
        st.recursive(
            st.sampled_from(["sky", "[", "]", "{", "}", ":", "a"]),
            lambda inner: st.lists(inner, min_size=1, max_size=4).map(", ".join),
        ),
    )
)
def test_only_vocabulary_errors_escape(text):
    try:
        vocabulary = Vocabulary.parse(text)
    except VocabularyError as error:
        assert str(error)
    else:
        assert len(vocabulary) > 0 and all(vocabulary.display_names)


@pytest.mark.parametrize("spec", [None, 3, b"sky", {"sky": 1}, [b"sky"], [["sky", 1]], object()])
def test_other_types_are_errors(spec):
    with pytest.raises(VocabularyError):
        Vocabulary.parse(spec)


@pytest.mark.parametrize("text", ["[" * 100_000, "{a: " * 50_000, "x" * 10_000 + ".txt", "a\0.txt"])
def test_hostile_strings(text):
    with pytest.raises(VocabularyError) as error:
        Vocabulary.parse(text)
    assert len(str(error.value)) < 600
