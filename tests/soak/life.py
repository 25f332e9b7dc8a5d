"""One life of a command: a process of its own, forked from one that has imported all."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HANGS = 300.0  # seconds after which nothing will come any more


@dataclass(frozen=True)
class Life:
    """How it ended: its exit code (None: it was killed), what it said, how long it took."""

    code: int | None
    said: str
    seconds: float


def live(
    work: Callable[[], None],
    log: Path,
    kill: float | None = None,
    whom: Callable[[int], None] | None = None,
) -> Life:
    """Let `work` be done in a process of its own, and kill it after so many seconds: with all that
    it started, or by `whom`, after which it may go on."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be(work, log)
    code = _wait(child, HANGS if kill is None else kill)
    if code is None and whom is not None:
        whom(child)
        code = _wait(child, HANGS)
    if code is None:
        with contextlib.suppress(ProcessLookupError):  # it has no group yet
            os.killpg(child, signal.SIGKILL)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    seconds = time.monotonic() - started
    if code is None and seconds >= HANGS:
        code = -1
    return Life(code, log.read_text(errors="replace") if log.exists() else "", seconds)


def _be(work: Callable[[], None], log: Path) -> None:
    os.setsid()
    file = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.fsync = lambda _: None  # the machine lives
    code = 0
    try:
        work()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _wait(child: int, seconds: float) -> int | None:
    """Its exit code, if it ends by then."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None
