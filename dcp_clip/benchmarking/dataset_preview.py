"""The first images that a config trains on or evaluates, drawn with their labels."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.utils.env import seed_all_rng
from matplotlib.figure import Figure

from dcp_clip.data.dataset_mapper import SemSegDatasetMapper
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.utils.arguments import format_error
from dcp_clip.utils.atomic_files import atomic_write
from dcp_clip.utils.visualization import draw_overlay

_MAX_IMAGES = 8
_INCHES = 5  # width and height of each image in the picture


def load_records(name: str) -> tuple[list[dict], str]:
    """The records of a registered data set, or none and the reason."""
    try:
        return DatasetCatalog.get(name), ""
    except (DatasetError, OSError, KeyError) as error:
        return [], " ".join(format_error(error).split())


def count_images(
    names: Sequence[str], repeat_factors: Sequence[tuple[str, float]] = ()
) -> int | None:
    """Number of images of an epoch of data sets; None if it is unknown.

    Args:
        names: the data sets.
        repeat_factors: how often the images of some of them are used in an epoch.
    """
    counts = [len(load_records(name)[0]) or expected_count(name) for name in names]
    factors = dict(repeat_factors)
    if None in counts:
        return None
    return round(sum(n * factors.get(name, 1) for n, name in zip(counts, names, strict=True)))


def expected_count(name: str) -> int | None:
    """Number of images in the official split of a data set; None if it is unknown.

    The data set need not be prepared.
    """
    source = DatasetCatalog[name] if name in DatasetCatalog else None
    count = getattr(source, "keywords", {}).get("expected_count")
    try:
        return count() if callable(count) else count
    except DatasetError:  # known only from prepared data
        return None


def first_images(cfg: CfgNode, name: str, records: list[dict], count: int, train: bool) -> list:
    """Read the first images as the model gets them, augmented as in training or evaluation.

    Args:
        cfg: the config.
        name: name of the data set.
        records: its records.
        count: number of images.
        train: True for a batch of the training loader, in random order; False for the first images
            of the evaluation.

    Returns:
        Dicts with "image" (3, H, W) uint8 and "sem_seg" (H, W).

    Raises:
        DatasetError: if an image or a label map is wrong.
    """
    mapper = SemSegDatasetMapper(cfg, is_train=train, dataset_names=[name], with_labels=True)
    if not train:
        return [mapper(record) for record in records[:count]]
    seed_all_rng(max(cfg.SEED, 0))
    loader = build_detection_train_loader(
        records,
        mapper=mapper,
        total_batch_size=count,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=0,
    )
    return next(iter(loader))


def draw_images(images: Sequence[dict], name: str, path: Path) -> None:
    """Draw images with their labels and legends in a grid, as PNG.

    Args:
        images: as :func:`first_images` returns them; at most 8 are drawn.
        name: name of their data set.
        path: file to write.
    """
    vocabulary = dataset_vocabulary(name)
    images = images[:_MAX_IMAGES]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(_INCHES * columns, _INCHES * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, x in zip(grid.flat, images):
        pixels = np.ascontiguousarray(x["image"].permute(1, 2, 0).numpy())
        axes.imshow(draw_overlay(pixels, x["sem_seg"].numpy(), vocabulary))
        axes.set_title(Path(x["file_name"]).name)
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
