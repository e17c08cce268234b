"""EmojiScenes: an open-vocabulary benchmark that anyone can rebuild offline (docs/emoji_scenes.md).

Importing it registers the data sets. Pre-training of its CLIP is in
:mod:`dcp_clip.emoji_scenes.pretraining`.
"""

from dcp_clip.emoji_scenes.register import register_emoji_scenes

__all__ = ["register_emoji_scenes"]

register_emoji_scenes()
