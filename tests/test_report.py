"""The report: every number appears, nothing untrusted runs, and half-finished searches are shown."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from PIL import Image

from pipelines import report
from trainables.errors import DataError

SPACES = {
    "lora": {
        "optim.lr": FloatDistribution(1e-5, 1e-2, log=True),
        "adapter.rank": CategoricalDistribution((2, 4, 8)),
        "temperature.policy": CategoricalDistribution(("fixed", "learned")),
    },
    "soft_prompt": {
        "optim.lr": FloatDistribution(1e-4, 1e-1, log=True),
        "adapter.n_ctx": IntDistribution(1, 16),
    },
}
RUNGS = [1, 3, 9]
FAILURE = "Diverged: the loss was inf at step 40."


# -- a made-up run folder ---------------------------------------------------------------------


def _params(adapter: str, i: int) -> dict[str, Any]:
    lr = 10 ** (-4.5 + (i * 0.618) % 1 * 2)
    if adapter == "lora":
        return {
            "optim.lr": lr,
            "adapter.rank": (2, 4, 8)[i % 3],
            "temperature.policy": ("fixed", "learned")[i % 2],
        }
    return {"optim.lr": lr * 10, "adapter.n_ctx": 1 + i * 5 % 16}


def _trial(adapter: str, i: int, state: TrialState, epochs: int) -> optuna.trial.FrozenTrial:
    params = _params(adapter, i)
    top = 0.30 + 0.13 * ((i * 0.618) % 1) + (0.05 if adapter == "lora" else 0.0)
    curve = {e: 0.25 + (top - 0.25) * (1 - 0.6**e) - 0.004 * (e % 2) for e in range(1, epochs + 1)}
    attrs: dict[str, Any] = {"config": {"name": adapter, **params}, "recipe": i < 2}
    if state is TrialState.FAIL:
        attrs["reason"] = FAILURE
    elif state is not TrialState.RUNNING:
        attrs |= {"best": max(curve.values()), "epochs": epochs, "seconds": 7.25 * epochs}
        attrs["trainable_parameters"] = 196_608 if adapter == "lora" else 8_192
    spaces = {"adapter": CategoricalDistribution(tuple(SPACES))}
    spaces |= {f"{adapter}/{k}": d for k, d in SPACES[adapter].items()}
    return create_trial(
        state=state,
        value=max(curve.values()) if state is TrialState.COMPLETE else None,
        params={"adapter": adapter} | {f"{adapter}/{k}": v for k, v in params.items()},
        distributions=spaces,
        intermediate_values=curve,
        user_attrs=attrs,
    )


def make_study(run: Path, trials: list[tuple[str, TrialState, int]]) -> Path:
    """A run folder with a study of `trials`: (adapter, state, epochs)."""
    run.mkdir(parents=True)
    facts = {"format": "cliptune-study-1", "metric": "val/t2i_r1", "adapters": sorted(SPACES)}
    facts |= {"seed": 0, "trials": len(trials), "epochs": 9, "rungs": RUNGS, "created": "2026-01-01"}
    (run / "study.json").write_text(json.dumps(facts))
    storage = JournalStorage(JournalFileBackend(str(run / "journal.log")))
    study = optuna.create_study(study_name="cliptune", storage=storage, direction="maximize")
    study.add_trials([_trial(a, i, state, e) for i, (a, state, e) in enumerate(trials)])
    (run / "zero_shot").mkdir()
    (run / "zero_shot" / "metrics.jsonl").write_text('{"epoch": 1, "val/t2i_r1": 0.2875}\n')
    return run


def usual() -> list[tuple[str, TrialState, int]]:
    """24 trials of two adapters as ASHA leaves them: some complete, some pruned, one failed."""
    ends = {0: 9, 1: 3, 2: 1}
    made = []
    for i in range(24):
        epochs = ends[i // 2 % 3]
        state = TrialState.COMPLETE if epochs == 9 else TrialState.PRUNED
        made.append((sorted(SPACES)[i % 2], state, epochs))
    made[7] = (made[7][0], TrialState.FAIL, 0)
    return made


def thumbnail(shade: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (24, 18), (shade, 120, 255 - shade)).save(stream, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _metrics(base: float) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for direction, pool, shift in (("t2i", 1000, 0.0), ("i2t", 5000, 0.1111)):
        for k, more in ((1, 0.0), (5, 0.25), (10, 0.35)):
            value = base + shift + more
            low, high = value - 0.0213, value + 0.0217
            made[f"{direction}_r{k}@{pool}"] = {"value": value, "low": low, "high": high}
        made[f"{direction}_medr@{pool}"] = {"value": 3.0, "low": 2.0, "high": 4.0}
        made[f"{direction}_mrr@{pool}"] = {"value": 0.512, "low": 0.501, "high": 0.523}
    return made


def _row(adapter: str, base: float, gain: float, **more: Any) -> dict[str, Any]:
    metrics = _metrics(base)
    gains = {
        key: {"difference": gain, "low": gain - 0.0221, "high": gain + 0.0219, "p": 0.0005}
        for key in metrics
    }
    row = {"name": adapter, "adapter": adapter, "trial": 3, "config": {"optim.lr": 0.00123}}
    row |= {"trainable_parameters": 196_608, "val": {"t2i_r1": 0.4567}, "epochs": 9}
    row |= {"seconds": 65.25, "metrics": metrics, "vs_zero_shot": gains, "selected": False}
    return row | more


def make_result() -> dict[str, Any]:
    zero = {"trial": None, "config": {}, "trainable_parameters": 0, "val": {}, "vs_zero_shot": {}}
    picture = {"id": "img-7", "score": 0.3217, "hit": False, "thumb": thumbnail(40)}
    hit = picture | {"id": "img-1", "score": 0.3456, "hit": True, "thumb": thumbnail(200)}
    return {
        "format": "cliptune-result-1",
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 12.5,
        "data": {
            "shards": "shards/flickr8k",
            "digest": "d1gest",
            "split": "test",
            "images": 1000,
            "captions": 5000,
            "quarantined": {"truncated image": 3, "empty caption": 17},
            "notes": {"exif_rotated": 23},
            "duplicated_image_rows": {"rows": 41, "groups": [], "warning": "41 rows repeat."},
            "truncated_captions": 29,
        },
        "backbone": {"name": "openai/clip-vit-base-patch32", "revision": "3d74acf", "fingerprint": "f1"},
        "metric": "t2i_r1",
        "protocol": ["All five captions of an image count.", "Ties count against the model."],
        "rows": [
            _row("zero_shot", 0.2961, 0.0, **zero, epochs=0, name="zero-shot"),
            _row("lora", 0.4196, 0.1235, selected=True),
            _row("soft_prompt", 0.3333, 0.0372, trainable_parameters=8_192),
        ],
        "gallery": [
            {
                "query": "a <script>alert(1)</script> dog | runs",
                "image_id": "img-1",
                "truth": thumbnail(200),
                "before": [picture] * 3 + [hit, picture],
                "after": [hit] + [picture] * 4,
            }
        ],
        "test_openings": [
            {"at": "2026-01-02", "by": "evaluate", "rows": ["zero-shot", "lora"], "digest": "d1gest"}
        ],
        "versions": {"torch": "2.13.0", "transformers": "5.20.0"},
        "hardware": {"cpu": "EPYC <9>", "cores": 2, "gpu": None, "ram_gib": 15.6},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a study, a result, and its report."""
    run = make_study(tmp_path_factory.mktemp("runs") / "x", usual())
    (run / "result.json").write_text(json.dumps(make_result()))
    report.run(report.Args(run))
    return run


def reported(run: Path) -> tuple[str, str]:
    report.run(report.Args(run))
    return (run / "report.html").read_text(), (run / "report.md").read_text()


def words(html: str) -> str:
    """The text that a reader sees."""

    class Reader(HTMLParser):
        text: list[str] = []  # noqa: RUF012

        def handle_data(self, data: str) -> None:
            self.text.append(data)

    reader = Reader()
    reader.text = []
    reader.feed(html)
    return " ".join(" ".join(reader.text).split())
