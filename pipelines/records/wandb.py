"""Runs in Weights & Biases: a study is a run, its trials are runs of its group.

Flows in: runs. Flows out: runs in the project `WANDB_PROJECT` (`cliptune`). `WANDB_MODE` says
whether they are sent; where it is not set they are if the user is logged in, else they lie in the
run's folder for `wandb sync`.
"""

from __future__ import annotations

import netrc
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipelines.console import word
from pipelines.records.keeper import About, Keeper, Row, State
from trainables.errors import CliptuneError

SECONDS = 20.0  # to wait for its server


def logged_in() -> bool:
    """Whether Weights & Biases would find a key, without reading it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    files = [os.environ.get("NETRC") or "~/.netrc", "~/_netrc"]
    try:
        return any(
            host in netrc.netrc(path).hosts
            for path in map(os.path.expanduser, files)
            if Path(path).is_file()
        )
    except (OSError, netrc.NetrcParseError):
        return False


class Wandb(Keeper):
    """Runs of one group. Weights & Biases has no nested runs: a group is how it shows such."""

    name = "wandb"

    def open(self) -> None:
        import wandb

        settings = wandb.setup().settings
        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        self.mode: Any = mode if settings.mode in (None, "", "online") else str(settings.mode)
        self.project = os.environ.get("WANDB_PROJECT") or "cliptune"
        self.runs: dict[str, Any] = {}
        self.group = ""
        if self.mode == "online":
            self.where, self.look = f"the project {self.project} of {settings.base_url}", ""
            return
        place = Path(os.environ.get("WANDB_DIR") or self.folder) / "wandb"
        self.where = str(place)
        self.look = f"wandb sync {word(place)}/offline-run-*" if self.mode == "offline" else ""

    def begin(self, about: About, parent: str | None) -> tuple[str, int]:
        import wandb

        given = os.environ.get("WANDB_DIR")
        if not given:
            self.folder.mkdir(parents=True, exist_ok=True)
        self.group = self.group or os.environ.get("WANDB_RUN_GROUP") or about.name
        try:
            run = wandb.init(
                project=self.project,
                id=about.key,
                name=about.name if parent is None else f"{self.group} {about.name}",
                group=self.group,
                job_type="study" if parent is None else "trial",
                config=dict(about.params) | {"cliptune": dict(about.tags)},
                dir=given or str(self.folder),
                mode=self.mode,
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True,
                    console="off",
                    init_timeout=SECONDS,
                    disable_git=True,
                    save_code=False,
                    x_disable_stats=True,  # of the driver: a trial trains elsewhere
                ),
            )
        except wandb.errors.Error as error:
            words = " ".join(str(error).split())[:300]
            raise CliptuneError(f"`--log wandb` must reach {self.where}, got: {words}") from error
        self.runs[about.key] = run
        if self.mode == "offline":
            self._supersede(about.key, Path(run.dir).parent)
        return about.key, max(0, run.starting_step - 1)

    def _supersede(self, key: str, now: Path) -> None:
        """Remove what earlier drivers wrote of a run: all of it is told again, and of several
        folders of one run the last that is sent would be all there is."""
        for old in now.parent.glob(f"offline-run-*-{key}"):
            if old != now:
                shutil.rmtree(old, ignore_errors=True)

    def log(self, run: str, rows: Sequence[Row]) -> None:
        for row in rows:
            self.runs[run].log({**row.metrics, "epoch": row.epoch}, step=row.epoch)

    def end(
        self, run: str, state: State, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        own = self.runs.pop(run)
        own.summary.update({**metrics, **tags, "state": state})
        own.finish(exit_code=int(state == "failed"))

    def close(self) -> None:
        """Finish what goes on when the search does."""
        import wandb

        for run in self.runs.values():
            run.finish()
        self.runs.clear()
        wandb.teardown()
