"""Ctrl-C that waits for a safe place: a study is written in whole trials."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether the user has asked to stop."""

    requested = False

    def request(self, signum: int, frame: FrameType | None) -> None:
        """Note the first signal; a second one means it."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Turn Ctrl-C into a request that the block looks at between trials."""
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield interrupt
        return
    previous = signal.signal(signal.SIGINT, interrupt.request)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, previous)
