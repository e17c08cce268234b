"""Contrastive pre-training of the small CLIP of EmojiScenes (tools/pretrain_clip.py)."""
