"""CLIP's image encoder and text encoder: building, weights, features and caches."""

from dcp_clip.modeling.clip.image_encoder import CLIPBackbone
from dcp_clip.modeling.clip.text_encoder import TextEncoder

__all__ = ["CLIPBackbone", "TextEncoder"]
