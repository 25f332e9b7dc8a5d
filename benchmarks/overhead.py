"""What a search costs besides training: time of a warm worker between the steps of its trials.

Flows in: nothing; pictures and a tiny CLIP are drawn. Flows out: seconds a trial: sampling, Ray,
loading, measuring on val, saving. The first trials, which start the worker, are left out.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from benchmarks.harness import Limit
from benchmarks.search import Search
from pipelines.tune.study.study import open_study

TRIALS = 100
WARM = 24  # trials that end before the clock starts; whole groups of those that train together


def outside(fuse: int) -> float:
    """Seconds a trial of one epoch that its worker, the only one, did not spend in steps."""
    with tempfile.TemporaryDirectory(prefix="cliptune-bench-") as folder:
        search = Search(Path(folder), "tiny")
        search.store()
        search.tune(
            *("--adapter", "projection", "--trials", TRIALS, "--epochs", 1, "--fuse", fuse),
            *("--set", "batch_size=32", "precision=fp32"),
        )
        trials = open_study(search.folder / "study").get_trials(deepcopy=False)
        ended = sorted(
            (trial.datetime_complete.timestamp(), trial.number)
            for trial in trials
            if trial.datetime_complete is not None
        )
        steps = sum(_step_seconds(search.trial(number)) for _, number in ended[WARM:])
    return (ended[-1][0] - ended[WARM - 1][0] - steps) / len(ended[WARM:])


def _step_seconds(trial: Path) -> float:
    rows = (trial / "metrics.jsonl").read_text().splitlines()
    return sum(float(json.loads(row)["train/seconds"]) for row in rows)


LIMITS = (
    Limit(
        "overhead/trial",
        f"{TRIALS} tiny trials, one after the other: wall seconds of each outside its steps",
        0.5,
        lambda: outside(fuse=1),
    ),
    Limit(
        "overhead/fused",
        f"{TRIALS} tiny trials, 8 at a time: the same",
        0.01,
        lambda: outside(fuse=8),
    ),
)
