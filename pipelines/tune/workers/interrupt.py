"""Ctrl-C and SIGTERM in a driver of Ray: what trains saves and stops."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipelines.console import say
from trainables.trials.jobs import ask_to_stop

STOP_SECONDS = 8.0  # after an interrupt the driver is gone within ten


class Interrupt:
    """SIGINT, SIGTERM: the trials save and stop at their next step. A second one ends at once."""

    def __init__(
        self, stop_file: Path, stop: Callable[[], None], standing: Callable[[], str]
    ) -> None:
        """`stop`: hand out nothing more; `standing`: where things stand, in words."""
        self.stop_file, self.stop, self.standing = stop_file, stop, standing
        self.seen = False

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        if not self.seen and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _handle(self, *_: object) -> None:
        if self.seen:
            os._exit(130)
        self.seen = True
        self.stop()
        ask_to_stop(self.stop_file)
        threading.Thread(target=self._deadline, daemon=True).start()

    def _deadline(self) -> None:
        """A step that takes longer than the user should wait is given up; its last save stands."""
        try:  # said here: a signal's handler may have interrupted another print
            say("stopping: waiting for what trains to save ...")
            time.sleep(STOP_SECONDS)
            say(self.standing())
            say("interrupted: the same command goes on from the last save.")
        finally:
            os._exit(130)
