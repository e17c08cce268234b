"""Evaluation under autocast without converting the same weights in every forward."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor, nn

__all__ = ["AutocastWeights"]

# The layers whose weights autocast converts before it multiplies.
_CONVERTED = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)


class AutocastWeights:
    """Keeps a copy of a module whose weights are in autocast's precision already.

    Autocast converts the weights of each linear layer and convolution anew in every forward (what
    PyTorch itself keeps of them ends with the context); of a CLIP tower's 90 million these are 70
    ms of a second on two cores. The copy gives the same bits (but for a ViT's attention, for which
    PyTorch chooses another path). It shares all other parameters and buffers with the original, is
    made anew when a weight has changed, and costs 2 bytes a weight.

    A copy of this object, as a copied or unpickled model has, starts anew.
    """

    def __init__(self) -> None:
        self._copy: nn.Module | None = None
        self._state: list[tuple] = []

    def of(self, module: nn.Module) -> nn.Module:
        """What to run instead of `module`: a copy, or itself where nothing is to be gained.

        That is outside autocast, where gradients are wanted, and while the module trains.
        """
        if module.training or torch.is_grad_enabled():
            return module
        device = next(module.parameters()).device.type
        if not torch.is_autocast_enabled(device):
            return module
        weights = _converted_weights(module)
        if not weights or weights[0].is_inference():  # such a tensor does not tell of changes
            return module
        dtype = torch.get_autocast_dtype(device)
        state = [(id(w), w.device, w.dtype, w._version) for w in weights] + [(dtype,)]
        if self._copy is None or state != self._state:
            self._copy = None  # or else there are two for a moment
            self._copy, self._state = _converted(module, weights, dtype), state
        return self._copy

    def clear(self) -> None:
        """Forget the copy."""
        self._copy, self._state = None, []

    def __reduce__(self) -> tuple:
        return type(self), ()


def _converted_weights(module: nn.Module) -> list[nn.Parameter]:
    layers = (layer for layer in module.modules() if isinstance(layer, _CONVERTED))
    return [p for layer in layers for p in layer.parameters(recurse=False)]


def _converted(module: nn.Module, weights: list[nn.Parameter], dtype: torch.dtype) -> nn.Module:
    memo: dict[int, Tensor] = {id(x): x for x in chain(module.parameters(), module.buffers())}
    memo |= {id(w): nn.Parameter(w.detach().to(dtype), requires_grad=False) for w in weights}
    return copy.deepcopy(module, memo)
