"""The dataset mapper, which turns a record of a data set into an input of the model."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T

from dcp_clip.data.augmentation import ResizeForTest, build_sem_seg_augmentations
from dcp_clip.data.catalog import ignored_label
from dcp_clip.data.label_maps import label_size, read_labels
from dcp_clip.data.pairing import DatasetError
from dcp_clip.data.photographs import read_photograph
from dcp_clip.data.vocabularies import dataset_vocabulary
from dcp_clip.vocabulary import Vocabulary
from dcp_clip.vocabulary.categories import IGNORE_LABEL

__all__ = ["SemSegDatasetMapper", "SeveralVocabulariesMapper"]


class SemSegDatasetMapper(DatasetMapper):
    """Detectron2's ``DatasetMapper`` for semantic segmentation with 8-bit or 16-bit label maps.

    It differs from ``DatasetMapper`` in what it reads:

    - ``DatasetMapper`` reads label maps as 8-bit grey values, so every label above 255 becomes 255
      (ADE20K-847, PASCAL-Context-459).
    - Photographs are read in the same way as in ``Predictor``, see docs/image_formats.md.
      ``DatasetMapper`` clips 16-bit values at 255, and shows the hidden colours of transparent
      pixels.
    - Labels that the data set does not have are errors. Otherwise, training would ignore them, and
      they would distort an evaluation without a warning.
    - If a photograph has an EXIF rotation, it is rotated only if its label map is.

    Call it as ``SemSegDatasetMapper(cfg, is_train=True)``, like ``DatasetMapper``.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: Sequence[T.Augmentation | T.Transform],
        num_labels: int,
        ignored_labels: Sequence[int],
        with_labels: bool = True,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """
        Args:
            is_train: whether the records are for training.
            augmentations: of a uint8 image (H, W, 3) and a uint8 label map (H, W) in which 255
                marks ignored pixels.
            num_labels: labels 0 ... num_labels - 1 are categories.
            ignored_labels: other labels that may occur. Their pixels are ignored.
            with_labels: whether to read the label maps.
            vocabulary: if given, added to every record as "vocabulary": the categories that the
                values of "sem_seg" stand for. A model then needs no matching list of names.
        """
        super().__init__(is_train, augmentations=augmentations, image_format="RGB")
        self.num_labels = num_labels
        self.ignored_labels = tuple(ignored_labels)
        self.with_labels = with_labels
        self.vocabulary = vocabulary
        # This value must not be a category. In 16-bit label maps, 255 can be one.
        self.ignore_value = max(IGNORE_LABEL, num_labels, *self.ignored_labels)

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        is_train: bool = True,
        dataset_names: Sequence[str] | None = None,
    ) -> dict:
        """
        Args:
            cfg: reads INPUT, see :mod:`dcp_clip.data.augmentation`.
            is_train: True for the training augmentation and records without a vocabulary; False for
                the resizing of test images and records with the vocabulary of the first data set.
            dataset_names: registered data sets that have the same categories; default:
                DATASETS.TRAIN or DATASETS.TEST. The background label of a data set with
                ``num_foreground`` is ignored, because it is not the label of a single category.

        Raises:
            ValueError: if the metadata of a data set has no ``ignore_label``.
        """
        names = dataset_names or (cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST)
        metadata = [MetadataCatalog.get(name) for name in names]
        background = {m.num_foreground for m in metadata if m.get("num_foreground") is not None}
        return {
            "is_train": is_train,
            "augmentations": build_sem_seg_augmentations(cfg) if is_train else [ResizeForTest(cfg)],
            "num_labels": min(m.get("num_foreground", len(m.stuff_classes)) for m in metadata),
            "ignored_labels": sorted(set(map(ignored_label, names)) | background),
            "vocabulary": None if is_train else dataset_vocabulary(names[0]),
        }

    def __call__(self, dataset_dict: dict) -> dict:
        """Read, augment and convert one image.

        Args:
            dataset_dict: in Detectron2's format; "sem_seg_file_name" is optional.

        Returns:
            A copy of the dict without "sem_seg_file_name", with

            - "image": (3, H, W) uint8.
            - "height", "width": of the file in pixels.
            - "sem_seg": (H, W) int64, if there is a label map. The value of ignored pixels is
              ``ignore_value``, which is not a category. In evaluation it has the size of the file.
            - "vocabulary": if the mapper has one.

        Raises:
            DatasetError: naming the file, if it cannot be read, or if a label map differs from its
                image in size or holds labels that the data set does not have.
        """
        record = dict(dataset_dict)
        label_file = record.pop("sem_seg_file_name", None)
        image = self._read_image(record["file_name"], label_file)
        utils.check_image_size(record, image)
        codes = categories = None
        if label_file is not None and self.with_labels:
            codes, categories = self._read_codes(label_file, record["file_name"], image.shape[:2])
        # In evaluation, labels say which categories are present. Resizing would lose small objects.
        aug_input = T.AugInput(image, sem_seg=codes if self.is_train else None)
        self.augmentations(aug_input)
        pixels = np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(pixels)
        if categories is not None:
            codes = aug_input.sem_seg if self.is_train else codes
            record["sem_seg"] = torch.as_tensor(categories[codes])
        if self.vocabulary is not None:
            record["vocabulary"] = self.vocabulary
        return record

    def _read_image(self, path: str | Path, label_file: str | Path | None) -> np.ndarray:
        """Read the photograph (H, W, 3), rotated like its label map."""
        return read_photograph(
            path, None if label_file is None else partial(label_size, label_file)
        )

    def _read_codes(
        self, path: str | Path, photograph: str | Path, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read the label map of a photograph as 8-bit codes.

        They are the only type that all augmentations support.

        Returns:
            (H, W) uint8 codes, 255 where ignored, and the (256,) int64 labels of the codes.
        """
        labels = read_labels(path)
        if labels.shape != size:
            raise DatasetError(
                f"The label map {path} has the shape {labels.shape}, but its photograph "
                f"{photograph} has the height and width {size} (after the EXIF rotation, if it has "
                "one)."
            )
        present = np.unique(labels)
        known = (present >= 0) & (present < self.num_labels)
        unknown = present[~known & ~np.isin(present, self.ignored_labels)]
        if unknown.size:
            ignored = " and ".join(map(str, self.ignored_labels))
            raise DatasetError(
                f"The label map {path} holds the label {unknown[0]}, but the data set has the "
                f"labels 0 to {self.num_labels - 1} and {ignored}."
            )
        present = present[known]
        if len(present) > IGNORE_LABEL:
            raise DatasetError(
                f"The label map {path} holds {len(present)} categories; one image may hold up to "
                f"{IGNORE_LABEL}."
            )
        to_code = np.full(int(labels.max()) + 1, IGNORE_LABEL, np.uint8)
        to_code[present] = np.arange(len(present))
        categories = np.full(256, self.ignore_value, np.int64)
        categories[: len(present)] = present
        return to_code[labels], categories


class SeveralVocabulariesMapper:
    """Maps training records of data sets that have different categories.

    Each data set has its own mapper, with its own ignored labels, and its own vocabulary. A record
    names its data set in "dataset".
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: reads DATASETS.TRAIN, and INPUT as :class:`SemSegDatasetMapper` does.
        """
        self._mappers = {
            name: SemSegDatasetMapper(
                cfg, True, dataset_names=[name], vocabulary=dataset_vocabulary(name)
            )
            for name in cfg.DATASETS.TRAIN
        }

    def __call__(self, record: dict) -> dict:
        """Map a record as :class:`SemSegDatasetMapper` does; the result has a "vocabulary"."""
        record = dict(record)
        return self._mappers[record.pop("dataset")](record)
