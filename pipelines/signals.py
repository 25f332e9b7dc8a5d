"""Ctrl-C and SIGTERM: who hears them while a stage works, and who has the process.

Flows in: what is to be done at a signal. Flows out: the handlers that were there before, when the
work is over. A command has its process, and is gone within seconds; whoever imports cliptune, a
notebook or a program, keeps theirs, and gets a `KeyboardInterrupt` once all is saved.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

# Seconds after an interrupt in which this process ends, saved or not; None: it is not ours to end.
PATIENCE: ContextVar[float | None] = ContextVar("patience", default=None)


@contextmanager
def own_process(seconds: float = 8.0) -> Iterator[None]:
    """This process is a command's, which its user sees gone within ten seconds."""
    before = PATIENCE.set(seconds)
    try:
        yield
    finally:
        PATIENCE.reset(before)


@contextmanager
def heard(handle: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to `handle` in the block; outside of the main thread nothing can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, handle) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, old in before.items():
            signal.signal(one, signal.SIG_DFL if old is None else old)  # None: set outside Python
