"""Ctrl-C and SIGTERM in a driver of Ray: all trials save and stop.

Flows in: the signals. Flows out: a stop file, and a line that says where things stand.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from pipelines.console import say
from pipelines.signals import PATIENCE, heard
from trainables.trials.jobs import ask_to_stop


class Interrupt:
    """SIGINT, SIGTERM: the trials save and stop at their next step. A second one ends at once."""

    def __init__(
        self, stop_file: Path, stop: Callable[[], None], standing: Callable[[], str]
    ) -> None:
        """`stop`: called to hand out nothing more; `standing`: where things stand, in words."""
        self.stop_file, self.stop, self.standing = stop_file, stop, standing
        self.seen, self.patience = False, PATIENCE.get()

    def listening(self) -> AbstractContextManager[None]:
        return heard(self._handle)

    def _handle(self, *_: object) -> None:
        if self.seen:
            if self.patience is None:
                raise KeyboardInterrupt
            os._exit(130)
        self.seen = True
        self.stop()
        ask_to_stop(self.stop_file)
        # Said there: a signal's handler may have interrupted another print.
        threading.Thread(target=self._deadline, daemon=True).start()

    def _deadline(self) -> None:
        """Give up a step that takes longer than the user should wait; its last save stands."""
        try:
            say("stopping: waiting for what trains to save ...")
            if self.patience is None:
                return
            time.sleep(self.patience)
            say(self.standing())
            say("interrupted: the same command goes on from the last save.")
        finally:
            if self.patience is not None:
                os._exit(130)
