"""Runs in MLflow: a study is a run, its trials are runs nested in it.

Flows in: runs. Flows out: runs in the experiment `MLFLOW_EXPERIMENT_NAME` (`cliptune`) of the
server or store that `MLFLOW_TRACKING_URI` names; without one, of a SQLite file in the run's folder.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from pipelines.console import word
from pipelines.records.keeper import About, Keeper, Row, State
from trainables.data.shards import chunks
from trainables.errors import CliptuneError

KEY = "cliptune.key"
STATUS = {
    "interrupted": "KILLED",
    "complete": "FINISHED",
    "pruned": "KILLED",  # as MLflow's own storage for Optuna has it
    "failed": "FAILED",
}
# What its client takes from the environment. By default it would wait for minutes.
HURRY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def without_password(text: str) -> str:
    """A text, with the user and password of each address in it left out."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


class Mlflow(Keeper):
    """Nested runs in MLflow 3."""

    name = "mlflow"

    def open(self) -> None:
        import mlflow

        self.hurried = [name for name in HURRY if name not in os.environ]
        os.environ.update({name: HURRY[name] for name in self.hurried})
        for name in ("mlflow.store.db.utils", "alembic"):  # what they did to make the file
            logging.getLogger(name).setLevel(logging.WARNING)
        database = self.folder / "mlflow.db"
        own = f"sqlite:///{database}"
        uri = os.environ.get("MLFLOW_TRACKING_URI") or own  # `mlflow.set_tracking_uri` sets it too
        self.where = without_password(uri)
        far = urlsplit(uri).scheme in ("http", "https", "databricks")
        self.look = "" if far else f"mlflow ui --backend-store-uri {word(self.where)}"
        if uri == own:
            self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():  # of SQLAlchemy, about MLflow's way with it
                warnings.simplefilter("ignore")
                self.client = mlflow.MlflowClient(uri)
                self.experiment = self._experiment(uri == own)
        except Exception as error:  # its client's, its HTTP library's, its database's
            self.close()
            raise CliptuneError(
                f"`--log mlflow` must reach `{self.where}`, set by `MLFLOW_TRACKING_URI`, got: "
                f"{without_password(' '.join(str(error).split()))[:300]}"
            ) from error

    def _experiment(self, own: bool) -> str:
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return str(self.client.get_experiment(given).experiment_id)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "cliptune"
        if found := self.client.get_experiment_by_name(name):
            return str(found.experiment_id)
        beside = (self.folder / "mlflow").as_uri() if own else None
        return str(self.client.create_experiment(name, artifact_location=beside))

    def begin(self, about: About, parent: str | None) -> tuple[str, int]:
        found = self.client.search_runs(
            [self.experiment], f"tags.`{KEY}` = '{about.key}'", max_results=1
        )
        if found:
            run = str(found[0].info.run_id)
            self.client.update_run(run, status="RUNNING")
            return run, self._last(run, found[0].data.metrics)
        nests = {"mlflow.parentRunId": parent} if parent else {}
        source = {"mlflow.source.name": "cliptune", "mlflow.source.type": "LOCAL"}
        tags = dict(about.tags) | source | nests | {KEY: about.key}
        made = self.client.create_run(self.experiment, tags=tags, run_name=about.name)
        run = str(made.info.run_id)
        self._batch(run, params=about.params)
        return run, 0

    def _last(self, run: str, metrics: Mapping[str, float]) -> int:
        """The last epoch of any metric that a run has."""
        if "epoch" not in metrics:
            return 0
        return max(one.step for one in self.client.get_metric_history(run, "epoch"))

    def log(self, run: str, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        found = [
            Metric(_named(name), value, int(row.at * 1000), row.epoch)
            for row in rows
            # Last of a row: what is cut off by a kill is told again.
            for name, value in (*row.metrics.items(), ("epoch", float(row.epoch)))
        ]
        for piece in chunks(found, 1000):
            self.client.log_batch(run, metrics=piece)

    def end(
        self, run: str, state: State, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Metric

        self._batch(run, tags=tags)
        at = int(self.client.get_run(run).info.start_time)  # told twice, it is kept once
        told = [Metric(_named(name), value, at, 0) for name, value in metrics.items()]
        self.client.log_batch(run, metrics=told)
        self.client.set_terminated(run, STATUS[state])

    def close(self) -> None:
        for name in self.hurried:
            os.environ.pop(name, None)

    def _batch(
        self,
        run: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        from mlflow.entities import Param, RunTag

        given = [Param(_named(key), str(one)) for key, one in (params or {}).items()]
        said = [RunTag(key, one) for key, one in (tags or {}).items()]
        for piece in chunks(given, 100):
            self.client.log_batch(run, params=piece)
        self.client.log_batch(run, tags=said)


def _named(name: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w\-. :/]", "_", name)
