"""The measurement on the test split, as `cliptune evaluate` wrote it.

Flows in: result.json, whose captions and pictures come from strangers. Flows out: a `Result` of
plain values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.pages.checked import Estimate, Place
from pipelines.report.calibration import Calibration, read_calibration
from pipelines.report.pictures import Captioned, Query, one_of, read_captioned, read_query
from pipelines.runs.baselines import WORDS
from trainables.errors import DataError, unknown
from trainables.files import read_hashed, understood

FORMAT = "cliptune-result-2"
DATA = ["shards", "digest", "split", "images", "captions", "quarantined", "notes"]
DATA += ["duplicated_image_rows", "truncated_captions"]


@dataclass(frozen=True)
class Row:
    """One adapter, or the baseline, on the test split."""

    name: str
    adapter: str
    trial: int | None
    config: Mapping[str, Any]
    trainable_parameters: int
    val: Mapping[str, float]
    epochs: int | None
    seconds: float | None
    metrics: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]  # paired differences to the baseline
    diversity: Mapping[str, float]  # of all its captions; of other tasks empty
    selected: bool
    calibration: Calibration | None  # of classes alone
    is_baseline: bool  # zero-shot with a searched template is not: it is compared like any other


@dataclass(frozen=True)
class Pair:
    """Two trained rows on the same test images."""

    first: str  # the name of a row
    second: str
    gaps: Mapping[str, Estimate]  # paired, of the first minus the second


@dataclass(frozen=True)
class Result:
    """result.json."""

    created: str
    seconds: float | None
    data: Mapping[str, Any]
    backbone: Mapping[str, Any]
    key: str  # of the metric in `Row.metrics`, e.g. t2i_r1@1000
    protocol: list[str]
    against: str  # the adapter of the baseline
    rows: list[Row]
    pairs: list[Pair]
    gallery: list[Query]
    captions: list[Captioned]  # those to show, in order
    test_openings: list[Mapping[str, Any]]
    versions: Mapping[str, Any]
    hardware: Mapping[str, Any]

    @property
    def baseline(self) -> Row | None:
        return next((row for row in self.rows if row.is_baseline), None)

    @property
    def named(self) -> dict[str, Row]:
        return {row.name: row for row in self.rows}

    @property
    def selected(self) -> Row | None:
        """The row chosen on val; where none is marked, there is nothing to claim."""
        return next((row for row in self.rows if row.selected), None)


def read_result(path: Path) -> Result | None:
    """The result in `path`, or None while the test split is sealed."""
    if not path.exists():
        return None
    raw = read_hashed(path, FORMAT, "Restore it, or remove it and run `cliptune evaluate` again.")
    try:
        with understood(path):
            return _result(raw)
    except DataError as error:
        raise DataError(str(error) if str(path) in str(error) else f"`{path}`: {error}") from error


def _result(raw: Mapping[str, Any]) -> Result:
    against = one_of("baseline", str(raw["baseline"]), WORDS)
    rows = [_row(row, against) for row in raw["rows"]]
    names = [row.name for row in rows]
    return Result(
        created=str(raw["created"]),
        seconds=None if raw.get("seconds") is None else float(raw["seconds"]),
        data={key: raw["data"][key] for key in DATA},
        backbone=dict(raw["backbone"]),
        key=_key(str(raw["metric"]), rows),
        protocol=[str(line) for line in raw["protocol"]],
        against=against,
        rows=rows,
        pairs=[_pair(pair, names) for pair in raw.get("pairs") or []],
        gallery=[read_query(query) for query in raw.get("gallery") or []],
        captions=[read_captioned(one, names) for one in raw.get("captions") or []],
        test_openings=list(raw["test_openings"]),
        versions=dict(raw["versions"]),
        hardware=dict(raw["hardware"]),
    )


def _key(metric: str, rows: list[Row]) -> str:
    """`t2i_r1` names the metric of the search; on test it carries its pool, `t2i_r1@1000`."""
    metric = metric.removeprefix("val/")
    keys = [key for row in rows for key in row.metrics]
    found = next((k for k in keys if k == metric or k.startswith(metric + "@")), None)
    if found is None:
        raise DataError(unknown("metric", metric, keys))
    return found


def _row(raw: Mapping[str, Any], against: str) -> Row:
    metrics = {k: Estimate(m["value"], m["low"], m["high"]) for k, m in raw["metrics"].items()}
    gains = _differences(raw.get("vs_baseline") or {})
    name = str(raw["name"])
    return Row(
        name=name,
        adapter=str(raw["adapter"]),
        trial=raw.get("trial"),
        config=raw.get("config") or {},
        trainable_parameters=int(raw["trainable_parameters"]),
        val={k.removeprefix("val/"): v for k, v in (raw.get("val") or {}).items()},
        epochs=raw.get("epochs"),
        seconds=raw.get("seconds"),
        metrics=metrics,
        gains=gains,
        diversity=raw.get("diversity") or {},
        selected=bool(raw.get("selected")),
        calibration=_calibration(raw, name),
        is_baseline=raw["adapter"] == against and not gains,
    )


def _calibration(raw: Mapping[str, Any], name: str) -> Calibration | None:
    if "calibration" not in raw:
        return None
    return read_calibration(Place(raw["calibration"], f"{name}.calibration"))


def _pair(raw: Mapping[str, Any], rows: Collection[str]) -> Pair:
    first, second = (one_of("row", str(raw[side]), rows) for side in ("a", "b"))
    return Pair(first, second, _differences(raw["metrics"]))


def _differences(raw: Mapping[str, Any]) -> dict[str, Estimate]:
    return {
        key: Estimate(
            *(found["difference"], found["low"], found["high"]), found.get("p"), found.get("p_holm")
        )
        for key, found in raw.items()
    }
