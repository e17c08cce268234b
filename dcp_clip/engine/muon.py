"""Muon, for the pre-training of small towers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Muon", "hidden_matrices"]

# Of the polynomial that pulls singular values towards 1, by the author of Muon.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_MOMENTUM = 0.95
# Channels in and out of a matrix, at least: below it the input is pixels, or the kernel depthwise.
_SMALLEST = 5


class Muon(torch.optim.AdamW):
    """AdamW, but for groups with ``"orthogonal": True``, whose steps are orthogonal matrices.

    The Nesterov momentum of a weight matrix is replaced by the nearest matrix whose singular values
    are all about 1, by a Newton-Schulz iteration (K. Jordan's Muon), and scaled to the size of
    AdamW's steps, so that both take the same rates (arXiv 2502.16982). Kernels of convolutions
    count as matrices of out x (in * kh * kw).

    PyTorch's Muon takes no kernels of convolutions, and both it and timm's iterate in bfloat16,
    which a CPU without units for it computes some forty times slower than float32. This one
    iterates in float32.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of all groups.

        Args:
            closure: evaluates the model anew and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = []
        for group in self.param_groups:
            if group.get("orthogonal", False):
                for p in group["params"]:
                    if p.grad is not None:
                        self._step_matrix(p, group["lr"], group["weight_decay"])
                        held.append((p, p.grad))
                        p.grad = None  # AdamW passes over what has no gradient
        super().step()
        for p, grad in held:
            p.grad = grad
        return loss

    def _step_matrix(self, p: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[p]
        if not state:
            # AdamW looks for a count of steps in every state that it loads.
            state["step"], state["momentum"] = torch.tensor(0.0), torch.zeros_like(p)
        state["step"] += 1
        momentum = state["momentum"].lerp_(p.grad, 1 - _MOMENTUM)
        update = orthogonalised(p.grad.lerp(momentum, _MOMENTUM).flatten(1))
        scale = 0.2 * max(update.shape) ** 0.5
        p.mul_(1 - lr * weight_decay).add_(update.view(p.shape), alpha=-lr * scale)


def orthogonalised(matrix: Tensor) -> Tensor:
    """About the orthogonal (or semi-orthogonal) matrix nearest to an (m, n) one: singular values
    between 0.7 and 1.2."""
    x = matrix.float()
    tall = len(x) > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = _QUINTIC
    # All steps multiply by polynomials of x x^T, so they are taken on it, which is the smaller.
    gram, total = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(_STEPS):
        step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        step.diagonal().add_(a)
        total = step @ total
        gram = step @ gram @ step
    x = total @ x
    return (x.T if tall else x).to(matrix.dtype)


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that map features to features: no embedding, bias or norm, no depthwise
    kernel, and no kernel that reads pixels."""
    return {
        parameter
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if not name.endswith("_embedding")
        and parameter.ndim >= 2
        and min(parameter.shape[:2]) >= _SMALLEST
    }
