"""Registration of the benchmarks."""

import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import dcp_clip.data  # noqa: F401  registers
from dcp_clip.data.builtin import BENCHMARKS, register_benchmarks
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.vocabulary.categories import load_names

EXPECTED = {  # images, categories, ignored label
    "camvid_sem_seg_train": (367, 11, 255),
    "camvid_sem_seg_val": (101, 11, 255),
    "camvid_sem_seg_test": (233, 11, 255),
    "coco_stuff_sem_seg_train": (118287, 171, 255),
    "coco_stuff_sem_seg_val": (5000, 171, 255),
    "ade20k_150_sem_seg_train": (20210, 150, 255),
    "ade20k_150_sem_seg_val": (2000, 150, 255),
    "ade20k_847_sem_seg_train": (None, 847, 65535),
    "ade20k_847_sem_seg_val": (2000, 847, 65535),
    "pascal_context_59_sem_seg_val": (5104, 59, 255),
    "pascal_context_459_sem_seg_val": (5104, 459, 65535),
    "pascal_voc_20_sem_seg_val": (1449, 20, 255),
    "pascal_voc_20b_sem_seg_val": (1449, 59, 255),
    "pascal_voc_21_sem_seg_val": (1449, 21, 255),
    "pascal_context_60_sem_seg_val": (5104, 60, 255),
    "coco_object_sem_seg_val": (5000, 81, 255),
    "pascal_voc_20_sclip_sem_seg_val": (1449, 20, 255),
    "pascal_voc_21_sclip_sem_seg_val": (1449, 21, 255),
    "pascal_context_59_sclip_sem_seg_val": (5104, 59, 255),
    "pascal_context_60_sclip_sem_seg_val": (5104, 60, 255),
    "coco_object_sclip_sem_seg_val": (5000, 81, 255),
    "coco_stuff_sclip_sem_seg_val": (5000, 171, 255),
    "ade20k_150_sclip_sem_seg_val": (2000, 150, 255),
    "pascal_voc_20_maskclip_sem_seg_val": (1449, 20, 255),
    "pascal_context_59_maskclip_sem_seg_val": (5104, 59, 255),
    "coco_stuff_maskclip_sem_seg_val": (5000, 171, 255),
}


def test_the_table_is_complete():
    counts = {
        benchmark.dataset_name(split): count
        for benchmark in BENCHMARKS.values()
        for split, count in benchmark.counts.items()
    }
    assert counts == {name: count for name, (count, _, _) in EXPECTED.items()}


@pytest.mark.parametrize("name", EXPECTED)
def test_metadata(name):
    key, split = name.split("_sem_seg_")
    _, num_categories, ignore_label = EXPECTED[name]
    metadata = MetadataCatalog.get(name)
    assert len(set(metadata.stuff_classes)) == num_categories
    assert len(metadata.stuff_colors) == num_categories
    assert metadata.stuff_synonyms == [
        list(category.all_names) for category in load_names(BENCHMARKS[key].names)
    ]
    assert metadata.ignore_label == ignore_label
    folder = key.removesuffix("_sclip").removesuffix("_maskclip")
    assert metadata.image_root.endswith(f"{folder}/images/{split}")
    assert metadata.sem_seg_root.endswith(f"{folder}/labels/{split}")
    background = key == "pascal_voc_20b"
    assert metadata.evaluator_type == ("sem_seg_background" if background else "sem_seg")
    assert metadata.get("num_foreground") == (20 if background else None)
    assert len(dataset_vocabulary(name)) == num_categories


def test_a_background_of_several_names_is_called_background():
    metadata = MetadataCatalog.get("pascal_voc_21_sclip_sem_seg_val")
    assert metadata.stuff_classes[:2] == ["background", "aeroplane"]
    assert metadata.stuff_synonyms[0][:2] == ["sky", "wall"]


def test_colours_of_a_category_list():
    assert MetadataCatalog.get("camvid_sem_seg_val").stuff_colors[8] == [64, 0, 128]


def test_import_is_silent_and_changes_no_other_data_set():
    """In a process that registered Detectron2's own data sets first."""
    code = (
        "from detectron2.data import DatasetCatalog, MetadataCatalog, datasets\n"
        "before = {n: MetadataCatalog.get(n).as_dict() for n in DatasetCatalog.list()}\n"
        "functions = dict(DatasetCatalog)\n"
        "import dcp_clip.data\n"
        "assert len(before) > 20 and 'ade20k_sem_seg_val' in before\n"
        "assert all(DatasetCatalog[n] is f for n, f in functions.items())\n"
        "assert before == {n: MetadataCatalog.get(n).as_dict() for n in before}\n"
        "print(*sorted(set(DatasetCatalog.list()) - set(before)))\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    ours = [name for name in result.stdout.split() if not name.startswith("emoji_scenes_")]
    assert ours == sorted(EXPECTED)


@pytest.fixture
def root(tmp_path):
    register_benchmarks(tmp_path)
    yield tmp_path
    register_benchmarks()


@pytest.mark.parametrize("name", EXPECTED)
def test_missing_folder_names_the_prepare_command(name, root):
    key, split = name.split("_sem_seg_")
    folder = key.removesuffix("_sclip").removesuffix("_maskclip")
    script = "pascal_voc" if key.startswith("pascal_voc") else folder
    script = {"pascal_context_60": "pascal_context_59", "coco_object": "coco_stuff"}.get(
        script, script
    )
    with pytest.raises(DatasetError) as error:
        DatasetCatalog.get(name)
    assert str(root / folder / "images" / split) in str(error.value)
    assert f"python datasets/prepare_{script}.py --input FOLDER --root {root}" in str(error.value)


def test_incomplete_folder_names_the_prepare_command(root):
    folder = root / "ade20k_847"
    for kind, suffix in (("images", ".jpg"), ("labels", ".tif")):
        (folder / kind / "val").mkdir(parents=True)
        for stem in "ab":
            (folder / kind / "val" / f"{stem}{suffix}").touch()
    with pytest.raises(DatasetError, match=r"2 images, not 2000.*prepare_ade20k_847.py"):
        DatasetCatalog.get("ade20k_847_sem_seg_val")
    (folder / "labels" / "val" / "b.tif").rename(folder / "labels" / "val" / "b.png")
    with pytest.raises(DatasetError, match=r"b.jpg has no label map.*prepare_ade20k_847.py"):
        DatasetCatalog.get("ade20k_847_sem_seg_val")
