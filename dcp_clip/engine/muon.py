"""The Muon optimizer, for linear layers and convolutions, in float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["Muon", "hidden_matrices", "orthogonalize"]

# Muon's coefficients of the Newton-Schulz polynomial, and its number of iterations.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_MOMENTUM = 0.95
# A kernel with fewer input or output channels takes pixels as input or is depthwise.
_MIN_CHANNELS = 5


class Muon(torch.optim.AdamW):
    """AdamW with orthogonal update matrices for the parameter groups with ``"orthogonal": True``.

    For those groups, Newton-Schulz iteration replaces the Nesterov momentum of a weight matrix by
    the nearest matrix whose singular values are all close to 1 (K. Jordan's Muon). The update is
    scaled to the size of an AdamW update, so both can use the same learning rates (arXiv
    2502.16982). A convolution kernel counts as a matrix of shape (out, in * kh * kw).

    ``torch.optim.Muon`` accepts no convolution kernels. It also iterates in bfloat16, as timm's
    Muon does by default. On a CPU without bfloat16 units this is about forty times slower than
    float32.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Update all parameters.

        Args:
            closure: a function that evaluates the model again and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = []
        for group in self.param_groups:
            if group.get("orthogonal", False):
                for p in group["params"]:
                    if p.grad is not None:
                        self._update_matrix(p, group["lr"], group["weight_decay"])
                        gradients.append((p, p.grad))
                        p.grad = None  # AdamW skips parameters without a gradient
        super().step()
        for p, gradient in gradients:
            p.grad = gradient
        return loss

    def _update_matrix(self, p: Tensor, lr: float, weight_decay: float) -> None:
        state = self.state[p]
        if not state:
            # AdamW expects a step count in every state that it loads.
            state["step"], state["momentum"] = torch.tensor(0.0), torch.zeros_like(p)
        state["step"] += 1
        momentum = state["momentum"].lerp_(p.grad, 1 - _MOMENTUM)
        update = orthogonalize(p.grad.lerp(momentum, _MOMENTUM).flatten(1))
        scale = 0.2 * max(update.shape) ** 0.5
        p.mul_(1 - lr * weight_decay).add_(update.view(p.shape), alpha=-lr * scale)


def orthogonalize(matrix: Tensor) -> Tensor:
    """Approximate the nearest orthogonal (or semi-orthogonal) matrix.

    Args:
        matrix: (m, n).

    Returns:
        (m, n). Singular values above about 1% of the norm become 0.7 to 1.2; smaller ones grow, but
        less.
    """
    x = matrix.float()
    is_tall = len(x) > x.shape[1]
    x = x.T if is_tall else x
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    # Every iteration multiplies x by a polynomial of x x^T. Accumulating the product of these
    # polynomials works on the smaller matrix.
    gram, total = x @ x.T, torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(_NUM_ITERATIONS):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        total = polynomial @ total
        gram = polynomial @ gram @ polynomial
    x = total @ x
    return (x.T if is_tall else x).to(matrix.dtype)


def hidden_matrices(model: nn.Module) -> set[nn.Parameter]:
    """Return the weight matrices and kernels that map features to features.

    These exclude embeddings, biases, norms, depthwise kernels, and kernels whose input is pixels.
    """
    return {
        parameter
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for name, parameter in module.named_parameters(recurse=False)
        if not name.endswith("_embedding")
        and parameter.ndim >= 2
        and min(parameter.shape[:2]) >= _MIN_CHANNELS
    }
