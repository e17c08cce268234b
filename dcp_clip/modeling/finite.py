"""Check that weights and logits have no NaN and no infinite values.

A comparison with NaN is false, so argmax of NaN logits is category 0. Without these checks, a model
with invalid weights would label every pixel with the first category, without an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

__all__ = ["NonFiniteError", "check_logits", "check_weights"]


class NonFiniteError(ValueError):
    """Weights or logits contain NaN or infinite values."""


def check_weights(weights: Mapping[str, Tensor], source: str = "") -> None:
    """Raise an error if a weight is NaN or infinite.

    Args:
        weights: a state dict.
        source: the file of the weights, for the message.

    Raises:
        NonFiniteError: naming the first such weight.
    """
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise NonFiniteError(
                f"The weights {f'in {source}' if source else 'of the model'} contain NaN or "
                f"infinite values, first in '{name}', so the model has no answers. Use an earlier "
                "checkpoint."
            )


def check_logits(*tensors: Tensor) -> None:
    """Raise an error if logits or scores are NaN or infinite.

    Raises:
        NonFiniteError: if a tensor contains such a value.
    """
    if not all(tensor.isfinite().all() for tensor in tensors):
        raise NonFiniteError(
            "The model computed NaN or infinite logits, so it has no answer for this image. Check "
            "the weights, and do not use half precision if they are valid."
        )
