"""EmojiScenes: an open-vocabulary benchmark that a laptop can rebuild (docs/emoji_scenes.md).

Importing this package registers the data sets. :mod:`dcp_clip.emoji_scenes.pretraining` trains the
small CLIP of the benchmark.
"""

from dcp_clip.emoji_scenes.register import register_emoji_scenes

__all__ = ["register_emoji_scenes"]

register_emoji_scenes()
