"""Miniature benchmarks in their official formats, and how to prepare them."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.io import savemat

from dcp_clip.data.preparation.ade20k import prepare_ade20k_150, prepare_ade20k_847
from dcp_clip.data.preparation.coco_stuff import prepare_coco_stuff
from dcp_clip.data.preparation.pascal_context import (
    prepare_pascal_context_59,
    prepare_pascal_context_459,
)
from dcp_clip.data.preparation.pascal_voc import prepare_pascal_voc

STEMS = {"train": ("t0", "t1", "t2"), "val": ("v0", "v1")}
# Raw numbers of COCO-Stuff's PNGs that no category has.
COCO_UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
PC59_IDS = (
    "2 9 18 19 22 23 25 31 33 34 44 45 46 59 65 68 72 80 85 98 104 105 113 115 144 158 159 162 187 "
    "189 207 220 232 258 259 260 284 295 296 308 324 326 347 349 354 355 360 366 368 397 415 416 "
    "420 424 427 440 445 454 458"
)


@dataclass
class Case:
    """A miniature benchmark on disk.

    ``expected[folder][stem]`` is a prepared label map; ``archives`` are the names of the downloads
    of photographs and of label maps; ``conventional`` is the default input under the root.
    """

    name: str
    source: Path
    prepare: Callable
    kwargs: dict
    stems: dict[str, tuple[str, ...]]
    conventional: str
    archives: tuple[str, str]
    images: dict[str, Path] = field(default_factory=dict)
    label_files: dict[str, Path] = field(default_factory=dict)
    expected: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    suffix: str = ".png"

    @property
    def program(self):
        return f"datasets/prepare_{self.name}.py"

    def stems_of(self, folder):
        """The stems of each split of a prepared folder, which can lack splits."""
        present = self.expected[folder]
        kept = {split: [s for s in stems if s in present] for split, stems in self.stems.items()}
        return {split: stems for split, stems in kept.items() if stems}

    def run(self, root, **kwargs):
        self.prepare(self.source, root, **{**self.kwargs, **kwargs})


def write_image(path, shape):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.stem) + ord(path.stem[-1])).integers(0, 256, (*shape, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path


def _write_label(path, array, palette=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    image.save(path)
    return path


def _fill(values, shape, seed):
    """A label map in which every value occurs."""
    values = np.random.default_rng(seed).permutation(np.asarray(values))
    return np.resize(values, shape)


def _png_case(case, folders, values, to_train_ids, shape, palette=False):
    """Images and 8-bit label maps in two folders a split."""
    for split, stems in case.stems.items():
        for i, stem in enumerate(stems):
            image_dir, label_dir = folders[split]
            raw = _fill(values, shape, i).astype(np.uint8)
            case.images[stem] = write_image(case.source / image_dir / f"{stem}.jpg", shape)
            path = case.source / label_dir / f"{stem}.png"
            case.label_files[stem] = _write_label(path, raw, palette)
            for folder, function in to_train_ids.items():
                case.expected.setdefault(folder, {})[stem] = function(raw.astype(int))
    return case


def _start(prepare, root, archives, stems=STEMS, conventional=None, **kwargs):
    counts = {"image_counts": {split: len(s) for split, s in stems.items()}}
    return Case(
        prepare.__name__.removeprefix("prepare_"),
        root / conventional,
        prepare,
        kwargs or counts,
        stems,
        conventional,
        archives,
    )


def make_coco_stuff(root):
    case = _start(
        prepare_coco_stuff,
        root,
        ("train2017.zip", "stuffthingmaps_trainval2017.zip"),
        conventional="coco",
    )
    used = [i for i in range(182) if i not in COCO_UNUSED]
    rank = np.full(256, 255)
    rank[used] = range(171)
    folders = {s: (f"{s}2017", f"stuffthingmaps/{s}2017") for s in STEMS}
    rules = {
        "coco_stuff": lambda x: rank[x],
        "coco_object": lambda x: np.where(rank[x] < 80, rank[x] + 1, 0),
    }
    _png_case(case, folders, [*used, 255], rules, (12, 15))
    case.expected["coco_object"] = {s: case.expected["coco_object"][s] for s in STEMS["val"]}
    return case


def make_ade20k_150(root):
    archive = "ADEChallengeData2016.zip"
    case = _start(prepare_ade20k_150, root, (archive, archive), conventional="ADEChallengeData2016")
    folders = {
        s: (f"images/{f}", f"annotations/{f}")
        for s, f in (("train", "training"), ("val", "validation"))
    }
    rule = {"ade20k_150": lambda x: np.where(x == 0, 255, x - 1)}
    return _png_case(case, folders, range(151), rule, (12, 13))


def make_pascal_voc(root, labels="SegmentationClassAug"):
    case = _start(
        prepare_pascal_voc,
        root,
        ("VOCtrainval_11-May-2012.tar", "SegmentationClassAug.zip"),
        {"val": STEMS["val"]},
        "VOCdevkit/VOC2012",
        image_count=2,
    )
    ids = case.source / "ImageSets/Segmentation/val.txt"
    ids.parent.mkdir(parents=True, exist_ok=True)
    ids.write_text("v0\nv1\n")
    rules = {
        "pascal_voc_20": lambda x: np.where((x == 0) | (x == 255), 255, x - 1),
        "pascal_voc_20b": lambda x: np.where(x == 0, 20, np.where(x == 255, 255, x - 1)),
        "pascal_voc_21": lambda x: x,
    }
    folders = {"val": ("JPEGImages", labels)}
    palette = labels == "SegmentationClass"
    _png_case(case, folders, [*range(21), 255], rules, (5, 9), palette)
    write_image(case.source / "JPEGImages" / "of_another_split.jpg", (5, 9))
    return case


def make_ade20k_847(root, shape=(9, 13)):
    archives = ("ADE20K_2021_17_01",) * 2
    case = _start(prepare_ade20k_847, root, archives, conventional=archives[0])
    case.kwargs |= {"splits": ("train", "val"), "original_size": True}
    case.suffix = ".tif"
    # Raw labels of some categories, with the first and the last; 0, 1 and 3500 are none.
    train_ids = {2978: 0, 312: 1, 2420: 2, 2855: 3, 1089: 844, 2826: 845, 3148: 846}
    rng = np.random.default_rng(0)
    for split, folder in (("train", "training"), ("val", "validation")):
        for i, stem in enumerate(case.stems[split]):
            raw = _fill([*train_ids, 0, 1, 3500], shape, i)
            red, blue = raw // 256 * 10 + rng.integers(0, 10, shape), rng.integers(0, 256, shape)
            rgb = np.stack([red, raw % 256, blue], axis=-1).astype(np.uint8)
            place = case.source / "images/ADE" / folder / f"scene{i}" / "place"
            case.images[stem] = write_image(place / f"{stem}.jpg", shape)
            case.label_files[stem] = _write_label(place / f"{stem}_seg.png", rgb)
            # Other files of the official tree: parts and instances.
            _write_label(place / f"{stem}_parts_1.png", rgb)
            _write_label(place / stem / f"instance_000_{stem}.png", rgb[..., 0])
            expected = np.vectorize(lambda x: train_ids.get(x, 65535))(raw)
            case.expected.setdefault("ade20k_847", {})[stem] = expected
    return case


def _start_context(prepare, root, archive):
    case = _start(
        prepare,
        root,
        ("VOCtrainval_03-May-2010.tar", archive),
        {"val": STEMS["val"]},
        "VOCdevkit/VOC2010",
        image_count=2,
        val_ids=root / "ids.txt",
    )
    root.mkdir(parents=True, exist_ok=True)
    (root / "ids.txt").write_text("v1\nv0\n")
    for stem in STEMS["val"]:
        case.images[stem] = write_image(case.source / f"JPEGImages/{stem}.jpg", (17, 31))
    write_image(case.source / "JPEGImages" / "of_another_split.jpg", (17, 31))
    return case


def make_pascal_context_459(root, present=459):
    case = _start_context(prepare_pascal_context_459, root, "trainval.tar.gz")
    case.suffix = ".tif"
    (case.source / "trainval").mkdir()
    for i, stem in enumerate(STEMS["val"]):
        # Half of the categories in each image, because an image may hold at most 255.
        numbers = range(230 * i, min(230 * i + 230, present + 1))
        raw = _fill([*numbers, 0, 60000], (17, 31), i).astype(np.uint16)
        case.label_files[stem] = case.source / f"trainval/{stem}.mat"
        savemat(case.label_files[stem], {"LabelMap": raw})
        expected = np.where((raw == 0) | (raw == 60000), 65535, raw.astype(int) - 1)
        case.expected.setdefault("pascal_context_459", {})[stem] = expected
    return case


def detail_json(raw_maps):
    """PASCAL in Detail's annotation of label maps by stem; one image of another split."""
    content = {"images": [], "annos_segmentation": [], "categories": [], "info": {}}
    for number, (stem, raw) in enumerate([*raw_maps.items(), ("train", np.zeros((4, 4)))]):
        content["images"].append(
            {
                "image_id": number,
                "file_name": f"{stem}.jpg",
                "height": raw.shape[0],
                "width": raw.shape[1],
                "phase": "train" if stem == "train" else "val",
            }
        )
        # The first mask covers the whole image, so that the order of drawing matters.
        masks = [(454, np.ones_like(raw))] + [(int(v), raw == v) for v in np.unique(raw)]
        for category_id, mask in masks:
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            content["annos_segmentation"].append(
                {
                    "id": len(content["annos_segmentation"]),
                    "image_id": number,
                    "category_id": category_id,
                    "segmentation": {**rle, "counts": rle["counts"].decode()},
                }
            )
    return content


def make_pascal_context_59(root):
    case = _start_context(prepare_pascal_context_59, root, "trainval_merged.json")
    ids = [int(i) for i in PC59_IDS.split()]
    raw_maps = {stem: _fill([*ids, 0, 1, 459], (17, 31), i) for i, stem in enumerate(STEMS["val"])}
    path = case.source / "trainval_merged.json"
    path.write_text(json.dumps(detail_json(raw_maps)))
    for stem, raw in raw_maps.items():
        case.label_files[stem] = path
        rank = {category_id: i for i, category_id in enumerate(ids)}
        expected = np.vectorize(lambda x, rank=rank: rank.get(x, 255))(raw)
        case.expected.setdefault("pascal_context_59", {})[stem] = expected
        expected = np.vectorize(lambda x, rank=rank: rank.get(x, -1) + 1)(raw)
        case.expected.setdefault("pascal_context_60", {})[stem] = expected
    return case


MAKERS = {
    name.removeprefix("make_"): function
    for name, function in list(globals().items())
    if name.startswith("make_")
}
