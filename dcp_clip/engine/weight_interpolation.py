"""Interpolate the trained weights with CLIP's original ones after training (WiSE-FT)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn, no_grad

from dcp_clip.modeling import CLIPBackbone

__all__ = ["WeightInterpolationHook", "interpolate_weights"]

logger = logging.getLogger(__name__)


@no_grad()
def interpolate_weights(
    trained: Mapping[str, Tensor], original: Mapping[str, Tensor], alpha: float
) -> None:
    """Interpolate the weights of an image tower with CLIP's original ones, in place.

    Args:
        trained: state dict of the trained tower.
        original: state dict of the tower before training; integer tensors are ignored.
        alpha: weight of `original`; 0 changes nothing.
    """
    # Batch norm statistics are interpolated too, because they belong to the weights.
    for key, value in original.items():
        if value.is_floating_point():
            trained[key].lerp_(value.to(trained[key]), alpha)


class WeightInterpolationHook(HookBase):
    """Interpolates the image tower with CLIP's original weights after the last iteration.

    Training fits the tower to the categories with masks, but the tower forgets some of what it knew
    about others. Weights between the original and the trained ones keep most of the gain and avoid
    most of the loss (WiSE-FT, arXiv 2109.01903). This needs no extra iteration and no time at
    inference.

    Register this hook after the hooks that change the last weights, and before the checkpointer and
    the evaluation. Then ``model_final.pth`` and the final evaluation have the interpolated weights,
    and earlier checkpoints have the trained ones. If a finished training continues with a larger
    SOLVER.MAX_ITER, it starts from the interpolated weights and interpolates again. The batch norm
    statistics of TEST.PRECISE_BN are those of the trained weights and are interpolated too.
    """

    def __init__(self, model: nn.Module, alpha: float, average: nn.Module | None = None):
        """
        Args:
            model: without its distributed wrapper; its `backbone` has CLIP's original weights.
            alpha: factor of the original weights, between 0 and 1.
            average: a moving average of the model; it is interpolated too.
        """
        self._towers = [m.backbone for m in (model, average) if m is not None]
        self._alpha = alpha
        # Kept in main memory, to save GPU memory.
        state = model.backbone.state_dict()
        self._original = {key: value.to("cpu", copy=True) for key, value in state.items()}
        self._applied = 0.0

    @classmethod
    def from_config(
        cls, cfg: CfgNode, model: nn.Module, average: nn.Module | None = None
    ) -> WeightInterpolationHook | None:
        """Build the hook; None if SOLVER.WISE_FT_ALPHA is 0 or the image tower is frozen.

        Raises:
            ValueError: if the value is not in [0, 1), or there are no original weights of CLIP.
        """
        alpha = cfg.SOLVER.WISE_FT_ALPHA
        if not 0 <= alpha < 1:
            raise ValueError(
                f"SOLVER.WISE_FT_ALPHA is {alpha}; it must be at least 0 and below 1 (to keep "
                "CLIP's image tower unchanged, set MODEL.CLIP.TRAIN_IMAGE to 'none')."
            )
        if not alpha or not any(p.requires_grad for p in model.backbone.parameters()):
            return None
        if not cfg.MODEL.CLIP.PRETRAINED:
            raise ValueError(
                f"SOLVER.WISE_FT_ALPHA is {alpha}, but there are no original weights of CLIP: name "
                "them in MODEL.CLIP.PRETRAINED, or set it to 0.0."
            )
        if not isinstance(model.backbone, CLIPBackbone):
            raise ValueError(
                f"SOLVER.WISE_FT_ALPHA is {alpha}, but the backbone of {type(model).__name__} is "
                "not CLIP's image tower alone: set it to 0.0."
            )
        # Configs inherit this value, and it changes what the training gives.
        logger.info(
            "SOLVER.WISE_FT_ALPHA is %s: after the last iteration, the image tower will have this "
            "fraction of CLIP's original weights. Set it to 0.0 to keep the trained weights.",
            alpha,
        )
        return cls(model, alpha, average)

    def after_step(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._interpolate()

    def finish(self) -> None:
        """Interpolate, unless the checkpoint that the training resumed from has done it."""
        if not self._applied:
            self._interpolate()

    def _interpolate(self) -> None:
        for tower in self._towers:
            interpolate_weights(tower.state_dict(), self._original, self._alpha)
        self._applied = self._alpha
        logger.info(
            "Interpolated the image tower with CLIP's original weights (SOLVER.WISE_FT_ALPHA %s).",
            self._alpha,
        )

    def before_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            self._applied = 0.0  # the checkpoints of a continued training are not interpolated
        elif self._applied != self._alpha:
            logger.warning(
                "This training has finished with SOLVER.WISE_FT_ALPHA %s, so the value %s has no "
                "effect: use tools/export_weights.py --wise-ft-alpha.",
                self._applied,
                self._alpha,
            )

    def state_dict(self) -> dict:
        """Return the alpha that was applied; empty before the end of training."""
        return {"alpha": self._applied} if self._applied else {}

    def load_state_dict(self, state: dict) -> None:
        self._applied = state["alpha"]
