"""TensorBoard's HParams dashboard, as its own backend reads what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.plugins.hparams.api_pb2 import STATUS_FAILURE, STATUS_SUCCESS, STATUS_UNKNOWN

from pipelines.tune.recording import recording
from tests.recorded import METRIC, begin, finish


def dashboard(place: Path) -> dict[str, Any]:
    """The sessions that HParams shows, by name."""
    events = EventMultiplexer()
    events.AddRunsFromDirectory(str(place))
    events.Reload()
    provider = MultiplexerDataProvider(events, str(place))
    shown = backend_context.Context(TBContext(data_provider=provider, logdir=str(place)))
    every = [STATUS_UNKNOWN, STATUS_SUCCESS, STATUS_FAILURE, api_pb2.STATUS_RUNNING]
    ask = api_pb2.ListSessionGroupsRequest(slice_size=100, allowed_statuses=every)
    for tag in (METRIC, "best"):
        ask.col_params.add(metric=api_pb2.MetricName(tag=tag))
    found = list_session_groups.Handler(RequestContext(), shown, "", ask).run()
    return {one.name: one for one in found.session_groups}


def test_every_trial_is_there_with_its_values_its_metric_and_how_it_ended(tmp_path: Path) -> None:
    study = begin(tmp_path)
    with pytest.raises(KeyboardInterrupt), recording([], study, tmp_path):
        raise KeyboardInterrupt
    with recording([], study, tmp_path):
        finish(tmp_path, study)
    found = dashboard(tmp_path / "records" / "tensorboard")
    assert sorted(found) == ["0000 lora", "0001 lora", "0002 soft_prompt", "0003 soft_prompt"]
    values = found["0000 lora"].hparams
    assert (values["adapter"].string_value, values["optim.lr"].number_value) == ("lora", 0.01)
    assert values["temperature.scale"].string_value == "None"
    ends = {name: one.sessions[0].status for name, one in found.items()}
    assert {name for name, status in ends.items() if status == STATUS_FAILURE} == {
        "0002 soft_prompt"
    }
    resumed = {
        one.name.tag: (one.value, one.training_step)
        for one in found["0003 soft_prompt"].metric_values
    }
    assert resumed[METRIC] == (pytest.approx(0.6), 3)
    assert resumed["best"] == (pytest.approx(0.6), 0)
    assert len(list((tmp_path / "records/tensorboard/0003 soft_prompt").iterdir())) == 1
