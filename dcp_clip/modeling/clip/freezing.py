"""Select which weights of CLIP's encoders are trained."""

from __future__ import annotations

import re

from detectron2.config import CfgNode
from torch import nn

__all__ = ["POLICIES", "freeze_tower"]

_BLOCK = re.compile(r"(?:resblocks|trunk\.blocks)\.(\d+)\.")

# Patterns of parameter names. A parameter is trained if a pattern of the policy matches its name.
POLICIES = {
    "none": (),
    "all": ("",),
    # Queries, keys, values and position embeddings. CAT-Seg (arXiv 2303.11797) found that training
    # the queries and values of a ViT keeps its open vocabulary best.
    "attention": (
        r"attn\.in_proj",  # open_clip's ViT
        r"attn\.(qkv|[qkv]_proj|[qkv]_bias)",  # timm's ViT and Eva
        r"attnpool\.[qkv]_proj",  # CLIP's ResNets, whose only attention is their pooling
        r"positional_embedding|pos_embed$",
    ),
    # The layers closest to the joint embedding space.
    "late": (
        r"stages\.[34]\.|final_conv",  # ConvNeXt and FastViT
        r"trunk\.layers\.3\.",  # Swin
        r"visual\.layer4\.|attnpool",  # CLIP's ResNets
        r"trunk\.head",
        r"^visual\.head",
        r"attn_pool\.",
        r"proj$|text_projection",
        # and the last third of the blocks of a transformer, see below
    ),
}


def freeze_tower(cfg: CfgNode, key: str, tower: nn.Module) -> None:
    """Set ``requires_grad`` of the parameters of an encoder by the policy in MODEL.CLIP.<key>.

    Args:
        cfg: the whole config.
        key: "TRAIN_IMAGE" or "TRAIN_TEXT".
        tower: the image encoder or the text encoder.

    Raises:
        ValueError: for an unknown policy, or one that matches no parameter of the encoder.
    """
    policy = cfg.MODEL.CLIP[key]
    if policy not in POLICIES:
        raise ValueError(f"MODEL.CLIP.{key} is '{policy}'; known are {', '.join(POLICIES)}.")
    matched, depth = False, 0
    for name, _ in tower.named_parameters():
        depth = max(depth, int(block[1]) + 1 if (block := _BLOCK.search(name)) else 0)
    for name, parameter in tower.named_parameters():
        trains = any(re.search(pattern, name) for pattern in POLICIES[policy])
        if policy == "late" and (block := _BLOCK.search(name)):
            trains = int(block[1]) >= depth - max(1, depth // 3)
        parameter.requires_grad_(trains)
        matched |= trains
    if policy != "none" and not matched:
        raise ValueError(
            f"MODEL.CLIP.{key} is '{policy}', which matches no parameter of "
            f"{cfg.MODEL.CLIP.NAME}; use 'none' or 'all'."
        )
