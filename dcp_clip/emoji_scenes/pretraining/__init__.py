"""Contrastive pre-training of the small CLIP of EmojiScenes (tools/pretrain_clip.py).

Importing it registers the meta-architecture ``CLIPPretraining``.
"""

from dcp_clip.emoji_scenes.pretraining.config import add_pretraining_config
from dcp_clip.emoji_scenes.pretraining.model import CLIPPretraining
from dcp_clip.emoji_scenes.pretraining.trainer import CLIPTrainer

__all__ = ["CLIPPretraining", "CLIPTrainer", "add_pretraining_config"]
