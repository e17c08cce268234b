"""Vocabularies of registered data sets."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dcp_clip.data.vocabularies import dataset_vocabulary, parse_vocabulary
from dcp_clip.vocabulary import Vocabulary, VocabularyError


def test_parse_accepts_data_sets_and_everything_else():
    vocabulary = Vocabulary(["sky"])
    assert parse_vocabulary(vocabulary) is vocabulary
    assert parse_vocabulary("camvid_sem_seg_val").display_names[6] == "sign symbol"
    assert parse_vocabulary("sky; tree").display_names == ("sky", "tree")


@pytest.mark.parametrize("name", ["street.train", "my street", "street:v1", "street/val"])
def test_any_name_of_a_data_set_is_accepted(name):
    DatasetCatalog.register(name, list)
    try:
        MetadataCatalog.get(name).set(stuff_classes=["road", "tree"])
        assert parse_vocabulary(f" {name}").display_names == ("road", "tree")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_misspelt_data_set_is_not_read_as_a_name():
    with pytest.raises(VocabularyError, match="camvid_sem_seg_vall"):
        parse_vocabulary("camvid_sem_seg_vall")


@pytest.mark.parametrize(
    ("spec", "warning"),
    [
        ("emoji_scenes_unseen_tset", "Did you mean emoji_scenes_unseen_test"),
        ("my_data", "is not a registered data set"),
        ("sky", None),
        ("traffic_light; sky", None),
    ],
)
def test_warns_about_names_that_look_like_a_data_set(caplog, spec, warning):
    parse_vocabulary(spec)
    assert warning in caplog.text if warning else not caplog.text


def test_data_set_without_category_names():
    DatasetCatalog.register("nameless", list)
    try:
        with pytest.raises(VocabularyError, match="stuff_classes"):
            dataset_vocabulary("nameless")
    finally:
        DatasetCatalog.remove("nameless")
        MetadataCatalog.pop("nameless", None)
    with pytest.raises(VocabularyError, match="'nameless'"):
        dataset_vocabulary("nameless")
    assert "nameless" not in MetadataCatalog.list()
