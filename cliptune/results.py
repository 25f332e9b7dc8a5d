"""What stages wrote, as Python has it.

Flows in: a stage's folder, complete. Flows out: a small frozen dataclass, its tables as pandas
frames. Reading opens nothing that is sealed and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cliptune.values import PathLike, in_words, path_of
from pipelines.pages.checked import Estimate
from trainables.errors import DataError
from trainables.files import read_hashed, read_json, read_jsonl, understood

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Shards:
    """A folder of shards: how many images and captions each split has, and what was left out."""

    path: Path
    splits: pd.DataFrame  # split: images, captions
    quarantine: pd.DataFrame  # a row a record that is not in the shards, with its id and reason

    @classmethod
    @in_words()
    def read(cls, path: PathLike) -> Shards:
        import pandas as pd

        from trainables.data.shards import ShardSet

        folder = path_of("path", path)
        splits = ShardSet.open(folder).splits
        frame = pd.DataFrame.from_dict(splits, orient="index")[["images", "captions"]]
        bad = pd.DataFrame(read_jsonl(folder / "quarantine.jsonl"), columns=["id", "reason"])
        return cls(folder, frame, bad)


@dataclass(frozen=True)
class Best:
    """The adapter that a search chose on val; `trial` is None where nothing beat the baseline,
    which needs no training."""

    adapter: str
    trial: int | None
    value: float  # of the study's metric, on val
    config: Mapping[str, Any]  # by dotted field


@dataclass(frozen=True, eq=False)
class Study:
    """A search, as far as it has come: what was tried, and what was chosen on val.

    >>> study = cliptune.Study.read("runs/search")
    >>> study.metric, study.trials.adapter.tolist()
    ('t2i_r1', ['soft_prompt', 'soft_prompt'])
    >>> study.words[:13]
    'chosen on val'
    """

    path: Path
    metric: str
    baseline: float | None  # what zero-shot, or the nearest caption, reached on val
    best: Best | None  # None while no trial has ended
    trials: pd.DataFrame  # by number: adapter, state, value, ... (`retained`), the values searched
    words: str  # how the best was chosen, in a sentence

    @classmethod
    @in_words()
    def read(cls, path: PathLike) -> Study:
        import pandas as pd

        from pipelines.report.study import read_study

        folder = path_of("path", path)
        if not (folder / "study.json").is_file():
            raise DataError(f"`{folder}` holds no study: study.json is not there.")
        study = read_study(folder)
        plain = ["adapter", "state", "value", "epochs", "seconds", "trainable_parameters", "reason"]
        plain += ["retained"] * study.retains
        rows = {
            one.number: {name: getattr(one, name) for name in plain} | dict(one.params)
            for one in study.trials
        }
        names = dict.fromkeys([*plain, *(name for row in rows.values() for name in row)])
        frame = pd.DataFrame(list(rows.values()), list(rows), list(names)).rename_axis("trial")
        frame = frame.astype({"value": float, "seconds": float, "trainable_parameters": "Int64"})
        choice = study.choice
        best = None
        if choice:
            with understood(folder / "best.json"):
                place, found = choice["path"], (choice["adapter"], choice["trial"], choice["value"])
            best = Best(*found, read_json(folder / place / "config.json") if place else {})
        words = str(choice.get("chosen", {}).get("words", ""))
        return cls(folder, study.metric, study.baseline, best, frame, words)


@dataclass(frozen=True, eq=False)
class Run:
    """One adapter's training: its configuration, and what it reached after each epoch."""

    path: Path
    config: Mapping[str, Any]  # by dotted field
    metric: str  # which epoch was kept is told by this one; "" without val
    history: pd.DataFrame  # by epoch: train/loss, val/..., seconds

    @classmethod
    @in_words()
    def read(cls, path: PathLike) -> Run:
        import pandas as pd

        from pipelines.runs.contestants import read_about
        from trainables.training.rows import rows_of

        folder = path_of("path", path)
        if (folder / "study.json").is_file():
            raise DataError(f"`{folder}` holds a study, not one run: `Study.read` reads it.")
        file, about = read_about(folder)
        frame = pd.DataFrame(rows_of(folder) or {"epoch": []}).set_index("epoch")
        with understood(file):
            metric = str(about["metric"]) if about.get("val", True) else ""
        return cls(folder, read_json(folder / "config.json"), metric, frame)


@dataclass(frozen=True, eq=False)
class Result:
    """What the sealed test split said: each adapter beside the baseline, with 95 % intervals.

    >>> result = cliptune.Result.read("runs/mine")
    >>> result.metric
    't2i_r1@10'
    >>> list(result.standings.columns[:3])
    ['value', 'low', 'high']
    >>> result.beats_baseline
    False
    """

    path: Path
    metric: str  # with the pool that it ranks among, as t2i_r1@1000
    chosen: str | None  # the row that was chosen on val
    standings: pd.DataFrame  # by row: `metric` and its paired difference to the baseline
    metrics: pd.DataFrame  # the same for all metrics, by row and metric
    openings: int  # how often test was opened for this run

    @property
    def beats_baseline(self) -> bool:
        """Whether the row chosen on val beats the baseline: its interval is above 0, and its p
        with Holm's correction for all rows below 0.05."""
        from trainables.statistics.bootstrap import sign

        if self.chosen is None:
            return False
        row = self.standings.loc[self.chosen, ["difference_low", "difference_high", "p_holm"]]
        return sign(*row.tolist()) > 0  # of the baseline itself there are none

    @classmethod
    @in_words()
    def read(cls, run: PathLike, draw: PathLike | None = None) -> Result:
        """The result in the folder `run`; with a `draw` of other classes, that of its part."""
        import pandas as pd

        from pipelines.report.result import read_result
        from trainables.features.few_shot import read_draw

        part = "" if draw is None else f"-{read_draw(path_of('draw', draw)).part}"
        path = path_of("run", run) / f"result{part}.json"
        if path.with_name("arena.json").is_file():
            raise DataError(f"`{path.parent}` holds an arena, not a run: `Arena.read` reads it.")
        found = read_result(path)
        if found is None:
            raise DataError(f"`{path}` is not there: test is sealed until `evaluate` opens it.")
        rows = {
            (row.name, metric): _line(one, row.gains.get(metric))
            for row in found.rows
            for metric, one in row.metrics.items()
        }
        frame = pd.DataFrame.from_dict(rows, orient="index").astype(float)
        frame.index = pd.MultiIndex.from_tuples(rows, names=["row", "metric"])
        return cls(
            path=path,
            metric=found.key,
            chosen=found.selected.name if found.selected else None,
            standings=frame.xs(found.key, level="metric"),
            metrics=frame,
            openings=len(found.test_openings),
        )


def _line(one: Estimate, gap: Estimate | None) -> dict[str, float | None]:
    """A metric with its interval, and its paired difference to the baseline, if it is another."""
    ends = gap or Estimate(*[float("nan")] * 3)
    return {
        **{"value": one.value, "low": one.low, "high": one.high},
        **{"difference": ends.value, "difference_low": ends.low, "difference_high": ends.high},
        **{"p": ends.p, "p_holm": ends.p_holm},
    }


@dataclass(frozen=True, eq=False)
class Arena:
    """Every adapter on every data set, measured on test: a row an adapter in each table."""

    path: Path
    table: pd.DataFrame

    @classmethod
    @in_words()
    def read(cls, path: PathLike) -> Arena:
        import pandas as pd

        from pipelines.arena.cells import FORMAT
        from pipelines.arena.statistics import standings

        folder = path_of("path", path)
        rows = [
            asdict(table.block)
            | {name: getattr(row, name) for name in ("adapter", "accuracy", "key")}
            | {"spread": row.spread.get(row.key or ""), "seeds": len(row.seeds)}
            | {"seconds": row.seconds, "parameters": row.parameters}
            for table in standings(read_hashed(folder / "arena.json", FORMAT))
            for row in table.rows
        ]
        return cls(folder, pd.DataFrame(rows).astype({"spread": float}))
