"""Prepare PASCAL-Context: 59 categories (PC-59), with background (PC-60), and 459 (PC-459)."""

import json
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from dcp_clip.data.builtin import BENCHMARKS
from dcp_clip.data.label_maps import IGNORE_LABEL_16
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.preparation.file_lists import (
    check_files,
    pair_listed,
    read_ids,
    require_folder,
)
from dcp_clip.data.preparation.label_encoding import label_encoding, with_background
from dcp_clip.data.preparation.program import prepare_dataset
from dcp_clip.vocabulary.categories import load_names

logger = logging.getLogger(__name__)

PC59, PC60, PC459 = (BENCHMARKS[f"pascal_context_{number}"] for number in (59, 60, 459))
ANNOTATIONS = "trainval_merged.json"
_PHOTOGRAPHS = (
    "JPEGImages is in VOCtrainval_03-May-2010.tar of host.robots.ox.ac.uk/pascal/VOC/voc2010"
)
PC59_SOURCE = (
    f"{_PHOTOGRAPHS}; {ANNOTATIONS} is the annotation of the PASCAL in Detail challenge, "
    "sites.google.com/view/pasd; see datasets/README.md."
)
PC459_SOURCE = (
    f"{_PHOTOGRAPHS}, trainval/*.mat is in trainval.tar.gz of "
    "cs.stanford.edu/~roozbeh/pascal-context; see datasets/README.md."
)


def prepare_pascal_context_59(
    source: Path | None,
    root: Path,
    *,
    val_ids: Path,
    workers: int = 1,
    image_count: int = PC59.counts["val"],
) -> None:
    """Write ``<root>/pascal_context_59`` and ``<root>/pascal_context_60``; skip finished files.

    Args:
        source: the folder VOC2010; None for VOCdevkit/VOC2010 in `root`.
        root: folder of all data sets.
        val_ids: file that lists the validation images, to compare with the list in the JSON.
        workers: number of processes.
        image_count: required number of validation images.

    Raises:
        DatasetError: if the input is incomplete. Nothing is written then.
    """
    source = source or root / "VOCdevkit" / "VOC2010"
    photographs = source / "JPEGImages"
    require_folder(source, PC59_SOURCE, what="The input folder")
    require_folder(photographs, PC59_SOURCE)  # checked first: the JSON takes minutes
    listed = set(read_ids(val_ids, expected_count=image_count))
    label_maps = read_val_label_maps(source / ANNOTATIONS)
    if len(label_maps) != image_count:
        raise DatasetError(
            f"{source / ANNOTATIONS} has {len(label_maps)} validation images, not {image_count}.",
            PC59_SOURCE,
        )
    absent, added = sorted(listed - label_maps.keys()), sorted(label_maps.keys() - listed)
    if absent:
        logger.warning(
            "The validation split of %s differs from %s: it lacks %d images (%s, ...) and has as "
            "many others (%s, ...). PC-59 uses the split of the JSON; PC-459 uses the other one.",
            source / ANNOTATIONS,
            val_ids,
            len(absent),
            absent[0],
            added[0],
        )
    images = {stem: photographs / f"{stem}.jpg" for stem in label_maps}
    check_files(photographs, list(images.values()), advice=PC59_SOURCE)
    pairs = [(images[stem], label_map) for stem, label_map in label_maps.items()]
    plain = label_encoding(load_names(PC59.names), decode_rle)
    for key, encoding in {PC59.key: plain, PC60.key: with_background(plain)}.items():
        logger.info("%s:", key)
        prepare_dataset(root / key, {"val": pairs}, encoding, workers=workers)


def prepare_pascal_context_459(
    source: Path | None,
    root: Path,
    *,
    val_ids: Path,
    workers: int = 1,
    image_count: int = PC459.counts["val"],
) -> None:
    """Write ``<root>/pascal_context_459``; skip finished files.

    Args:
        source: the folder VOC2010; None for VOCdevkit/VOC2010 in `root`.
        root: folder of all data sets.
        val_ids: file that lists the validation images.
        workers: number of processes.
        image_count: required number of validation images.

    Raises:
        DatasetError: if the input is incomplete. Nothing is written then.
    """
    source = source or root / "VOCdevkit" / "VOC2010"
    require_folder(source, PC459_SOURCE, what="The input folder")
    pairs = pair_listed(
        read_ids(val_ids, expected_count=image_count),
        source / "JPEGImages",
        source / "trainval",
        label_ext=".mat",
        advice=PC459_SOURCE,
    )
    encoding = label_encoding(
        load_names(PC459.names), read_mat_label_map, ignore_label=IGNORE_LABEL_16
    )
    prepare_dataset(root / PC459.key, {"val": pairs}, encoding, workers=workers)


@dataclass(frozen=True)
class RleLabelMap:
    """The label map of one image as masks in COCO's run-length encoding.

    Attributes:
        name: its name in messages.
        height, width: size of the image in pixels.
        masks: (category id, ``{"size": [height, width], "counts": ...}``) pairs. Where masks
            overlap, the later one counts, as in the Detail API and CAT-Seg's conversion.
    """

    name: str
    height: int
    width: int
    masks: tuple[tuple[int, dict], ...]

    def __str__(self) -> str:
        return self.name


def read_val_label_maps(path: Path) -> dict[str, RleLabelMap]:
    """Read the validation split of PASCAL in Detail's JSON.

    The function uses ``images`` (image_id, file_name, height, width, phase) and
    ``annos_segmentation`` (image_id, category_id, segmentation in COCO's run-length encoding).

    Returns:
        The label map of each image whose phase is "val", by the stem of its file, in the order of
        the JSON.

    Raises:
        DatasetError: if the file is missing, is not such a JSON, or has no mask for an image.
    """
    if not path.is_file():
        raise DatasetError(f"{path} does not exist.", PC59_SOURCE)
    logger.info("Reading %s, which takes minutes and some gigabytes of memory.", path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {i["image_id"]: i for i in content["images"] if i["phase"] == "val"}
        masks: dict[int, list[tuple[int, dict]]] = {image_id: [] for image_id in images}
        for a in content["annos_segmentation"]:
            if a["image_id"] in masks:
                masks[a["image_id"]].append((int(a["category_id"]), a["segmentation"]))
        label_maps = {
            Path(image["file_name"]).stem: RleLabelMap(
                f"{path} ({image['file_name']})",
                int(image["height"]),
                int(image["width"]),
                tuple(masks[image_id]),
            )
            for image_id, image in images.items()
        }
    except (ValueError, KeyError, TypeError) as e:
        raise DatasetError(
            f"{path} is not PASCAL in Detail's annotation, or is damaged: {e!r}.", PC59_SOURCE
        ) from e
    empty = [label_map for label_map in label_maps.values() if not label_map.masks]
    if empty:
        raise DatasetError(f"{empty[0]} has no mask ({len(empty)} such images).", PC59_SOURCE)
    return label_maps


def decode_rle(label_map: RleLabelMap) -> np.ndarray:
    """Draw the masks: (H, W) uint16 category ids, 0 for pixels without a mask.

    Raises:
        DatasetError: if a mask is malformed or has another size.
    """
    size = [label_map.height, label_map.width]
    raw = np.zeros(size, dtype=np.uint16)
    for category_id, rle in label_map.masks:
        try:
            if list(rle["size"]) != size:
                raise DatasetError(
                    f"{label_map} has a mask of {rle['size']} pixels (height, width), not {size}."
                )
            if isinstance(rle["counts"], list):  # not compressed
                rle = coco_mask.frPyObjects(rle, *size)
            raw[coco_mask.decode(rle) != 0] = category_id
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise DatasetError(f"{label_map} has a mask that cannot be read: {e!r}.") from e
    return raw


def read_mat_label_map(path: Path) -> np.ndarray:
    """Read ``LabelMap`` of a PASCAL-Context ``.mat`` file, (H, W) uint16.

    Raises:
        DatasetError: if the file cannot be read or holds no such matrix.
    """
    try:
        labels = loadmat(path, variable_names=["LabelMap"]).get("LabelMap")
    except (MatReadError, zlib.error, OSError, EOFError, ValueError, TypeError, LookupError) as e:
        raise DatasetError(f"The label map {path} cannot be read: {e}.") from e
    if labels is None or labels.ndim != 2 or labels.dtype.kind not in "uif" or not labels.size:
        raise DatasetError(f"{path} is no label map: it has no matrix LabelMap of numbers.")
    raw = labels.astype(np.uint16)
    if not np.array_equal(raw, labels):
        raise DatasetError(f"{path} is no label map: LabelMap does not hold whole numbers >= 0.")
    return raw
