"""A cache of text features in memory, which several threads can share."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["FeatureMemory"]

F = TypeVar("F")  # TextFeatures, or the feature (D,) of a name


class FeatureMemory(Generic[F]):
    """A thread-safe cache of the features of the most recently used vocabularies or names.

    A copy starts empty, also a copy made by `pickle`.
    """

    def __init__(self, size: int) -> None:
        """
        Args:
            size: maximum number of vocabularies or names.
        """
        self.size = size
        self._features: OrderedDict[tuple, F] = OrderedDict()
        self._lock = threading.Lock()  # held for moments only
        self._computing = threading.Lock()

    def get(self, key: tuple) -> F | None:
        """Return the features of a key, or None."""
        with self._lock:
            if key in self._features:
                self._features.move_to_end(key)
            return self._features.get(key)

    def put(self, key: tuple, features: F) -> None:
        """Store the features of a key, and remove the least recently used ones beyond `size`."""
        with self._lock:
            self._features[key] = features
            self._features.move_to_end(key)
            while len(self._features) > self.size:
                self._features.popitem(last=False)

    def get_or_compute(self, key: tuple, compute: Callable[[], F]) -> F:
        """Return the features of a key, and compute them if there are none.

        Only one thread computes at a time, to bound the memory. Other threads can still call `get`.
        """
        if (features := self.get(key)) is not None:
            return features
        with self._computing:
            features = self.get(key)  # another thread may just have computed them
            if features is None:
                features = compute()
                self.put(key, features)
        return features

    def clear(self) -> None:
        """Remove all features."""
        with self._lock:
            self._features.clear()

    def __len__(self) -> int:
        return len(self._features)

    def __reduce__(self) -> tuple:
        return FeatureMemory, (self.size,)  # locks cannot be copied
