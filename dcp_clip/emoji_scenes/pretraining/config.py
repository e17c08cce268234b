"""The config keys of the pre-training of EmojiScenes' CLIP."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

__all__ = ["add_pretraining_config"]


def add_pretraining_config(cfg: CN) -> None:
    """Add config for the contrastive pre-training of a small CLIP (tools/pretrain_clip.py)."""
    cfg.PRETRAIN = CN()
    # Sizes in pixels of the images of one thing and of the images of several things. Each batch
    # uses one size, drawn at random.
    cfg.PRETRAIN.SINGLE_SIZES = (48, 64)
    cfg.PRETRAIN.SCENE_SIZES = (80, 96, 112, 128, 160)
    # Pixels in a batch of each kind; the number of images follows from their size.
    cfg.PRETRAIN.SINGLE_PIXELS = 1048576
    cfg.PRETRAIN.SCENE_PIXELS = 786432
    # Fraction of the iterations that show images of one thing only. Later both kinds alternate.
    cfg.PRETRAIN.SINGLES_UNTIL = 0.35
    # Fraction of the iterations in which the drawings are strongly augmented. Later the
    # augmentation is mild.
    cfg.PRETRAIN.STRONG_UNTIL = 0.5
    # Also draw things in the styles that only the pre-training uses
    # (prepare_emoji_scenes.py --pretraining-art).
    cfg.PRETRAIN.MORE_ART = False
    # Templates of the captions: a set of prompt templates or the path of a text file. Half of the
    # captions are the name alone.
    cfg.PRETRAIN.TEMPLATES = "captions"
    # Weight of the loss of the dense features, relative to 1 for the loss of the whole image.
    cfg.PRETRAIN.DENSE_WEIGHT = 0.5
