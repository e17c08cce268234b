"""CLIP: the image and text towers, their weights, and their features."""

from dcp_clip.modeling.clip.image_encoder import CLIPBackbone
from dcp_clip.modeling.clip.text_encoder import TextEncoder

__all__ = ["CLIPBackbone", "TextEncoder"]
