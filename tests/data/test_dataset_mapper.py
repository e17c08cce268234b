"""From files to the records that the model reads."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from PIL import Image

from dcp_clip.data.augmentation import ResizeForTest, build_sem_seg_augmentations
from dcp_clip.data.dataset_mapper import SemSegDatasetMapper
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.vocabulary import Vocabulary

VOCABULARY = Vocabulary(["left", "right"])


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.MIN_SIZE_TRAIN = (24, 32)
    cfg.INPUT.MAX_SIZE_TRAIN = 80
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE = "absolute"
    cfg.INPUT.CROP.SIZE = [16, 20]
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 0.75
    cfg.INPUT.COLOR_AUG_SSD = True
    return cfg


@pytest.fixture
def dataset_dict(tmp_path) -> dict:
    """Red with label 0 on the left, blue with label 1 on the right, an ignored row below."""
    image = np.zeros((30, 40, 3), np.uint8)
    image[:, :20, 0] = image[:, 20:, 2] = 200
    label = np.zeros((30, 40), np.uint8)
    label[:, 20:] = 1
    label[-1] = 255
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(label).save(tmp_path / "label.png")
    return {
        "file_name": str(tmp_path / "image.png"),
        "sem_seg_file_name": str(tmp_path / "label.png"),
    }


def make_mapper(augmentations=(), num_labels=2, ignored_labels=(255,), **kwargs):
    return SemSegDatasetMapper(
        True,
        augmentations=augmentations,
        num_labels=num_labels,
        ignored_labels=ignored_labels,
        **kwargs,
    )


def make_training_mapper(cfg: CfgNode, **kwargs) -> SemSegDatasetMapper:
    return make_mapper(build_sem_seg_augmentations(cfg), vocabulary=VOCABULARY, **kwargs)


def test_from_config(cfg):
    """Like Detectron2's own: ``SemSegDatasetMapper(cfg, is_train)``."""
    cfg.DATASETS.TRAIN = ("camvid_sem_seg_train", "camvid_sem_seg_val")
    cfg.DATASETS.TEST = ("ade20k_847_sem_seg_val",)
    mapper = SemSegDatasetMapper(cfg, is_train=True)
    assert isinstance(mapper, DatasetMapper) and mapper.is_train
    assert (mapper.num_labels, mapper.ignored_labels) == (11, (255,))
    assert mapper.vocabulary is None and len(mapper.augmentations.augs) == 4
    mapper = SemSegDatasetMapper(cfg, is_train=False, with_labels=False)
    assert (mapper.num_labels, mapper.ignored_labels) == (847, (65535,))
    assert mapper.vocabulary == dataset_vocabulary("ade20k_847_sem_seg_val")
    assert isinstance(mapper.augmentations.augs[0], ResizeForTest) and not mapper.with_labels


def test_training_record(cfg, dataset_dict):
    before = dict(dataset_dict)
    mapper = make_training_mapper(cfg)
    for _ in range(20):
        record = mapper(dataset_dict)
        assert record["vocabulary"] is VOCABULARY
        assert record["image"].shape == (3, 16, 20) and record["image"].dtype == torch.uint8
        assert record["sem_seg"].shape == (16, 20) and record["sem_seg"].dtype == torch.int64
        assert set(record["sem_seg"].unique().tolist()) <= {0, 1, 255}
    assert dataset_dict == before


def test_labels_in_evaluation_have_the_size_of_the_file(cfg, dataset_dict):
    """The oracle proposes what they contain, also the smallest object."""
    cfg.INPUT.MIN_SIZE_TEST = 8
    options = {"num_labels": 2, "ignored_labels": [255]}
    mapper = SemSegDatasetMapper(False, augmentations=[ResizeForTest(cfg)], **options)
    record = mapper(dataset_dict)
    assert record["image"].shape[1] == 8 and record["sem_seg"].shape == (30, 40)


def test_labels_stay_with_their_pixels(cfg, dataset_dict):
    cfg.INPUT.COLOR_AUG_SSD = False
    mapper = make_training_mapper(cfg)
    for _ in range(10):
        record = mapper(dataset_dict)
        red, _, blue = record["image"].long()
        assert (record["sem_seg"][red > 150] != 1).all()
        assert (record["sem_seg"][blue > 150] != 0).all()


def test_mapper_and_record_can_be_pickled(cfg, dataset_dict):
    mapper = pickle.loads(pickle.dumps(make_training_mapper(cfg)))
    record = pickle.loads(pickle.dumps(mapper(dataset_dict)))
    assert record["vocabulary"] == VOCABULARY


def test_image_smaller_than_the_crop(cfg, dataset_dict):
    cfg.INPUT.CROP.SIZE = [500, 500]
    record = make_training_mapper(cfg)(dataset_dict)
    assert record["image"].shape[1:] == record["sem_seg"].shape
    assert record["sem_seg"].shape[0] in (24, 32)


def test_single_category_max_area(cfg, dataset_dict):
    np.random.seed(0)
    cfg.INPUT.MIN_SIZE_TRAIN = (30,)
    mapper = make_training_mapper(cfg)
    shares = []
    for _ in range(30):
        label = mapper(dataset_dict)["sem_seg"]
        counted = label[label != 255]
        shares.append(max((counted == c).float().mean().item() for c in (0, 1)))
    # RandomCrop_CategoryAreaConstraint stops after ten tries, so a few crops may exceed the limit.
    assert sum(share < 0.75 for share in shares) >= 25


def write_pair(folder, label: np.ndarray) -> dict:
    """A label map, 16-bit TIFF or 8-bit PNG by its dtype, and an image of its size."""
    suffix = ".tif" if label.dtype == np.uint16 else ".png"
    Image.fromarray(label).save(folder / f"label{suffix}")
    Image.new("RGB", label.shape[::-1]).save(folder / "image.png")
    return {
        "file_name": str(folder / "image.png"),
        "sem_seg_file_name": str(folder / f"label{suffix}"),
    }


def test_sixteen_bit_labels(tmp_path):
    """255 is a category like any other. Detectron2's mapper changes all labels above it to 255."""
    label = np.array([[0, 1, 254, 255], [256, 300, 846, 65535]], np.uint16)
    record = make_mapper((), 847, (65535,))(write_pair(tmp_path, label))
    assert record["sem_seg"].tolist() == label.tolist()
    assert record["sem_seg"].dtype == torch.int64
    assert (record["height"], record["width"]) == (2, 4)


def test_sixteen_bit_labels_are_augmented_as_eight_bit_ones(cfg, tmp_path):
    """The mapper's internal 8-bit codes must not change the result."""
    small = np.random.default_rng(0).integers(0, 5, (30, 40)).astype(np.uint8)
    meaning = np.array([0, 255, 256, 700, 65535], np.uint16)
    narrow = make_mapper(build_sem_seg_augmentations(cfg), 4, [4])
    wide = make_mapper(build_sem_seg_augmentations(cfg), 847, [65535])
    for label, mapper, records in ((small, narrow, []), (meaning[small], wide, [])):
        np.random.seed(3)
        records += [mapper(write_pair(tmp_path, label))["sem_seg"] for _ in range(3)]
        if mapper is narrow:
            expected = [r.where(r != 255, torch.tensor(4)) for r in records]
    for record, reference in zip(records, expected, strict=True):
        assert torch.equal(record, torch.as_tensor(meaning.astype(int))[reference])


@pytest.mark.parametrize("value", [20, 254])
def test_an_unknown_label_is_an_error(value, tmp_path):
    label = np.array([[0, 19], [255, value]], np.uint8)
    mapper = make_mapper(num_labels=20)
    with pytest.raises(DatasetError, match=rf"label.png holds the label {value}.*0 to 19 and 255"):
        mapper(write_pair(tmp_path, label))


def test_label_map_of_another_size(tmp_path):
    pair = write_pair(tmp_path, np.zeros((4, 6), np.uint8))
    Image.new("RGB", (4, 6)).save(pair["file_name"])
    with pytest.raises(DatasetError, match=r"label.png .* \(4, 6\), .*image.png has .*\(6, 4\)"):
        make_mapper()(pair)


def test_record_without_labels(tmp_path):
    pair = write_pair(tmp_path, np.zeros((4, 6), np.uint8))
    del pair["sem_seg_file_name"]
    record = make_mapper()(pair)
    assert "sem_seg" not in record and record["image"].shape == (3, 4, 6)


def test_background_is_ignored(cfg, tmp_path):
    """PAS-20b: category 20 of the vocabulary is "bag", but label 20 is everything outside VOC."""
    cfg.INPUT.MIN_SIZE_TEST = 0
    names = ["pascal_voc_20b_sem_seg_val"]
    mapper = SemSegDatasetMapper(cfg, is_train=False, dataset_names=names)
    record = mapper(write_pair(tmp_path, np.array([[0, 19, 20, 255]], np.uint8)))
    assert record["sem_seg"].tolist() == [[0, 19, 255, 255]]


def test_a_negative_label_is_an_error(tmp_path):
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "a.png")
    labels = np.zeros((4, 4), np.int32)
    labels[1] = -1
    Image.fromarray(labels).save(tmp_path / "b.tif")
    record = {"file_name": f"{tmp_path}/a.png", "sem_seg_file_name": f"{tmp_path}/b.tif"}
    with pytest.raises(DatasetError, match="b.tif holds the label -1"):
        make_mapper()(record)
    assert "sem_seg" not in make_mapper(with_labels=False)(record)


@pytest.mark.parametrize("rotated", [True, False])
def test_a_photograph_is_rotated_if_its_label_map_is(tmp_path, rotated):
    """With an EXIF rotation, label maps fit either the stored or the upright pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20] = 250
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=exif, quality=100)
    labels = (pixels[..., 0] > 100).astype(np.uint8)
    Image.fromarray(np.rot90(labels, -1) if rotated else labels).save(tmp_path / "a.png")
    record = {"file_name": f"{tmp_path}/a.jpg", "sem_seg_file_name": f"{tmp_path}/a.png"}
    record = make_mapper()(record)
    assert (record["height"], record["width"]) == ((40, 20) if rotated else (20, 40))
    assert ((record["image"][0] > 100) == (record["sem_seg"] == 1)).float().mean() > 0.95


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_rotated_tiff_is_rotated_once(tmp_path, mode):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (20, 40, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.tif", exif=exif)
    found = make_mapper()({"file_name": str(tmp_path / "a.tif")})["image"].permute(1, 2, 0)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(image.convert("RGB")), -1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_grey_photographs_of_sixteen_bits_keep_their_greys(tmp_path, suffix):
    """Detectron2's reader clips them at 255."""
    grey = np.arange(12, dtype=np.uint16).reshape(3, 4) * 20
    record = write_pair(tmp_path, np.zeros((3, 4), np.uint8))
    record["file_name"] = str(tmp_path / f"deep{suffix}")
    Image.fromarray(grey * 257).save(record["file_name"])
    image = make_mapper()(record)["image"]
    assert image.dtype == torch.uint8
    assert image.tolist() == [grey.tolist()] * 3


@pytest.mark.parametrize("damaged", ["image.png", "label.png"])
def test_a_damaged_file_is_named(tmp_path, damaged):
    noise = np.random.default_rng(0).integers(0, 2, (64, 64)).astype(np.uint8)
    record = write_pair(tmp_path, noise)
    Image.fromarray(noise * 200).convert("RGB").save(tmp_path / "image.png")
    content = (tmp_path / damaged).read_bytes()
    (tmp_path / damaged).write_bytes(content[: len(content) // 2])
    with pytest.raises(DatasetError, match=f"{damaged} cannot be read"):
        make_mapper()(record)


@pytest.mark.parametrize("is_train", [True, False])
def test_data_set_without_an_ignored_label_is_an_error(cfg, is_train):
    name = "test_mapper_without_ignore_label"
    MetadataCatalog.get(name).set(stuff_classes=["left", "right"])
    try:
        with pytest.raises(ValueError, match=f"'{name}' has no ignore_label: set it to"):
            SemSegDatasetMapper(cfg, is_train=is_train, dataset_names=[name])
    finally:
        MetadataCatalog.pop(name)
