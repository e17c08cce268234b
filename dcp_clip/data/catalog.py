"""Register data sets for semantic segmentation in Detectron2's catalogs."""

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from dcp_clip.data.label_maps import read_labels
from dcp_clip.data.label_statistics import LabelCheck
from dcp_clip.data.pairing import DatasetError, pair_images_with_labels
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import IGNORE_LABEL

logger = logging.getLogger(__name__)


def datasets_root() -> Path:
    """Return the folder of all data sets: ``$DETECTRON2_DATASETS``, or ``datasets``."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def evenly_spaced(count: int, limit: int) -> list[int]:
    """Return at most `limit` of the indices 0 ... count-1, evenly spaced, with both ends."""
    return np.linspace(0, count - 1, min(limit, count)).round().astype(int).tolist()


def ignored_label(name: str) -> int:
    """Return the value of the ignored pixels in the label maps of a data set.

    Raises:
        ValueError: if its metadata has none. A data set can be registered without this package.
    """
    label = MetadataCatalog.get(name).get("ignore_label")
    if label is None:
        raise ValueError(
            f"The metadata of data set '{name}' has no ignore_label: set it to the value of the "
            "ignored pixels in the label maps, such as 255."
        )
    return label


def register_sem_seg(
    name: str,
    image_dir: str | Path,
    label_dir: str | Path,
    vocabulary: Vocabulary | Sequence[str | Sequence[str]],
    *,
    ignore_label: int = IGNORE_LABEL,
    expected_count: int | Callable[[], int] | None = None,
    image_ext: str | Sequence[str] = (".jpg", ".png"),
    label_ext: str | Sequence[str] = ".png",
    num_foreground: int | None = None,
    advice: str = "",
    check_labels: bool = False,
    replace: bool = False,
) -> None:
    """Register a folder of images and a folder of label maps as a data set.

    The folders are read only when the data set is first used, see :func:`load_sem_seg`.

    Args:
        name: name in ``DatasetCatalog`` and ``MetadataCatalog``.
        image_dir: folder of photographs.
        label_dir: folder of single-channel label maps with the stems of the photographs. Values
            are 0 ... C-1 and ``ignore_label``; the values of palette images are the indices.
        vocabulary: the C categories.
        ignore_label: value of the ignored pixels.
        expected_count: number of images of the official split, or a function that returns it when
            the data set is used; None for any number.
        image_ext: suffix or suffixes of the photographs.
        label_ext: suffix or suffixes of the label maps.
        num_foreground: number of first categories that are scored one by one. All others count as
            one background category, whose label is ``num_foreground`` (CAT-Seg's PAS-20b), and
            ``evaluator_type`` becomes "sem_seg_background". None if all categories are scored.
        advice: sentence appended to the loader's errors, such as the prepare command to run.
        check_labels: whether to check the files when the data set is first used, and to log
            how often each category occurs: see :class:`dcp_clip.data.label_statistics.LabelCheck`.
        replace: whether to replace an earlier registration of ``name``. Otherwise a name that is
            in use is an error of Detectron2.

    Raises:
        ValueError: if ``ignore_label`` is the label of a category, or a name is negative.
    """
    if not isinstance(vocabulary, Vocabulary):
        vocabulary = Vocabulary(vocabulary)
    if vocabulary.negatives:
        negative = vocabulary.synonyms[vocabulary.negatives[0]][0]
        raise ValueError(
            f"The data set '{name}' has the negative name '!{negative}', but all of its categories "
            "have labels: remove the '!'."
        )
    if ignore_label < len(vocabulary) and num_foreground is None:
        raise ValueError(
            f"The ignored label of the data set '{name}' is {ignore_label}, which is also the "
            f"label of '{vocabulary.display_names[ignore_label]}': choose a number from "
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
            check=LabelCheck(name, vocabulary, ignore_label) if check_labels else None,
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
    check: Callable[[Sequence[tuple[Path, Path]]], None] | None = None,
) -> list[dict]:
    """List a data set in Detectron2's format, without reading the images.

    Args:
        image_dir, label_dir, image_ext, label_ext, expected_count, advice: see
            :func:`register_sem_seg`.
        check: called with the pairs of images and label maps; raises DatasetError. Default: reads
            the first label map.

    Returns:
        Dicts with ``file_name``, ``sem_seg_file_name`` and ``image_id`` (the stem), sorted by
        stem.

    Raises:
        DatasetError: if a folder is missing, images and label maps do not match one to one, their
            number is not ``expected_count``, or the first label map holds colours.
    """
    if callable(expected_count):
        try:
            expected_count = expected_count()
        except DatasetError as e:
            raise DatasetError(str(e), advice) from e
    pairs = pair_images_with_labels(
        image_dir,
        label_dir,
        image_ext=image_ext,
        label_ext=label_ext,
        expected_count=expected_count,
        advice=advice,
    )
    if check is None:
        read_labels(pairs[0][1])  # Fails early if label maps hold colours.
    else:
        check(pairs)
    logger.info("%d images with label maps in %s", len(pairs), image_dir)
    return [
        {"file_name": str(image), "sem_seg_file_name": str(label), "image_id": image.stem}
        for image, label in pairs
    ]
