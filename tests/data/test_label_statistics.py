"""Checks of all label maps of a data set: counts of the categories, and palettes."""

import numpy as np
import pytest
from PIL import Image

from dcp_clip.data.catalog import load_sem_seg
from dcp_clip.data.label_maps import read_palette
from dcp_clip.data.label_statistics import LabelCheck, check_palettes, count_labels, report_pixels
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.photographs import check_size
from dcp_clip.vocabulary import Vocabulary

NAMES = ["sky", "tree", "car"]
COLORS = [(10, 0, 0), (0, 20, 0), (0, 0, 30)]


def write(path, labels, palette=None):
    image = Image.fromarray(np.asarray(labels, np.uint8))
    if palette is not None:
        image.putpalette([channel for color in palette for channel in color])
    image.save(path)
    return path


def check(*files, vocabulary=None):
    check_palettes(files, map(read_palette, files), vocabulary)


def test_a_renumbered_palette_differs_from_the_others(tmp_path):
    a = write(tmp_path / "a.png", [[0, 1, 2]], COLORS)
    b = write(tmp_path / "b.png", [[0, 1, 1]], COLORS[:2])  # only the first colours
    check(a, b)
    c = write(tmp_path / "c.png", [[1, 0, 2]], [COLORS[1], COLORS[0], COLORS[2]])
    with pytest.raises(DatasetError, match=r"c.png gives the index 0 the colour \(0, 20, 0\).*a.p"):
        check(a, b, c)


def test_colours_of_unused_indices_do_not_matter(tmp_path):
    a = write(tmp_path / "a.png", [[0, 1, 1]], [*COLORS[:2], (1, 1, 1)])
    b = write(tmp_path / "b.png", [[0, 2, 2]], [COLORS[0], (2, 2, 2), COLORS[2]])
    check(a, b, write(tmp_path / "grey.png", [[0, 1, 2]]))


def test_a_palette_in_another_order_than_the_names(tmp_path):
    vocabulary = Vocabulary(NAMES, colors=COLORS)
    a = write(tmp_path / "a.png", [[0, 1, 2]], COLORS)
    check(a, vocabulary=vocabulary)
    a = write(tmp_path / "a.png", [[0, 1, 2]], COLORS[::-1])
    with pytest.raises(DatasetError, match=r"a.png .*index 0 \('sky'\) .*category 2 \('car'\)"):
        check(a, vocabulary=vocabulary)
    # Colours that are not those of the vocabulary prove nothing.
    check(
        write(tmp_path / "a.png", [[0, 1, 2]], [*COLORS[1::-1], (9, 9, 8)]), vocabulary=vocabulary
    )


def test_palettes_are_compared_although_the_first_file_has_one_category(tmp_path):
    vocabulary = Vocabulary(NAMES, colors=COLORS)
    files = [write(tmp_path / f"{i}.png", [[i, i, 255]], COLORS[::-1]) for i in (0, 0, 2)]
    with pytest.raises(DatasetError, match=r"2.png .*index 0 \('sky'\) .*category 2 \('car'\)"):
        check(tmp_path / "0.png", *files, vocabulary=vocabulary)
    check(*files[:2], vocabulary=vocabulary)


def test_counts(tmp_path):
    path = write(tmp_path / "a.png", [[0, 2, 2, 255]])
    assert count_labels(path, 3, 255).tolist() == [1, 0, 2, 1]
    for ignore, num_categories, label in ((255, 2, 2), (65535, 3, 255)):
        with pytest.raises(DatasetError, match=f"a.png holds the label {label}, but there are"):
            count_labels(path, num_categories, ignore)
    Image.fromarray(np.array([[0, -1]], np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(DatasetError, match="b.tif holds the label -1"):
        count_labels(tmp_path / "b.tif", 3, 255)
    Image.fromarray(np.array([[0, 2**30]], np.int32)).save(tmp_path / "b.tif")
    with pytest.raises(DatasetError, match=f"b.tif holds the label {2**30}"):
        count_labels(tmp_path / "b.tif", 3, 255)


def test_the_report_warns_of_categories_without_pixels(caplog):
    caplog.set_level("INFO")
    report_pixels("train", np.array([3, 0, 1000, 1]), NAMES, 255)
    assert "sky 0.30 (3), tree 0.00 (0), car 99.60 (1,000)," in caplog.text.replace("\n  ", " ")
    assert caplog.records[-1].levelname == "WARNING"
    assert "1 of 3 categories have no pixel" in caplog.text and "there: tree." in caplog.text


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ([0, 0, 0, 9], "train: all pixels have the ignored label 255"),
        ([4, 0, 0, 5], r"train: the label maps hold only 0 \('sky'\) and 255 .*masks"),
    ],
)
def test_useless_label_maps(pixels, message):
    with pytest.raises(DatasetError, match=message):
        report_pixels("train", np.array(pixels), NAMES, 255)
    report_pixels("train", np.array([4, 0, 0, 0]), NAMES, 255)  # a warning


def make_folders(tmp_path, labels):
    for i, label in enumerate(labels):
        for part in ("images", "labels"):
            (tmp_path / part).mkdir(exist_ok=True)
        write(tmp_path / "labels" / f"{i:04}.png", label)
        Image.new("RGB", (2, 1)).save(tmp_path / "images" / f"{i:04}.png")
    return tmp_path / "images", tmp_path / "labels"


def test_first_use_of_a_users_data_set(tmp_path, caplog):
    caplog.set_level("INFO")
    folders = make_folders(tmp_path, [[[0, 1]], [[1, 255]]])
    label_check = LabelCheck("street", Vocabulary(NAMES), 255)
    for _ in range(3):
        load_sem_seg(*folders, check=label_check)
    assert caplog.text.count("1 of 3 categories have no pixel") == 1
    assert "The data set 'street': 2 of 3 categories occur" in caplog.text


def test_the_size_of_every_label_map_is_checked(tmp_path):
    images, labels = make_folders(tmp_path, [[[0, 1]]] * 250)
    write(labels / "0001.png", [[0], [1]])  # not in the sample
    expected = r"labels/0001.png has the shape \(2, 1\), .*images/0001.png has .*\(1, 2\)"
    with pytest.raises(DatasetError, match=expected):
        load_sem_seg(images, labels, check=LabelCheck("street", Vocabulary(NAMES), 255))
    (images / "0001.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match="The photograph .*images/0001.png cannot be read"):
        load_sem_seg(images, labels, check=LabelCheck("street", Vocabulary(NAMES), 255))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_a_rotated_photograph_can_have_the_size_of_either_orientation(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3, 2)).save(path := tmp_path / f"a{suffix}", exif=exif)
    for size in ((3, 2), (2, 3)):
        check_size(path, write(tmp_path / "label.png", np.zeros(size)))
    with pytest.raises(DatasetError, match=r"label.png has the shape \(2, 2\)"):
        check_size(path, write(tmp_path / "label.png", np.zeros((2, 2))))


def test_a_large_data_set_is_sampled(tmp_path, caplog):
    caplog.set_level("INFO")
    folders = make_folders(tmp_path, [[[0, 1]]] * 250)
    load_sem_seg(*folders, check=LabelCheck("street", Vocabulary(NAMES), 255))
    assert "(84 of its 250 label maps were counted)" in " ".join(caplog.text.split())


def test_a_suspicious_sample_is_no_error_if_the_other_files_are_fine(tmp_path, caplog):
    labels = [[[0, 255]]] * 250
    folders = make_folders(tmp_path, labels)
    with pytest.raises(DatasetError, match="'street': the label maps hold only 0"):
        load_sem_seg(*folders, check=LabelCheck("street", Vocabulary(NAMES), 255))
    write(folders[1] / "0001.png", [[2, 1]])
    load_sem_seg(*folders, check=LabelCheck("street", Vocabulary(NAMES), 255))
