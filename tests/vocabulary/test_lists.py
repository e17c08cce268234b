"""Lists with one category in each line: numbers in front of the names."""

import json

import pytest

from dcp_clip.vocabulary import Vocabulary


@pytest.mark.parametrize("names", [("7 up", "3 musketeers"), ("0 road",), ("1 road", "3 car")])
def test_names_with_numbers_stay_names(tmp_path, caplog, names):
    """The numbers may be ids, so a warning says how to write ids."""
    path = tmp_path / "a.txt"
    path.write_text("\n".join(names))
    assert Vocabulary.from_file(path).display_names == names
    assert f"The names in {path} begin with numbers, for example '{names[0]}'" in caplog.text
    assert f"such as '{names[0].replace(' ', ': ', 1)}'" in caplog.text


def test_numbers_in_another_order_are_ids(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("2 car\n0 road\n1 tree\n")
    assert Vocabulary.from_file(tmp_path / "a.txt").display_names == ("road", "tree", "car")
    assert not caplog.records


@pytest.mark.parametrize(
    "ids, example",
    [([1], "ids: id 1 is category 0. "), ([3, 1, 7], "id 1 is category 0, id 7 is category 2. ")],
)
def test_ids_that_are_not_the_numbers_of_the_categories_give_a_warning(
    tmp_path, caplog, ids, example
):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"categories": [{"id": i, "name": f"thing {i}"} for i in ids]}))
    vocabulary = Vocabulary.from_file(path)
    assert vocabulary.synonyms == tuple((f"thing {i}",) for i in sorted(ids))
    assert f"{path}: the ids are not" in caplog.text and example in caplog.text
