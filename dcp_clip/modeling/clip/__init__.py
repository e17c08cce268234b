"""CLIP: its image and text towers, their weights, and how they are read."""

from dcp_clip.modeling.clip.image_encoder import CLIPBackbone
from dcp_clip.modeling.clip.text_encoder import TextEncoder

__all__ = ["CLIPBackbone", "TextEncoder"]
