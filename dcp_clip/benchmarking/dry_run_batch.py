"""A first batch of a training as a picture: what the model will be shown, and told."""

import math
import tempfile
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_train_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.utils.env import seed_all_rng
from PIL import Image

from dcp_clip.data.augmentation import build_sem_seg_augmentations
from dcp_clip.data.dataset_mapper import SemSegDatasetMapper
from dcp_clip.data.pairing import DatasetError
from dcp_clip.utils.arguments import format_error
from dcp_clip.utils.image_io import write_png
from dcp_clip.utils.visualization import draw_overlay
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import IGNORE_LABEL

_SIZE = (480, 640)  # of a synthetic photograph, (H, W): COCO's most frequent
_CELL = 80  # pixels; its categories are squares of this side
_GAP = 12  # pixels between the pictures of a batch
MAX_PICTURES = 8


def load_records(name: str) -> tuple[list[dict], str]:
    """The data set's records, or none and the sentence that says why."""
    try:
        return DatasetCatalog.get(name), ""
    except (DatasetError, OSError, KeyError) as error:
        return [], " ".join(format_error(error).split())


def expected_count(name: str) -> int | None:
    """Images of a data set's official split, prepared or not; None if nobody says."""
    source = DatasetCatalog[name] if name in DatasetCatalog else None
    count = getattr(source, "keywords", {}).get("expected_count")
    try:
        return count() if callable(count) else count
    except DatasetError:  # it is the data, not prepared yet, that tells it
        return None


def synthetic_records(folder: Path, count: int, num_categories: int) -> list[dict]:
    """Write `count` photographs of coloured squares, a category each, in Detectron2's format."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (num_categories, 3))
    records = []
    for i in range(count):
        palette = rng.choice(num_categories, min(num_categories, 6), replace=False)
        cells = rng.choice(palette, (_SIZE[0] // _CELL, _SIZE[1] // _CELL))
        labels = cells.repeat(_CELL, 0).repeat(_CELL, 1)
        image = colours[labels] // 2 + rng.integers(0, 128, (*_SIZE, 3))
        # Label maps of 8 bits: categories beyond are not drawn.
        labels = np.where(labels < IGNORE_LABEL, labels, 0)
        labels[:_CELL, :_CELL] = IGNORE_LABEL
        paths = folder / f"{i}.jpg", folder / f"{i}.png"
        Image.fromarray(image.astype(np.uint8)).save(paths[0])
        write_png(paths[1], labels.astype(np.uint8))
        records.append({"file_name": str(paths[0]), "sem_seg_file_name": str(paths[1])})
    return records


def first_batch(
    cfg: CfgNode, records: list[dict], mapper: SemSegDatasetMapper, batch: int
) -> list[dict]:
    """A batch such as the loader hands to the model: the training's own depends on its workers."""
    seed_all_rng(max(cfg.SEED, 0))
    loader = build_detection_train_loader(
        records,
        mapper=mapper,
        total_batch_size=batch,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=0,
    )
    return next(iter(loader))


def draw_batch(batch: list[dict], vocabulary: Vocabulary) -> np.ndarray:
    """(H, W, 3) uint8 RGB: the images side by side, each under its labels, with their legend."""
    pictures = [
        draw_overlay(x["image"].permute(1, 2, 0).numpy(), x["sem_seg"].numpy(), vocabulary)
        for x in batch[:MAX_PICTURES]
    ]
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(p.shape[0] for p in row) for row in rows]
    width = max(sum(p.shape[1] + _GAP for p in row) for row in rows) - _GAP
    canvas = np.full((sum(heights) + _GAP * (len(rows) - 1), width, 3), 255, np.uint8)
    top = 0
    for row, height in zip(rows, heights):
        left = 0
        for picture in row:
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            left += picture.shape[1] + _GAP
        top += height + _GAP
    return canvas


def picture_of_first(
    cfg: CfgNode,
    records: list[dict],
    vocabulary: Vocabulary,
    count: int,
    path: Path,
    trains: bool,
) -> list[tuple[int, int]]:
    """Write the picture of a training batch or, unless the model `trains`, of test images.

    Synthetic records stand in for none. Returns the images' (H, W).
    """

    def read(records: list[dict], mapper: SemSegDatasetMapper) -> list[dict]:
        if trains:
            return first_batch(cfg, records, mapper, count)
        return [mapper(record) for record in records[:count]]  # in order, as they are evaluated

    if trains:
        augmentations = build_sem_seg_augmentations(cfg)
    else:
        augmentations = build_augmentation(cfg, is_train=False)
    if records:
        mapper = SemSegDatasetMapper.from_datasets(
            cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)[:1], augmentations
        )
        shown = read(records, mapper)
    else:
        mapper = SemSegDatasetMapper(
            augmentations,
            image_format=cfg.INPUT.FORMAT,
            num_labels=min(len(vocabulary), IGNORE_LABEL),
            void_labels=(IGNORE_LABEL,),
        )
        with tempfile.TemporaryDirectory() as folder:
            shown = read(synthetic_records(Path(folder), count, len(vocabulary)), mapper)
    write_png(path, draw_batch(shown, vocabulary))
    return [tuple(x["image"].shape[-2:]) for x in shown]
