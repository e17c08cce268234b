"""Other projects' names for the same data sets."""

import re
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from dcp_clip.config import setup_cfg
from dcp_clip.data import resolve_dataset_name
from dcp_clip.data.aliases import PEER_NAMES
from dcp_clip.data.vocabularies import dataset_vocabulary, parse_vocabulary


def test_the_table_has_our_data_sets_and_no_other_registered_name():
    theirs = [name for names in PEER_NAMES.values() for name in names]
    assert all(ours in DatasetCatalog for ours in PEER_NAMES)
    assert not any(name in DatasetCatalog for name in theirs)
    assert len(set(theirs)) == len(theirs) >= 15


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("voc_2012_test_sem_seg", "pascal_voc_20_sem_seg_val"),
        ("voc_2012_test_background_sem_seg", "pascal_voc_20b_sem_seg_val"),
        ("ade20k_full_sem_seg_freq_val_all", "ade20k_847_sem_seg_val"),
        ("openvocab_ade20k_panoptic_val", "ade20k_150_sem_seg_val"),
        ("pcontext_full_sem_seg_val", "pascal_context_459_sem_seg_val"),
    ],
)
def test_config_and_vocabulary_replace_them(theirs, ours, caplog):
    cfg = setup_cfg("", ["DATASETS.TEST", f"('{theirs}', 'camvid_sem_seg_val')"])
    assert cfg.DATASETS.TEST == (ours, "camvid_sem_seg_val")
    assert f"'{theirs}' is '{ours}' here" in caplog.text
    assert parse_vocabulary(theirs) == dataset_vocabulary(ours)


@pytest.mark.parametrize(
    "name", ["ade20k_sem_seg_val", "pascal_context_59_sem_seg_val", "mine", "coco_2017_val_stuff"]
)
def test_other_names_stay(name, caplog):
    assert resolve_dataset_name(name) == name and not caplog.records
    assert setup_cfg("", ["DATASETS.TRAIN", f"('{name}',)"]).DATASETS.TRAIN == (name,)


def test_a_registered_name_stays():
    DatasetCatalog.register("voc_sem_seg_val", list)
    try:
        assert resolve_dataset_name("voc_sem_seg_val") == "voc_sem_seg_val"
    finally:
        DatasetCatalog.remove("voc_sem_seg_val")


def test_one_data_set_under_two_names():
    names = "('voc_2012_test_sem_seg', 'pascal_voc_20_sem_seg_val')"
    with pytest.raises(ValueError, match="both 'pascal_voc_20_sem_seg_val': remove one"):
        setup_cfg("", ["DATASETS.TEST", names])


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "datasets" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+_sem_seg_\w+)` \| (.*) \|$", page, flags=re.MULTILINE))
    found = {ours: tuple(re.findall(r"`(\w+)`", rows.get(ours, ""))) for ours in PEER_NAMES}
    assert found == PEER_NAMES
