"""The families of image towers, one module each.

To add a family: write a module with a subclass of :class:`ImageTower` and list it here.
"""

from torch import nn

from dcp_clip.modeling.clip.families.base import ImageTower
from dcp_clip.modeling.clip.families.convnext import ConvNeXtTower
from dcp_clip.modeling.clip.families.vit import ViTTower
from dcp_clip.modeling.clip.readings import DenseReading

__all__ = ["FAMILIES", "ImageTower", "build_image_tower"]

FAMILIES: tuple[type[ImageTower], ...] = (ConvNeXtTower, ViTTower)


def build_image_tower(visual: nn.Module, reading: DenseReading) -> ImageTower:
    """Wrap an open_clip image tower in the class of its family.

    Raises:
        ValueError: if no family supports this kind of tower, or its family does not support it.
    """
    for family in FAMILIES:
        if family.matches(visual):
            return family(visual, reading)
    raise ValueError(
        f"CLIPBackbone supports open_clip's ConvNeXt-like timm towers and its ViT, not "
        f"{type(visual).__name__}; choose another MODEL.CLIP.NAME."
    )
