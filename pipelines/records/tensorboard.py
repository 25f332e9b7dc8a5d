"""Trials for TensorBoard: their curves, and the HParams dashboard.

Flows in: trials. Flows out: a folder a trial, with its scalars, its hyperparameters, and whether it
failed; written anew, whole, by a driver that goes on with it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pipelines.console import word
from pipelines.records.keeper import About, Keeper, Row, State
from trainables.config import Value

START, END = "_hparams_/session_start_info", "_hparams_/session_end_info"


class TensorBoard(Keeper):
    """A session of HParams a trial. The run that trials nest in has none: its folder holds them."""

    name = "tensorboard"

    def open(self) -> None:
        self.place = self.folder / "tensorboard"
        self.where, self.look = str(self.place), f"tensorboard --logdir {word(self.place)}"
        self.writers: dict[str, Any] = {}

    def begin(self, about: About, parent: str | None) -> tuple[str, int]:
        from tensorboard.plugins.hparams.plugin_data_pb2 import SessionStartInfo
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if parent is None:
            return about.key, 0
        folder = self.place / about.name
        shutil.rmtree(folder, ignore_errors=True)
        self.writers[about.key] = EventFileWriter(str(folder))
        info = SessionStartInfo(start_time_secs=time.time(), group_name=about.name)
        for name, value in about.params.items():
            _put(info.hparams[name], value)
        self._hparams(about.key, START, session_start_info=info)
        return about.key, 0

    def log(self, run: str, rows: Sequence[Row]) -> None:
        for row in rows:
            self._scalars(run, row.metrics, row.epoch, row.at)

    def end(
        self, run: str, state: State, metrics: Mapping[str, float], tags: Mapping[str, str]
    ) -> None:
        from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS
        from tensorboard.plugins.hparams.plugin_data_pb2 import SessionEndInfo

        del tags  # in it, the trial's folder has the number that `--out` has it by
        if run not in self.writers:
            return
        now = time.time()
        self._scalars(run, metrics, 0, now)
        status = STATUS_FAILURE if state == "failed" else STATUS_SUCCESS
        self._hparams(run, END, session_end_info=SessionEndInfo(status=status, end_time_secs=now))
        self.writers.pop(run).close()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()

    def _scalars(self, run: str, metrics: Mapping[str, float], step: int, at: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=one) for name, one in metrics.items()]
        event = Event(wall_time=at, step=step, summary=Summary(value=values))
        self.writers[run].add_event(event)
        self.writers[run].flush()

    def _hparams(self, run: str, tag: str, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import metadata, plugin_data_pb2

        about = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
        value = Summary.Value(tag=tag, metadata=about, tensor=metadata.NULL_TENSOR)
        self.writers[run].add_event(Event(wall_time=time.time(), summary=Summary(value=[value])))
        self.writers[run].flush()


def _put(place: Any, value: Value) -> None:
    """A value by its kind: a number stays one, so that the dashboard has a scale for it."""
    if isinstance(value, bool):
        place.bool_value = value
    elif isinstance(value, int | float):
        place.number_value = float(value)
    else:
        place.string_value = str(value)
