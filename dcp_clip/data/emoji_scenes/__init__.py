"""EmojiScenes: an open-vocabulary benchmark that anyone can rebuild offline.

Emoji art of several styles, composed into scenes with exact masks; docs/emoji_scenes.md is its
protocol.

- :mod:`.names` and ``names.json``: about 600 things and stuff, base and unseen.
- :mod:`.art`, :mod:`.sprites`: the drawings, fetched, rendered and kept as pixels.
- :mod:`.noise`, :mod:`.textures`, :mod:`.scenes`: composition.
- :mod:`.drawing`, :mod:`.pairs`: simpler pictures with captions, for pre-training.
- :mod:`.subsets`, :mod:`.prepare`, :mod:`.register`: the datasets.
"""
