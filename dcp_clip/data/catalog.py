"""Registration of semantic segmentation datasets in Detectron2's catalogs."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from dcp_clip.data.label_maps import read_labels
from dcp_clip.data.pairing import DatasetError, pair_images_with_labels
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import IGNORE_LABEL, Category

logger = logging.getLogger(__name__)


def datasets_root() -> Path:
    """The folder of all datasets: ``$DETECTRON2_DATASETS``, or ``datasets`` as in Detectron2."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def register_sem_seg(
    name: str,
    image_dir: str | Path,
    label_dir: str | Path,
    vocabulary: Vocabulary | Sequence[Category] | Sequence[str],
    *,
    ignore_label: int = IGNORE_LABEL,
    expected_count: int | Callable[[], int] | None = None,
    image_ext: str | Sequence[str] = (".jpg", ".png"),
    label_ext: str | Sequence[str] = ".png",
    num_foreground: int | None = None,
    advice: str = "",
    replace: bool = False,
) -> None:
    """Register a folder of images and a folder of label maps under a dataset name.

    Neither folder is looked at before the dataset is first used, see :func:`load_sem_seg`.

    Args:
        name: name in ``DatasetCatalog`` and ``MetadataCatalog``.
        image_dir: folder of photographs.
        label_dir: folder of single-channel label maps (a palette counts for nothing) with the
            stems of the photographs; values 0 ... C-1 and ``ignore_label``.
        vocabulary: the C categories: a :class:`Vocabulary`, the list that
            :func:`dcp_clip.vocabulary.categories.load_names` returns, or anything ``Vocabulary`` takes.
        ignore_label: value of the pixels that count for nothing.
        expected_count: number of images of the official split, or a function that tells it when
            the dataset is used; None if any number will do.
        image_ext: suffix or suffixes of the photographs.
        label_ext: suffix or suffixes of the label maps.
        num_foreground: number of categories that are scored one by one, the first ones. The rest
            of the vocabulary counts as one background category, whose label in the label maps is
            ``num_foreground`` (CAT-Seg's PAS-20b); ``evaluator_type`` becomes
            "sem_seg_background". None for the usual case.
        advice: sentence appended to the loader's errors, e.g. the prepare command to run.
        replace: whether an earlier registration of ``name`` gives way. Otherwise Detectron2
            refuses a name that is taken.
    """
    vocabulary = _to_vocabulary(vocabulary)
    if ignore_label < len(vocabulary) and num_foreground is None:
        raise ValueError(
            f"The ignored label of the dataset '{name}' is {ignore_label}, which is also the label "
            f"of '{vocabulary.display_names[ignore_label]}': choose a number from "
            f"{len(vocabulary)} on, and give the ignored pixels that value in the label maps."
        )
    if replace and name in DatasetCatalog:
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(
        name,
        partial(
            load_sem_seg,
            str(image_dir),
            str(label_dir),
            image_ext=image_ext,
            label_ext=label_ext,
            expected_count=expected_count,
            advice=advice,
        ),
    )
    metadata = MetadataCatalog.get(name)
    metadata.set(
        stuff_classes=list(vocabulary.display_names),
        stuff_synonyms=[list(names) for names in vocabulary.synonyms],
        stuff_colors=[list(color) for color in vocabulary.colors],
        ignore_label=ignore_label,
        evaluator_type="sem_seg" if num_foreground is None else "sem_seg_background",
        image_root=str(image_dir),
        sem_seg_root=str(label_dir),
    )
    if num_foreground is not None:
        metadata.set(num_foreground=num_foreground)


def load_sem_seg(
    image_dir: str | Path,
    label_dir: str | Path,
    *,
    image_ext: str | Sequence[str] = (".jpg", ".png"),
    label_ext: str | Sequence[str] = ".png",
    expected_count: int | Callable[[], int] | None = None,
    advice: str = "",
) -> list[dict]:
    """List a dataset in Detectron2's standard format, without reading the images.

    Returns:
        Dicts with ``file_name``, ``sem_seg_file_name`` and ``image_id`` (the stem), sorted by
        stem.

    Raises:
        DatasetError: if a folder is missing, images and label maps do not match one to one, or
            there are not ``expected_count`` of them, or the label maps hold colours.
    """
    if callable(expected_count):
        expected_count = _call_with_advice(expected_count, advice)
    pairs = pair_images_with_labels(
        image_dir,
        label_dir,
        image_ext=image_ext,
        label_ext=label_ext,
        expected_count=expected_count,
        advice=advice,
    )
    read_labels(pairs[0][1])  # refuses what holds colours
    logger.info("%d images with label maps in %s", len(pairs), image_dir)
    return [
        {"file_name": str(image), "sem_seg_file_name": str(label), "image_id": image.stem}
        for image, label in pairs
    ]


def _call_with_advice(count: Callable[[], int], advice: str) -> int:
    try:
        return count()
    except DatasetError as e:
        raise DatasetError(f"{e} {advice}".rstrip()) from e


def _to_vocabulary(source: Vocabulary | Sequence[Category] | Sequence[str]) -> Vocabulary:
    if isinstance(source, Vocabulary):
        return source
    if all(isinstance(entry, Category) for entry in source):
        return Vocabulary.from_categories(source)
    return Vocabulary(source)
