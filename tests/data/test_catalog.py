"""Registration of a folder of images and a folder of label maps."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from dcp_clip.data.catalog import datasets_root, load_sem_seg, register_sem_seg
from dcp_clip.data.pairing import DatasetError, pair_images_with_labels
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.engine import Trainer
from dcp_clip.structures import SemSegProposals
from dcp_clip.vocabulary import Vocabulary


@pytest.fixture
def folders(tmp_path):
    """Three photographs and their label maps."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    images.mkdir()
    labels.mkdir()
    for stem in ("b", "a", "c"):
        Image.new("RGB", (6, 4)).save(images / f"{stem}.jpg")
        Image.fromarray(np.zeros((4, 6), np.uint8)).save(labels / f"{stem}.png")
    return images, labels


@pytest.fixture
def name():
    """A name whose registration is removed after the test."""
    yield "test_sem_seg"
    if "test_sem_seg" in DatasetCatalog:
        DatasetCatalog.remove("test_sem_seg")
    MetadataCatalog.pop("test_sem_seg", None)


def test_root_is_detectron2s(monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/somewhere")
    assert str(datasets_root()) == "/somewhere"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert str(datasets_root()) == "datasets"


def test_register_and_load(folders, name):
    images, labels = folders
    register_sem_seg(name, images, labels, [["sky", "heaven"], "tree"], expected_count=3)
    records = DatasetCatalog.get(name)
    assert [record["image_id"] for record in records] == ["a", "b", "c"]
    assert records[1]["file_name"] == str(images / "b.jpg")
    assert records[1]["sem_seg_file_name"] == str(labels / "b.png")
    assert dataset_vocabulary(name) == Vocabulary([["sky", "heaven"], "tree"])


def test_a_name_in_use(folders, name):
    register_sem_seg(name, *folders, ["sky"])
    with pytest.raises(AssertionError):
        register_sem_seg(name, *folders, ["tree"])
    register_sem_seg(name, *folders, ["tree"], replace=True)
    assert MetadataCatalog.get(name).stuff_classes == ["tree"]


def test_incomplete_folders(folders):
    images, labels = folders
    with pytest.raises(DatasetError, match="3 images, not 4. Do this."):
        load_sem_seg(images, labels, expected_count=4, advice="Do this.")
    (labels / "b.png").rename(labels / "d.png")  # the same number, other names
    with pytest.raises(DatasetError, match="b.jpg has no label map"):
        load_sem_seg(images, labels)
    (images / "b.jpg").unlink()
    with pytest.raises(DatasetError, match="d.png has no image"):
        load_sem_seg(images, labels)
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        load_sem_seg(images, labels.parent / "nowhere")


def test_empty_folders(tmp_path):
    with pytest.raises(DatasetError, match="no image"):
        load_sem_seg(tmp_path, tmp_path)


def test_ambiguous_stem(folders):
    images, labels = folders
    Image.new("RGB", (6, 4)).save(images / "a.png")
    with pytest.raises(DatasetError, match="same stem"):
        load_sem_seg(images, labels)
    assert len(load_sem_seg(images, labels, image_ext=".jpg")) == 3


def test_accents_are_written_in_two_ways(folders):
    images, labels = folders
    (images / "a.jpg").rename(images / "Mu\u0308ll.jpg")  # as macOS does
    (labels / "a.png").rename(labels / "M\u00fcll.png")
    assert len(load_sem_seg(images, labels)) == 3


def test_colours_are_no_labels(folders):
    images, labels = folders
    Image.new("RGB", (6, 4)).save(labels / "a.png")
    with pytest.raises(DatasetError, match=r"a.png is no label map.*RGB.*single channel"):
        load_sem_seg(images, labels)


def test_the_values_of_a_palette_image_are_its_indices(folders, name, make_cfg, tmp_path):
    images, labels = folders
    for label in labels.iterdir():
        image = Image.fromarray(np.full((4, 6), 1, np.uint8))
        image.putpalette([9, 9, 9, 77, 88, 99])
        image.save(label)
    register_sem_seg(name, images, labels, ["sky", "tree"])
    cfg = make_cfg(opts={"OUTPUT_DIR": str(tmp_path), "DATALOADER.NUM_WORKERS": 0})
    assert "sem_seg" not in next(iter(Trainer.build_test_loader(cfg, name)))[0]
    cfg.MODEL.DCP_CLIP.PROPOSAL.NAME = "OracleProposal"  # the only one that reads the labels
    batch = next(iter(Trainer.build_test_loader(cfg, name)))
    assert (batch[0]["sem_seg"] == 1).all()
    evaluator = Trainer.build_evaluator(cfg, name)
    evaluator.reset()
    logits = torch.stack([torch.zeros(4, 6), torch.ones(4, 6)])
    ids = torch.arange(2)
    evaluator.process(
        batch, [{"sem_seg": SemSegProposals(logits, ids, 2), "proposals": {"ids": ids}}]
    )
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


def test_an_ignored_label_is_no_category(tmp_path):
    with pytest.raises(ValueError, match="ignored label.*'thing 255'.*300 on"):
        register_sem_seg(
            "test_ignored_sem_seg", tmp_path, tmp_path, [f"thing {i}" for i in range(300)]
        )
    assert "test_ignored_sem_seg" not in DatasetCatalog


@pytest.mark.parametrize("other", ["b.jpg", "b_mask.png"])
def test_a_label_map_with_another_name_is_mentioned(folders, other):
    (folders[1] / "b.png").rename(folders[1] / other)
    with pytest.raises(DatasetError, match=rf"There is '{other}', but its name must be 'b.png'\."):
        pair_images_with_labels(*folders)
