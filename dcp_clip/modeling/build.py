"""One registry a stage, so that a config can swap any of them by name."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

CATEGORY_PROPOSAL_REGISTRY = Registry("CATEGORY_PROPOSAL")
CATEGORY_PROPOSAL_REGISTRY.__doc__ = """
Stage 1. Called as ``obj(cfg)``; ``forward(dense (B,D,h,w), pooled (B,D), text (N,D),
rows (C,S), valid (B,h,w), present (B,C) or None, ids (B,K) or None)`` returns
:class:`dcp_clip.structures.Proposals`; with ``ids`` it proposes those.
"""

TEXT_GUIDANCE_REGISTRY = Registry("TEXT_GUIDANCE")
TEXT_GUIDANCE_REGISTRY.__doc__ = """
Stage 2. Called as ``obj(cfg, input_shape)``; ``forward(text (B,K,D), dense (B,D,h,w),
similarity (B,K,h,w), valid (B,h,w))`` returns guidance (B,K,out_channels); the object has the
attribute ``out_channels``.
"""

COARSE_DECODER_REGISTRY = Registry("COARSE_DECODER")
COARSE_DECODER_REGISTRY.__doc__ = """
Stage 3. Called as ``obj(cfg, input_shape, guidance_channels)``; ``forward(dense (B,D,h,w),
guidance (B,K,d), similarity (B,K,h,w), valid (B,h,w), mask (B,K))`` returns coarse logits
(B,K,h,w), visual (B,d,h,w) and text (B,K,d); the object has ``visual_channels`` and
``text_channels``.
"""

FINE_DECODER_REGISTRY = Registry("FINE_DECODER")
FINE_DECODER_REGISTRY.__doc__ = """
Stage 4. Called as ``obj(cfg, input_shape, visual_channels, text_channels)``; ``forward(coarse
(B,K,h,w), visual (B,d,h,w), text (B,K,d), features, mask (B,K))`` with ``features`` what the
backbone returned (res2 to res4 are the finer features, ``image`` (B,3,H,W) the normalised pixels,
for decoders that follow their edges) returns fine logits (B,K,H/4,W/4).
"""

CLASS_REFINEMENT_REGISTRY = Registry("CLASS_REFINEMENT")
CLASS_REFINEMENT_REGISTRY.__doc__ = """
Stage 5. Called as ``obj(cfg, input_shape)``; ``forward(fine (B,K,H/4,W/4), dense (B,D,h,w), text
(B,K,D), scores (B,K), valid (B,h,w), mask (B,K))`` returns a
:class:`dcp_clip.modeling.class_refinement.Refinement`, or None where masks do not correct the
names.
"""


def build_stage(registry: Registry, node: str, cfg: CfgNode, *args) -> nn.Module:
    """Build the stage that ``cfg.MODEL.DCP_CLIP.<node>.NAME`` names.

    Raises:
        KeyError: with the registered names, when the config names none of them.
    """
    name = cfg.MODEL.DCP_CLIP[node].NAME
    if name not in registry:
        known = ", ".join(sorted(key for key, _ in registry))
        raise KeyError(f"MODEL.DCP_CLIP.{node}.NAME is '{name}'; registered are: {known}.")
    return registry.get(name)(cfg, *args)
