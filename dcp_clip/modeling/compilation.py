"""torch.compile where it can be had, the plain function where not."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

__all__ = ["Compiled"]

logger = logging.getLogger(__name__)


class Compiled:
    """A function that is compiled when it is first called, and a few times more for other inputs.

    Sizes that differ from one call to the next become dynamic; past torch's recompile_limit it runs
    what is still new uncompiled, and warns of it.

    Where torch.compile fails (no C++ compiler, an operator that it does not know) one warning says
    so, and this call and all later ones run the function as it is. A copy of it, as a copied or
    unpickled model has, starts anew.
    """

    def __init__(self, function: Callable, what: str, backend: str | Callable = "inductor"):
        """
        Args:
            function: importable by its name; modules it uses are arguments, so that a copied model
                does not run the weights of the original.
            what: named in the warning.
            backend: torch.compile's.
        """
        self._function, self._what, self._backend = function, what, backend
        self._compiled: Callable | None = None

    def __call__(self, *args):
        if self._compiled is None:
            self._compiled = torch.compile(self._function, backend=self._backend)
        from torch._dynamo.exc import TorchDynamoException  # seconds to import; is there by now

        try:
            return self._compiled(*args)
        except TorchDynamoException as error:
            out = self._function(*args)  # raises what the input is at fault for
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning(
                "torch.compile failed on %s, which runs uncompiled from here on "
                "(MODEL.DCP_CLIP.COMPILE): %s",
                self._what,
                reason if len(reason) <= 300 else f"{reason[:300]}…",
            )
            self._compiled = self._function
            return out

    def __reduce__(self) -> tuple:
        return type(self), (self._function, self._what, self._backend)
