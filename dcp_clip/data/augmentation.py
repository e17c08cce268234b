"""Augmentations for semantic segmentation, all from Detectron2."""

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import detection_utils as utils
from detectron2.data import transforms as T
from detectron2.projects.point_rend import ColorAugSSDTransform

from dcp_clip.vocabulary.categories import IGNORE_LABEL


class OpenCVResizeTransform(T.ResizeTransform):
    """Resizes images with OpenCV: bilinear interpolation of four pixels, without antialiasing.

    Labels are resized as by :class:`ResizeTransform`.
    """

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize an image (H, W, 3) of bytes."""
        if interp is not None:
            return super().apply_image(img, interp)
        return cv2.resize(img, (self.new_w, self.new_h), interpolation=cv2.INTER_LINEAR)


# The values of INPUT.RESIZE_TEST.
_RESIZING = {"pillow": T.ResizeTransform, "opencv": OpenCVResizeTransform}


class ResizeForTest(T.ResizeShortestEdge):
    """Detectron2's resizing of test images, for images of any shape.

    INPUT.MAX_SIZE_TEST can round the short side of a very long, narrow image to zero. Here every
    side keeps at least one pixel.
    """

    def __init__(self, cfg: CfgNode):
        """
        Args:
            cfg: reads INPUT.MIN_SIZE_TEST (0 to keep the size), INPUT.MAX_SIZE_TEST and
                INPUT.RESIZE_TEST.

        Raises:
            ValueError: for an unknown INPUT.RESIZE_TEST.
        """
        method = cfg.INPUT.get("RESIZE_TEST", "pillow")  # other configs lack the key
        if method not in _RESIZING:
            raise ValueError(
                f"INPUT.RESIZE_TEST is '{method}'; known are {' and '.join(_RESIZING)}."
            )
        self._resizing = _RESIZING[method]
        super().__init__(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """Return the transform of one image (H, W, 3)."""
        height, width = image.shape[:2]
        if not self.short_edge_length[0]:
            return T.NoOpTransform()
        size = self.get_output_shape(height, width, self.short_edge_length[0], self.max_size)
        return self._resizing(height, width, *(max(1, side) for side in size))

    def model_input(self, image: np.ndarray) -> torch.Tensor:
        """Resize an (H, W, 3) uint8 RGB image to a (3, h, w) uint8 tensor."""
        resized = self.get_transform(image).apply_image(image)
        return torch.as_tensor(resized.transpose(2, 0, 1).copy())


def build_sem_seg_augmentations(cfg: CfgNode) -> list[T.Augmentation | T.Transform]:
    """Build the training augmentations of ``cfg.INPUT``: resize, crop, colour, flip.

    Args:
        cfg: reads INPUT.{MIN_SIZE_TRAIN, MAX_SIZE_TRAIN, MIN_SIZE_TRAIN_SAMPLING, RANDOM_FLIP,
            FORMAT, COLOR_AUG_SSD} and INPUT.CROP.{ENABLED, TYPE, SIZE,
            SINGLE_CATEGORY_MAX_AREA}.

    Returns:
        Augmentations of an RGB uint8 image (H, W, 3) and a uint8 label map (H, W). Pixels
        with the label 255 do not count in SINGLE_CATEGORY_MAX_AREA.
    """
    resize, *flip = utils.build_augmentation(cfg, is_train=True)
    augmentations = [resize]
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(
            T.RandomCrop_CategoryAreaConstraint(
                cfg.INPUT.CROP.TYPE,
                cfg.INPUT.CROP.SIZE,
                cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
                IGNORE_LABEL,
            )
        )
    if cfg.INPUT.COLOR_AUG_SSD:  # After the crop, which leaves fewer pixels to process.
        augmentations.append(ColorAugSSDTransform(img_format=cfg.INPUT.FORMAT))
    return [*augmentations, *flip]
