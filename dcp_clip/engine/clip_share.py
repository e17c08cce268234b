"""An end of training that gives CLIP's image tower some of its own weights back."""

from __future__ import annotations

import logging

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from ..checkpoint import mix_in
from ..modeling import CLIPBackbone

__all__ = ["CLIPShareHook"]

logger = logging.getLogger(__name__)


class CLIPShareHook(HookBase):
    """Mixes the weights that CLIP brought into those of the trained image tower, once, after the
    last iteration.

    Training fits the tower to the names that have masks, and costs it some of what it knew of
    others; part of the way back most of the gain is still there and most of the loss is not. The
    idea is WiSE-FT's (arXiv 2109.01903). It costs no iteration, and nothing in use.

    Register it after what else changes the last weights and before the checkpointer and the
    evaluation: ``model_final.pth`` and the final evaluation have the mixture, what comes before has
    the weights as they are trained. A training that goes on from its end (with a larger
    SOLVER.MAX_ITER) starts from the mixture, and mixes again. Statistics of TEST.PRECISE_BN are
    those of the trained weights, and are mixed like all others.
    """

    def __init__(self, model: nn.Module, share: float, average: nn.Module | None = None):
        """
        Args:
            model: without its distributed wrapper, its `backbone` as CLIP brought it.
            share: of CLIP's own weights, between 0 and 1.
            average: a moving average of the model, which is mixed likewise.
        """
        self._towers = [m.backbone for m in (model, average) if m is not None]
        self._share = share
        # On the CPU, where memory is cheap.
        state = model.backbone.state_dict()
        self._own = {key: value.to("cpu", copy=True) for key, value in state.items()}
        self._mixed = False

    @classmethod
    def from_config(
        cls, cfg: CfgNode, model: nn.Module, average: nn.Module | None = None
    ) -> CLIPShareHook | None:
        """What SOLVER.CLIP_SHARE_IMAGE asks for, None for 0 and where the tower does not train.

        Raises:
            ValueError: for no share, and where there are no weights of CLIP.
        """
        share = cfg.SOLVER.CLIP_SHARE_IMAGE
        if not 0 <= share < 1:
            raise ValueError(
                f"SOLVER.CLIP_SHARE_IMAGE is {share}; it must be at least 0 and below 1 "
                "(MODEL.CLIP.TRAIN_IMAGE 'none' keeps all of CLIP's image tower)."
            )
        if not share or not any(p.requires_grad for p in model.backbone.parameters()):
            return None
        if not cfg.MODEL.CLIP.PRETRAINED:
            raise ValueError(
                f"SOLVER.CLIP_SHARE_IMAGE is {share}, but there are no weights of CLIP to mix in: "
                "name them in MODEL.CLIP.PRETRAINED, or set it to 0.0."
            )
        if not isinstance(model.backbone, CLIPBackbone):
            raise ValueError(
                f"SOLVER.CLIP_SHARE_IMAGE is {share}, but the backbone of {type(model).__name__} "
                "is more than CLIP's image tower: set it to 0.0."
            )
        return cls(model, share, average)

    def after_step(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            for tower in self._towers:
                mix_in(tower.state_dict(), self._own, self._share)
            self._mixed = True

    def before_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter and not self._mixed:
            logger.warning(
                "This training has ended without a share of CLIP's own weights, and has no "
                "iteration left to give it SOLVER.CLIP_SHARE_IMAGE %s: tools/export_weights.py "
                "--clip-share does.",
                self._share,
            )

    def state_dict(self) -> dict:
        """Of a training that ended: the share that its image tower has, so that nothing gives it
        another."""
        return {"share": self._share} if self._mixed else {}

    def load_state_dict(self, state: dict) -> None:
        self._mixed = True
