"""Delay Ctrl-C and SIGTERM until it is safe to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["Interruption"]


class Interruption:
    """A context that delays SIGINT (Ctrl-C) and SIGTERM (kill, Slurm, docker).

    Inside an `allowed` block, a signal raises KeyboardInterrupt at once. Elsewhere it waits for the
    next `allowed` block, so an image never has only a part of its result files. A second Ctrl-C
    raises KeyboardInterrupt anywhere. A signal that the program ignored before stays ignored.
    Outside the main thread the context does nothing, because Python does not handle signals there.

    Attributes:
        signal: number of the first signal that was received, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._raise_at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None stands for a handler that Python did not install and cannot restore.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Raise KeyboardInterrupt for signals in this block, and for a signal received before."""
        self._raise_at_once = True
        try:
            if self.signal is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._raise_at_once = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        second_ctrl_c = self.signal is not None and number == signal.SIGINT
        if self.signal is None:
            self.signal = number
        if self._raise_at_once or second_ctrl_c:
            raise KeyboardInterrupt
