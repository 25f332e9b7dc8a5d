"""What all our searchers share, for Ray Tune.

Flows in: the word to stop or to pause. Flows out: no further trials.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from trainables.errors import CliptuneError
from trainables.faults import disk_failure


class FromDisk(Searcher):
    """Hands out trials until it is told to stop. Ray pickles searchers to restore them; ours are
    restored from what the trials themselves left on disk."""

    stopping = False
    paused = ""  # why nothing can go on, of which no trial is to blame

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a search is resumed from its own files, not from Ray's state.")

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def stop(self) -> None:
        """Hand out no more trials."""
        self.stopping = True

    def pause(self, reason: str) -> None:
        """Hand out no more trials until the reason is gone and the same command is given again."""
        self.paused = self.paused or reason
        self.stop()


@contextmanager
def pausing(searcher: FromDisk) -> Iterator[None]:
    """A context in which a reason that keeps all trials from going on, as a full disk, ends the
    command, and is not counted as any trial's failure."""
    try:
        yield
    except Exception as error:  # of Tune's own files, on the same disk
        if not (searcher.paused or disk_failure(error)):
            raise
        searcher.pause(disk_failure(error))
    if searcher.paused:
        raise CliptuneError(
            f"paused: {searcher.paused.rstrip('.')}. Nothing is booked as a trial's failure: when "
            "the reason is gone, the same command goes on where this one stopped."
        )
