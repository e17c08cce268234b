"""One registry for each stage, so a config can choose the implementation by name."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.utils.registry import Registry
from torch import nn

__all__ = [
    "CATEGORY_PROPOSAL_REGISTRY",
    "CLASS_REFINEMENT_REGISTRY",
    "COARSE_DECODER_REGISTRY",
    "FINE_DECODER_REGISTRY",
    "TEXT_GUIDANCE_REGISTRY",
    "build_stage",
]

CATEGORY_PROPOSAL_REGISTRY = Registry("CATEGORY_PROPOSAL")
CATEGORY_PROPOSAL_REGISTRY.__doc__ = """
Stage 1. Called as ``obj(cfg, input_shape)``; ``forward(dense (B,D,h,w), pooled (B,D),
text_features (N,D), category_rows (C,S), pixel_valid (B,h,w), present (B,C) or None,
ids (B,K) or None)`` returns :class:`dcp_clip.structures.Proposals`; with ``ids`` it proposes those.
"""

TEXT_GUIDANCE_REGISTRY = Registry("TEXT_GUIDANCE")
TEXT_GUIDANCE_REGISTRY.__doc__ = """
Stage 2. Called as ``obj(cfg, input_shape)``; ``forward(text_features (B,K,D), dense (B,D,h,w),
similarity (B,K,h,w), pixel_valid (B,h,w))`` returns guidance (B,K,out_channels); the object has the
attribute ``out_channels``.
"""

COARSE_DECODER_REGISTRY = Registry("COARSE_DECODER")
COARSE_DECODER_REGISTRY.__doc__ = """
Stage 3. Called as ``obj(cfg, input_shape, guidance_channels)``; ``forward(dense (B,D,h,w),
guidance (B,K,d'), similarity (B,K,h,w), pixel_valid (B,h,w), proposal_valid (B,K))`` returns coarse
logits (B,K,h,w), visual features (B,d,h,w) and text features (B,K,d); the object has the attributes
``visual_channels`` and ``text_channels``.
"""

FINE_DECODER_REGISTRY = Registry("FINE_DECODER")
FINE_DECODER_REGISTRY.__doc__ = """
Stage 4. Called as ``obj(cfg, input_shape, visual_channels, text_channels)``; ``forward(coarse
(B,K,h,w), visual (B,d,h,w), text_features (B,K,d), features, pixel_valid (B,h,w), proposal_valid
(B,K))`` returns fine logits (B,K,H/4,W/4), possibly on a finer grid. ``features`` is the output of
the backbone: res2 to res4 are the finer features, ``image`` (B,3,H,W) are the normalised pixels,
for decoders that follow their edges.
"""

CLASS_REFINEMENT_REGISTRY = Registry("CLASS_REFINEMENT")
CLASS_REFINEMENT_REGISTRY.__doc__ = """
Stage 5. Called as ``obj(cfg, input_shape)``; ``forward(fine (B,K,H/4,W/4), dense (B,D,h,w),
text_features (B,K,D), scores (B,K), pixel_valid (B,h,w), proposal_valid (B,K))`` returns
:class:`dcp_clip.structures.Refinement`, or None if masks do not correct the categories.
"""

# Names of implementations in earlier versions.
_RENAMED = {
    "GuidedDecoder": "BilateralDecoder",
    "RenamingRefinement": "ReassignmentRefinement",
}


def build_stage(registry: Registry, node: str, cfg: CfgNode, *args) -> nn.Module:
    """Build the stage that ``cfg.MODEL.DCP_CLIP.<node>.NAME`` names.

    Raises:
        KeyError: if the registry does not have that name; the message lists the registered names.
    """
    name = cfg.MODEL.DCP_CLIP[node].NAME
    if name not in registry:
        known = ", ".join(sorted(key for key, _ in registry))
        hint = f" It is called '{_RENAMED[name]}' now." if name in _RENAMED else ""
        raise KeyError(f"MODEL.DCP_CLIP.{node}.NAME is '{name}'; registered are: {known}.{hint}")
    return registry.get(name)(cfg, *args)
