"""MLflow's runs, as the API that its own pages ask has them."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from pipelines.records.mlflow import Mlflow, without_password
from tests.recorded import METRIC, REASON, told_in_two_goes
from trainables.errors import CliptuneError

pytest.importorskip("mlflow", reason="needs cliptune[mlflow]")
# Of MLflow, about SQLAlchemy and Starlette; the server's are told apart by no category.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("MLFLOW_"):
            monkeypatch.delenv(name)


def pages(database: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What MLflow's pages ask: a POST to `path`, or a GET with `query`."""
    monkeypatch.setenv("_MLFLOW_SERVER_FILE_STORE", f"sqlite:///{database}")
    monkeypatch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", str(database.parent))
    server = pytest.importorskip("mlflow.server", reason="needs MLflow's server")
    client = server.app.test_client()

    def ask(path: str, given: dict[str, Any] | None = None, **query: str) -> dict[str, Any]:
        where, of = f"/ajax-api/2.0/mlflow/{path}", {"headers": {"Host": "localhost"}}
        answer = (
            client.get(where, query_string=query, **of)
            if given is None
            else client.post(where, json=given, **of)
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json)

    return ask


def pairs(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {one["key"]: one["value"] for one in found}


def test_a_study_is_a_run_with_its_trials_nested_in_it_and_a_resumed_one_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "a study"
    folder.mkdir()
    told_in_two_goes("mlflow", folder)
    assert f"mlflow: sqlite:///{folder}/records/mlflow.db" in capsys.readouterr().out
    assert not [name for name in os.environ if name.startswith("MLFLOW_HTTP")]

    ask = pages(folder / "records" / "mlflow.db", monkeypatch)
    named = ask("experiments/get-by-name", experiment_name="cliptune")["experiment"]
    assert named["artifact_location"] == (folder / "records" / "mlflow").as_uri()
    found = ask("runs/search", {"experiment_ids": [named["experiment_id"]]})["runs"]
    runs = {one["info"]["run_name"]: one for one in found}
    trials = ["0000 lora", "0001 lora", "0002 soft_prompt", "0003 soft_prompt"]
    assert sorted(runs) == [*trials, "a study"]
    assert len(found) == 5
    states = [runs[name]["info"]["status"] for name in (*trials, "a study")]
    assert states == ["FINISHED", "KILLED", "FAILED", "FINISHED", "FINISHED"]

    tags = {name: pairs(one["data"]["tags"]) for name, one in runs.items()}
    parent = runs["a study"]["info"]["run_id"]
    assert {tags[name]["mlflow.parentRunId"] for name in trials} == {parent}
    assert tags["0002 soft_prompt"]["cliptune.reason"] == REASON
    assert tags["a study"]["cliptune.features"] == "f00d"
    assert tags["a study"]["cliptune.objective"] == METRIC
    assert tags["a study"]["cliptune.best.checkpoint"] == str(folder / "trials" / "0003" / "best")
    assert pairs(runs["a study"]["data"]["metrics"]) == {"best": 0.6, "best_trial": 3.0}
    params = pairs(runs["0001 lora"]["data"]["params"])
    assert params == {
        **{"adapter": "lora", "optim.lr": "0.01", "temperature.scale": "None", "batch_size": "16"}
    }
    for name, value in (("0000 lora", 0.1), ("0003 soft_prompt", 0.4)):
        run = runs[name]["info"]["run_id"]
        history = ask("metrics/get-history", run_id=run, metric_key=METRIC)["metrics"]
        values = [(one["step"], pytest.approx(one["value"])) for one in history]
        assert values == [(1, value), (2, value + 0.1), (3, value + 0.2)]


def test_a_server_that_does_not_answer_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # the user's own word counts
    keeper = Mlflow(tmp_path)
    with pytest.raises(CliptuneError, match=r"must reach `http://127\.0\.0\.1:9`") as caught:
        keeper.open()
    assert "secret" not in str(caught.value)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
    assert "MLFLOW_HTTP_REQUEST_TIMEOUT" not in os.environ
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_another_version_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "old.db"
    with sqlite3.connect(database) as old:
        old.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        old.execute("INSERT INTO alembic_version VALUES ('from long ago')")
    old.close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    with pytest.raises(CliptuneError, match="must reach `sqlite:///"):
        Mlflow(tmp_path).open()


def test_a_password_is_nobodys_to_read() -> None:
    text = "could not reach https://me:p%40ss@host/api and http://token@other:80"
    assert without_password(text) == "could not reach https://host/api and http://other:80"
