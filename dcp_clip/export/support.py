"""Check that a model can be exported, and say in one sentence why not."""

from __future__ import annotations

from detectron2.config import CfgNode
from open_clip.tokenizer import SimpleTokenizer
from torch import nn

from dcp_clip.modeling.meta_arch import DCPCLIP
from dcp_clip.modeling.stages.stage1_proposal import (
    AllCategories,
    CategoryProposal,
    DenseProposal,
    PooledProposal,
)

__all__ = ["ExportError", "check_exportable"]

_PROPOSALS = (AllCategories, CategoryProposal, DenseProposal, PooledProposal)


class ExportError(ValueError):
    """A model cannot be exported; the message is one sentence with the reason."""


def check_exportable(cfg: CfgNode, model: nn.Module) -> None:
    """Check everything that is known to be impossible, before the export begins.

    Args:
        cfg: config of the model.
        model: the model.

    Raises:
        ExportError: naming the config key.
    """
    if not isinstance(model, DCPCLIP):
        raise ExportError(
            f"MODEL.META_ARCHITECTURE is '{type(model).__name__}', but only DCPCLIP can be "
            "exported: the baselines are for comparison."
        )
    if type(model.proposal) not in _PROPOSALS:
        known = ", ".join(kind.__name__ for kind in _PROPOSALS)
        raise ExportError(
            f"MODEL.DCP_CLIP.PROPOSAL.NAME is '{type(model.proposal).__name__}', which cannot be "
            f"exported; these can: {known}."
        )
    if model.backbone.window:
        raise ExportError(
            f"MODEL.CLIP.ENCODER_WINDOW is {model.backbone.window}, but an exported program has "
            "one encoder pass for an image of any size; export with MODEL.CLIP.ENCODER_WINDOW 0."
        )
    if model.backbone.proxy is not None:
        raise ExportError(
            "MODEL.CLIP.PROXY.NAME is set, but an exported program has one image encoder; export "
            "with MODEL.CLIP.PROXY.NAME ''."
        )
    if model.backbone.views is not None:
        raise ExportError(
            "TEST.AUG.ENABLED is True, but an exported program has one encoder pass for an image "
            "of any size; export with TEST.AUG.ENABLED False."
        )
    if cfg.MODEL.CLIP.DENSE == "scclip":
        raise ExportError(
            "MODEL.CLIP.DENSE is 'scclip', whose number of outliers follows from the size of the "
            "image, which an exported program cannot express; export with another value, such as "
            "MODEL.CLIP.DENSE naclip."
        )
    if not isinstance(model.text_encoder.tokenizer, SimpleTokenizer):
        raise ExportError(
            f"'{model.text_encoder.model_name}' (MODEL.CLIP.NAME) has a tokenizer of the Hugging "
            "Face Hub, which cannot be exported; only CLIP's own byte pair encoding can."
        )
    if cfg.INPUT.RESIZE_TEST != "pillow":
        raise ExportError(
            f"INPUT.RESIZE_TEST is '{cfg.INPUT.RESIZE_TEST}', but the runtime of an exported model "
            "resizes images with Pillow; export with INPUT.RESIZE_TEST pillow."
        )
