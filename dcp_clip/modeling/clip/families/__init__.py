"""The families of image towers, one module each.

To add a family: write a module with a subclass of :class:`ImageTower` and list it here.
"""

from torch import nn

from dcp_clip.modeling.clip.dense_attention import DenseAttention
from dcp_clip.modeling.clip.families.base import ImageTower
from dcp_clip.modeling.clip.families.hierarchical import HierarchicalTower
from dcp_clip.modeling.clip.families.resnet import ResNetTower
from dcp_clip.modeling.clip.families.timm_vit import TimmViTTower
from dcp_clip.modeling.clip.families.vit import ViTTower

__all__ = ["FAMILIES", "ImageTower", "build_image_tower"]

FAMILIES: tuple[type[ImageTower], ...] = (HierarchicalTower, ResNetTower, TimmViTTower, ViTTower)


def build_image_tower(visual: nn.Module, dense_attention: DenseAttention) -> ImageTower:
    """Wrap an open_clip image tower in the class of its family.

    Raises:
        ValueError: if no family reads this tower, or the tower does not have this attention.
    """
    tower = next((f(visual, dense_attention) for f in FAMILIES if f.matches(visual)), None)
    if tower is None:
        raise ValueError(
            f"No family of image towers reads a grid of features from {describe(visual)}; choose "
            "another MODEL.CLIP.NAME (docs/encoders.md lists them)."
        )
    if dense_attention.name not in (supported := tower.dense_attentions):
        raise ValueError(
            f"MODEL.CLIP.DENSE is '{dense_attention.name}', but {describe(visual)} with "
            f"{tower.pooling} pooling supports {' or '.join(map(repr, supported))} only."
        )
    if dense_attention.residual and tower.pooling != "class token":
        raise ValueError(
            f"MODEL.CLIP.DENSE_RESIDUAL is True, but {describe(visual)} has {tower.pooling} pooling"
            " and keeps its last block as it is; set it to False."
        )
    if dense_attention.position_offset and not isinstance(tower, ViTTower):
        raise ValueError(
            f"MODEL.CLIP.POSITION_OFFSET is {dense_attention.position_offset}, but "
            f"{describe(visual)} does not use it; set it to 0."
        )
    return tower


def describe(visual: nn.Module) -> str:
    """The class of a tower, with the class of timm's network inside it."""
    trunk = getattr(visual, "trunk", None)
    name = type(visual).__name__
    return name if trunk is None else f"{name} ({type(trunk).__name__})"
