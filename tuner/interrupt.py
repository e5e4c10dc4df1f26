"""Ctrl-C and SIGTERM that wait for a safe place: a study is written in whole trials."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether somebody has asked to stop."""

    requested = False

    def request(self, signum: int, frame: FrameType | None) -> None:
        """Note the first signal; a second one means it."""
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True


@contextmanager
def deferred_interrupt() -> Iterator[Interrupt]:
    """Turn Ctrl-C and SIGTERM into a request that the block looks at between trials.

    Signals that the parent process had ignored (as `nohup` does) stay ignored.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield interrupt
        return
    taken = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) is not signal.SIG_IGN]
    previous = [(each, signal.signal(each, interrupt.request)) for each in taken]
    try:
        yield interrupt
    finally:
        for each, handler in previous:
            signal.signal(each, handler)
