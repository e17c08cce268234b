"""A hash of a module's weights. It is computed again only if a weight has changed."""

from __future__ import annotations

import ctypes
import hashlib

from torch import Tensor, nn

__all__ = ["WeightsFingerprint"]


class WeightsFingerprint:
    """Computes the hash of a module's weights. Several threads can use it.

    Call `clear` after you have changed weights through ``.data``, which PyTorch does not count.
    """

    def __init__(self) -> None:
        # The dictionaries of the modules that hold the tensors; None if not collected yet.
        self._tensors: list[dict[str, Tensor | None]] | None = None
        self._known: tuple[list[tuple[int, int]], str] | None = None

    def clear(self) -> None:
        """Forget the module. Call this after you have replaced a module inside it."""
        self._tensors = self._known = None

    def __reduce__(self) -> tuple:
        return WeightsFingerprint, ()  # a copy of the module has other tensors

    def of(self, module: nn.Module) -> str:
        """Return the SHA-256 (hex) of the module's weights; always pass the same module."""
        # Writing in place increases a tensor's version, and replacing it changes the address. A
        # loop over the collected tensors is several times faster than a walk through the modules.
        # Each attribute is read only once, because other threads may set it.
        collected, known = self._tensors, self._known
        if collected is None:
            collected = [d for m in module.modules() for d in (m._parameters, m._buffers) if d]
            self._tensors = collected
        versions = [
            (tensor.data_ptr(), tensor._version)
            for tensors in collected
            for tensor in tensors.values()
            if tensor is not None
        ]
        if known is None or known[0] != versions:
            digest = hashlib.sha256()
            for name, tensor in module.state_dict().items():
                digest.update(name.encode())
                content = tensor.detach().cpu().contiguous()
                # Without an operation of PyTorch, so that torch.jit.trace can run through here.
                digest.update(ctypes.string_at(content.data_ptr(), content.nbytes))
            known = self._known = (versions, digest.hexdigest())
        return known[1]
