"""The measurement on the test split, as `cliptune evaluate` wrote it.

Flows in: result.json, whose captions and pictures come from strangers. Flows out: a `Result` of
plain values, in which a picture is either a JPEG data URI or nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainables.errors import DataError
from trainables.files import read_json

FORMAT = "cliptune-result-1"
DATA = ["shards", "digest", "split", "images", "captions", "quarantined", "notes"]
DATA += ["duplicated_image_rows", "truncated_captions"]
JPEG = re.compile(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; a difference to zero-shot also has its p."""

    value: float
    low: float
    high: float
    p: float | None = None


@dataclass(frozen=True)
class Row:
    """One adapter, or zero-shot, on the test split."""

    name: str
    adapter: str
    trial: int | None
    config: Mapping[str, Any]
    trainable_parameters: int
    val: Mapping[str, float]
    epochs: int | None
    seconds: float | None
    metrics: Mapping[str, Estimate]
    gains: Mapping[str, Estimate]  # paired differences to zero-shot
    selected: bool

    @property
    def is_zero_shot(self) -> bool:
        """The baseline; zero-shot with a searched template is compared to it like any other."""
        return self.adapter == "zero_shot" and not self.gains


@dataclass(frozen=True)
class Picture:
    id: str
    score: float | None
    hit: bool
    thumb: str  # a data URI, or empty


@dataclass(frozen=True)
class Query:
    """A test caption, its own picture, and the five nearest before and after adapting."""

    text: str
    image_id: str
    truth: str  # a data URI, or empty
    before: list[Picture]
    after: list[Picture]


@dataclass(frozen=True)
class Result:
    """result.json."""

    created: str
    seconds: float | None
    data: Mapping[str, Any]
    backbone: Mapping[str, Any]
    key: str  # of the metric in `Row.metrics`, e.g. t2i_r1@1000
    protocol: list[str]
    rows: list[Row]
    gallery: list[Query]
    test_openings: list[Mapping[str, Any]]
    versions: Mapping[str, Any]
    hardware: Mapping[str, Any]

    @property
    def zero_shot(self) -> Row | None:
        return next((row for row in self.rows if row.is_zero_shot), None)

    @property
    def selected(self) -> Row | None:
        """The row chosen on val; where none is marked, there is nothing to claim."""
        return next((row for row in self.rows if row.selected), None)


def read_result(path: Path) -> Result | None:
    """The result in `path`, or None while the test split is sealed."""
    if not path.exists():
        return None
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise DataError(f"`{path}` must have the format `{FORMAT}`: run `cliptune evaluate` again.")
    try:
        return _result(raw)
    except KeyError as error:
        raise DataError(f"`{path}` lacks the field `{error.args[0]}`.") from error
    except (TypeError, AttributeError, ValueError) as error:
        raise DataError(f"`{path}` has a field of a wrong type: {error}.") from error


def _result(raw: Mapping[str, Any]) -> Result:
    rows = [_row(row) for row in raw["rows"]]
    return Result(
        created=str(raw["created"]),
        seconds=raw.get("seconds"),
        data={key: raw["data"][key] for key in DATA},
        backbone=raw["backbone"],
        key=_key(str(raw["metric"]), rows),
        protocol=[str(line) for line in raw["protocol"]],
        rows=rows,
        gallery=[_query(q) for q in raw.get("gallery") or []],
        test_openings=list(raw["test_openings"]),
        versions=raw["versions"],
        hardware=raw["hardware"],
    )


def _key(metric: str, rows: list[Row]) -> str:
    """`t2i_r1` names the metric of the search; on test it carries its pool, `t2i_r1@1000`."""
    metric = metric.removeprefix("val/")
    keys = [key for row in rows for key in row.metrics]
    return next((k for k in keys if k == metric or k.startswith(metric + "@")), metric)


def _row(raw: Mapping[str, Any]) -> Row:
    metrics = {k: Estimate(m["value"], m["low"], m["high"]) for k, m in raw["metrics"].items()}
    gains = {
        key: Estimate(d["difference"], d["low"], d["high"], d.get("p"))
        for key, d in (raw.get("vs_zero_shot") or {}).items()
    }
    return Row(
        name=str(raw["name"]),
        adapter=str(raw["adapter"]),
        trial=raw.get("trial"),
        config=raw.get("config") or {},
        trainable_parameters=int(raw["trainable_parameters"]),
        val={k.removeprefix("val/"): v for k, v in (raw.get("val") or {}).items()},
        epochs=raw.get("epochs"),
        seconds=raw.get("seconds"),
        metrics=metrics,
        gains=gains,
        selected=bool(raw.get("selected")),
    )


def _query(raw: Mapping[str, Any]) -> Query:
    return Query(
        text=str(raw["query"]),
        image_id=str(raw["image_id"]),
        truth=_jpeg(raw["truth"]),
        before=[_picture(p) for p in raw["before"]],
        after=[_picture(p) for p in raw["after"]],
    )


def _picture(raw: Mapping[str, Any]) -> Picture:
    return Picture(str(raw["id"]), raw.get("score"), bool(raw["hit"]), _jpeg(raw["thumb"]))


def _jpeg(text: Any) -> str:
    """`text` if a browser can only take it for a JPEG, else nothing."""
    return text if isinstance(text, str) and JPEG.fullmatch(text) else ""
