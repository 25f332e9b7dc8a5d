"""Ctrl-C: heard while a stage works, and left to whoever has the process."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from pipelines.signals import PATIENCE, heard
from pipelines.tune.workers.interrupt import Interrupt


def test_the_handlers_of_before_are_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    came: list[int] = []
    with heard(lambda number, _: came.append(number)):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert came == [signal.SIGINT, signal.SIGTERM]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_thread_hears_nothing_and_takes_no_handler() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with heard(lambda *_: None):
            inside.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]


def test_who_imports_cliptune_is_interrupted_and_keeps_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command is gone within seconds instead, which its own tests see."""
    assert PATIENCE.get() is None
    stopped: list[bool] = []
    interrupt = Interrupt(tmp_path / "stop", lambda: stopped.append(True), lambda: "so far")
    with interrupt.listening():
        signal.raise_signal(signal.SIGINT)
        assert interrupt.seen
        assert stopped == [True]
        assert (tmp_path / "stop").exists()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
