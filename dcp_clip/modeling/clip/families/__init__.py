"""The families of image towers, one module each.

To add a family: write a module with a subclass of :class:`ImageTower` and list it here.
"""

from torch import nn

from dcp_clip.modeling.clip.families.base import ImageTower
from dcp_clip.modeling.clip.families.hierarchical import HierarchicalTower
from dcp_clip.modeling.clip.families.resnet import ResNetTower
from dcp_clip.modeling.clip.families.timm_vit import TimmViTTower
from dcp_clip.modeling.clip.families.vit import ViTTower
from dcp_clip.modeling.clip.readings import DenseReading

__all__ = ["FAMILIES", "ImageTower", "build_image_tower"]

FAMILIES: tuple[type[ImageTower], ...] = (HierarchicalTower, ResNetTower, TimmViTTower, ViTTower)


def build_image_tower(visual: nn.Module, reading: DenseReading) -> ImageTower:
    """Wrap an open_clip image tower in the class of its family.

    Raises:
        ValueError: if no family reads this tower, or the tower does not have this reading.
    """
    tower = next((f(visual, reading) for f in FAMILIES if f.matches(visual)), None)
    if tower is None:
        raise ValueError(
            f"No family of image towers reads a grid of features from {describe(visual)}; choose "
            "another MODEL.CLIP.NAME (docs/encoders.md lists them)."
        )
    if reading.name not in tower.readings:
        raise ValueError(
            f"MODEL.CLIP.DENSE is '{reading.name}', but {describe(visual)} with {tower.pooling} "
            f"pooling can be read as {' or '.join(map(repr, tower.readings))} only."
        )
    if reading.residual and tower.pooling != "class token":
        raise ValueError(
            f"MODEL.CLIP.DENSE_RESIDUAL is True, but {describe(visual)} has {tower.pooling} pooling"
            " and keeps its last block as it is; set it to False."
        )
    if reading.position_offset and not isinstance(tower, ViTTower):
        raise ValueError(
            f"MODEL.CLIP.POSITION_OFFSET is {reading.position_offset}, but {describe(visual)} does "
            "not use it; set it to 0."
        )
    return tower


def describe(visual: nn.Module) -> str:
    """The class of a tower, with the class of timm's network inside it."""
    trunk = getattr(visual, "trunk", None)
    name = type(visual).__name__
    return name if trunk is None else f"{name} ({type(trunk).__name__})"
