"""A start of training in which CLIP's image tower stays as it is."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

__all__ = ["FrozenStartHook"]


class FrozenStartHook(HookBase):
    """Keeps CLIP's image tower frozen for the first iterations.

    As long as the decoder is random its gradients say nothing about the tower, and would move it
    away from the names that training does not show. Register it before all other hooks.
    """

    def __init__(self, model: nn.Module, iterations: int):
        """
        Args:
            model: without its distributed wrapper; what trains in its `backbone` is what waits.
            iterations: how long.
        """
        self._model, self._iterations = model, iterations
        self._waiting = [p for p in model.backbone.parameters() if p.requires_grad]

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> FrozenStartHook | None:
        """What SOLVER.FREEZE_IMAGE_ITERS asks for, None for 0.

        Raises:
            ValueError: where the tower would never train, or trains nothing anyway.
        """
        iterations = cfg.SOLVER.FREEZE_IMAGE_ITERS
        if not iterations:
            return None
        if not 0 < iterations < cfg.SOLVER.MAX_ITER:
            raise ValueError(
                f"SOLVER.FREEZE_IMAGE_ITERS is {iterations}, SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER};"
                " it must be at least 0 and below that (MODEL.CLIP.TRAIN_IMAGE 'none' freezes the "
                "tower for good)."
            )
        hook = cls(model, iterations)
        if not hook._waiting:
            raise ValueError(
                f"SOLVER.FREEZE_IMAGE_ITERS is {iterations}, but MODEL.CLIP.TRAIN_IMAGE "
                f"'{cfg.MODEL.CLIP.TRAIN_IMAGE}' trains nothing of the image tower: set the "
                "one to 0, or the other to what is to train."
            )
        return hook

    def before_train(self) -> None:
        self._set(self.trainer.iter >= self._iterations)

    def before_step(self) -> None:
        if self.trainer.iter == self._iterations:
            self._set(True)

    def _set(self, trains: bool) -> None:
        for parameter in self._waiting:
            parameter.requires_grad_(trains)
        # A tower that is frozen is in evaluation mode, see CLIPBackbone.train.
        self._model.train()
