"""What every searcher of ours has in common, for Ray Tune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.search import Searcher


class FromDisk(Searcher):
    """Hands out trials until it is told to stop. Ray pickles searchers to restore them; ours are
    restored from what the trials themselves left on disk."""

    stopping = False

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
