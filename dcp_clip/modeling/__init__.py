"""The model. Importing this package registers its modules with Detectron2."""

from dcp_clip.modeling import (  # noqa: F401  (registers their classes)
    baselines,
    stages,
    training_free,
)
from dcp_clip.modeling.clip import CLIPBackbone, TextEncoder
from dcp_clip.modeling.meta_arch import DCPCLIP

__all__ = ["CLIPBackbone", "DCPCLIP", "TextEncoder"]
