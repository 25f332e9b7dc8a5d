"""A run that trains in other processes, followed from the command line that started it.

Flows in: the run's folder, and a function that waits for its workers. Flows out: a line for each
epoch in the folder, and a stop file where the user wants to stop.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from pipelines.tune.workers.interrupt import Interrupt
from trainables.files import read_jsonl

T = TypeVar("T")
LOOK_EVERY = 0.5  # seconds


def follow(
    work: Callable[[], T], folder: Path, stop_file: Path, show: Callable[[dict[str, Any]], None]
) -> T:
    """The result of `work`, which gets a thread of its own: in the main one Ray Train would take
    Ctrl-C for itself, and end without a word."""
    metrics = folder / "metrics.jsonl"
    shown = len(read_jsonl(metrics))

    def standing() -> str:
        return f"{len(read_jsonl(metrics))} epochs are done."

    stop_file.unlink(missing_ok=True)
    working: Future[T] = Future()
    threading.Thread(target=_run, args=(work, working), daemon=True).start()
    with Interrupt(stop_file, lambda: None, standing).listening():
        over = False
        while not over:
            over = _over(working)
            rows = read_jsonl(metrics)
            for row in rows[shown:]:
                show(row)
            shown = max(shown, len(rows))  # workers that start anew write some again
    stop_file.unlink(missing_ok=True)
    return working.result()


def _run(work: Callable[[], T], working: Future[T]) -> None:
    try:
        working.set_result(work())
    except BaseException as error:
        working.set_exception(error)


def _over(working: Future[Any]) -> bool:
    """Whether it is, once it may be."""
    try:
        working.exception(LOOK_EVERY)
    except TimeoutError:
        return False
    return True
