"""Training augmentation for semantic segmentation, all of it Detectron2's own."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from dcp_clip.vocabulary.categories import IGNORE_LABEL


class ResizeForTest(T.ResizeShortestEdge):
    """Detectron2's resizing of test images, for images of any shape.

    A strip of a few pixels, which INPUT.MAX_SIZE_TEST would round to nothing, keeps one pixel.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: reads INPUT.MIN_SIZE_TEST (0: images stay as they are) and INPUT.MAX_SIZE_TEST.
        """
        super().__init__(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The transform of one image (H, W, 3)."""
        height, width = image.shape[:2]
        if not self.short_edge_length[0]:
            return T.NoOpTransform()
        size = self.get_output_shape(height, width, self.short_edge_length[0], self.max_size)
        return T.ResizeTransform(height, width, *(max(1, side) for side in size))


def build_sem_seg_augmentations(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    """Build the augmentations of ``cfg.INPUT`` for training: resize, crop, colour, flip.

    To be given to :class:`dcp_clip.data.dataset_mapper.SemSegDatasetMapper`. For testing, Detectron2's default
    (``ResizeShortestEdge``) is right.

    Args:
        cfg: reads INPUT.{MIN_SIZE_TRAIN, MAX_SIZE_TRAIN, MIN_SIZE_TRAIN_SAMPLING, RANDOM_FLIP,
            FORMAT, COLOR_AUG_SSD} and INPUT.CROP.{ENABLED, TYPE, SIZE,
            SINGLE_CATEGORY_MAX_AREA}.

    Returns:
        Augmentations of an RGB or BGR uint8 image (H, W, 3) and a uint8 label map (H, W), whose
        label 255 may fill a crop beyond SINGLE_CATEGORY_MAX_AREA.
    """
    augmentations: list[T.Augmentation | T.Transform] = [
        T.ResizeShortestEdge(
            cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        )
    ]
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                cfg.INPUT.CROP.TYPE,
                cfg.INPUT.CROP.SIZE,
                cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
                IGNORE_LABEL,
            )
        )
    if cfg.INPUT.COLOR_AUG_SSD:  # after the crop, so that it works on fewer pixels
        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    if cfg.INPUT.RANDOM_FLIP != "none":
        augmentations.append(
            T.RandomFlip(
                horizontal=cfg.INPUT.RANDOM_FLIP == "horizontal",
                vertical=cfg.INPUT.RANDOM_FLIP == "vertical",
            )
        )
    return augmentations
