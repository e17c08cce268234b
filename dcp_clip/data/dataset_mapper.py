"""From a dataset's dicts to the model's records: pixels, labels and what the labels are called."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from PIL import Image

from dcp_clip.data.label_maps import read_labels
from dcp_clip.data.pairing import DatasetError
from dcp_clip.utils.image_io import read_image
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import IGNORE_LABEL


class SemSegDatasetMapper:
    """Detectron2's ``DatasetMapper`` for semantic segmentation with label maps of 8 or 16 bits.

    ``DatasetMapper`` reads label maps as 8-bit grey values, which makes every label of a 16-bit map
    from 256 on (ADE20K-847, PASCAL-Context-459) the label 255. Labels that the dataset does not
    have are errors here: they would be trained on as void, and spoil an evaluation unnoticed.
    """

    def __init__(
        self,
        augmentations: Sequence[T.Augmentation | T.Transform],
        *,
        image_format: str,
        num_labels: int,
        void_labels: Sequence[int],
    ) -> None:
        """
        Args:
            augmentations: of a uint8 image (H, W, 3) and a uint8 label map (H, W) in which 255 is
                void.
            image_format: "RGB" or "BGR".
            num_labels: labels 0 ... num_labels - 1 are categories.
            void_labels: other labels that may occur; all of them are void.
        """
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.num_labels = num_labels
        self.void_labels = tuple(void_labels)
        self.with_labels = True  # whether records have "sem_seg"
        self.ignore_value = max(IGNORE_LABEL, num_labels, *self.void_labels)

    @classmethod
    def from_datasets(
        cls,
        cfg: CfgNode,
        names: Sequence[str],
        augmentations: Sequence[T.Augmentation | T.Transform],
    ) -> "SemSegDatasetMapper":
        """A mapper for the records of one or more datasets of the same categories.

        Args:
            cfg: reads INPUT.FORMAT.
            names: registered datasets. What counts as background in one with ``num_foreground`` is
                void, as no single category is its label.
            augmentations: as above.
        """
        metadata = [MetadataCatalog.get(name) for name in names]
        void_labels = {m.ignore_label for m in metadata}
        foreground = {m.get("num_foreground", len(m.stuff_classes)) for m in metadata}
        void_labels |= {m.num_foreground for m in metadata if m.get("num_foreground") is not None}
        return cls(
            augmentations,
            image_format=cfg.INPUT.FORMAT,
            num_labels=min(foreground),
            void_labels=sorted(void_labels),
        )

    def __call__(self, dataset_dict: dict) -> dict:
        """Read, augment and convert one image.

        Args:
            dataset_dict: in Detectron2's format; "sem_seg_file_name" is optional.

        Returns:
            the dict without "sem_seg_file_name", with "image" (3, H, W) uint8, "height" and "width"
            of the file, and "sem_seg" (H, W) int64, whose void pixels hold a value beyond the
            categories.

        Raises:
            DatasetError: naming the file that cannot be read, or the label map that differs from
                its image in size, or holds labels that the dataset does not have.
        """
        record = dict(dataset_dict)
        image = self._read_photograph(record["file_name"])
        path = record.pop("sem_seg_file_name", None)
        if path is not None:
            image = self._as_labelled(image, record["file_name"], path)
        utils.check_image_size(record, image)
        codes = meaning = None
        if path is not None and self.with_labels:
            labels = self._read_labels(path, image.shape[:2])
            codes, meaning = self._encode(labels, path)
        inputs = T.AugInput(image, sem_seg=codes)
        self.augmentations(inputs)
        record["image"] = torch.as_tensor(np.ascontiguousarray(inputs.image.transpose(2, 0, 1)))
        if meaning is not None:
            record["sem_seg"] = torch.as_tensor(meaning[inputs.sem_seg])
        return record

    def _read_photograph(self, path: str | Path) -> np.ndarray:
        try:
            with Image.open(path) as file:
                if file.mode[0] not in "IF":  # 16 or 32 bits, which Detectron2 cuts off at 255
                    upright = utils._apply_exif_orientation(file)
                    return utils.convert_PIL_to_numpy(upright, self.image_format)
            image = read_image(path)
        except Exception as e:  # Pillow's decoders raise nearly any kind, and do not name the file
            reason = " ".join((str(e) or type(e).__name__).split())
            raise DatasetError(f"The photograph {path} cannot be read: {reason}") from e
        return image[:, :, ::-1] if self.image_format == "BGR" else image

    def _as_labelled(
        self, image: np.ndarray, file_name: str | Path, label_file: str | Path
    ) -> np.ndarray:
        """The image, turned as its label map is: by its EXIF rotation, or as it is stored."""
        with Image.open(label_file) as labels:
            size = labels.size[::-1]
        if image.shape[:2] == size:
            return image
        with Image.open(file_name) as file:
            stored = utils.convert_PIL_to_numpy(file, self.image_format)
        return stored if stored.shape[:2] == size else image

    def _read_labels(self, path: str | Path, size: tuple[int, int]) -> np.ndarray:
        labels = read_labels(path)
        if labels.shape != size:
            raise DatasetError(
                f"The label map {path} has the shape {labels.shape}, but its image has the height "
                f"and width {size} (a photograph with an EXIF rotation counts as rotated)."
            )
        return labels

    def _encode(self, labels: np.ndarray, path: str | Path) -> tuple[np.ndarray, np.ndarray]:
        """Labels as 8-bit codes, the only form that all augmentations treat alike.

        Returns:
            (H, W) uint8 codes, 255 where void, and the (256,) int64 labels that they stand for.
        """
        present = np.unique(labels)
        known = (present >= 0) & (present < self.num_labels)
        strange = present[~known & ~np.isin(present, self.void_labels)]
        if strange.size:
            raise DatasetError(
                f"The label map {path} holds the label {strange[0]}, but the dataset has the "
                f"labels 0 to {self.num_labels - 1} and {' and '.join(map(str, self.void_labels))}."
            )
        categories = present[known]
        if len(categories) > IGNORE_LABEL:
            raise DatasetError(
                f"The label map {path} holds {len(categories)} categories; one image may hold up "
                f"to {IGNORE_LABEL}."
            )
        table = np.full(int(labels.max()) + 1, IGNORE_LABEL, np.uint8)
        table[categories] = np.arange(len(categories))
        meaning = np.full(256, self.ignore_value, np.int64)
        meaning[: len(categories)] = categories
        return table[labels], meaning


class VocabularyMapper:
    """A dataset mapper whose records tell the model which names their labels stand for.

    So one process can train on one dataset and be tested on several, and no list of names has to
    be kept in step with a dataset by hand. Picklable, as loader workers need.
    """

    def __init__(self, mapper: Callable[[dict], dict], vocabulary: Vocabulary) -> None:
        """
        Args:
            mapper: makes a record of a dataset dict, e.g. a :class:`SemSegDatasetMapper`.
            vocabulary: the categories that the values of ``"sem_seg"`` count, in that order.
        """
        self.mapper = mapper
        self.vocabulary = vocabulary

    def __call__(self, dataset_dict: dict) -> dict:
        """Return the mapper's record with ``"vocabulary"`` added."""
        record = self.mapper(dataset_dict)
        record["vocabulary"] = self.vocabulary
        return record
