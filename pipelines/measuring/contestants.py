"""Who is measured on test: a run's folder flows in, named checkpoints chosen on val flow out.

Everything about them that can be wrong is found here, before the test split is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainables.adapters.base import Adapter
from trainables.adapters.registry import build, make_config
from trainables.backbone import Backbone
from trainables.checkpoint import digest, load_adapter, read_config, verify
from trainables.config import Task
from trainables.draws import Draw, check_draw, read_draw
from trainables.errors import ConfigError, DataError
from trainables.files import read_json, read_jsonl

ZERO_SHOT = {"adapter.template": "{}"}  # the captions as they are


@dataclass(frozen=True)
class Contestant:
    """One row of the result: a trained checkpoint, or the zero-shot baseline where it is None."""

    name: str
    folder: Path | None = None  # of the trial: metrics.jsonl, best/
    trial: int | None = None
    selected: bool = False  # chosen on val among all of the run

    def load(self, backbone: Backbone, task: Task = "retrieval") -> Adapter[Any]:
        if self.folder is None:
            config = make_config("zero_shot", {"task": task, **ZERO_SHOT})
            return build(config, backbone).to(backbone.device).eval()
        return load_adapter(self.folder / "best", backbone)

    def identity(self) -> str:
        """Changes when the checkpoint's bytes do."""
        if self.folder is None:
            return self.name
        verify(self.folder / "best")
        return digest(self.folder / "best")

    def history(self) -> dict[str, Any]:
        """Epochs and seconds of its training, and its val metrics at the chosen epoch."""
        if self.folder is None:
            return {"val": {}, "epochs": 0, "seconds": 0.0}
        chosen = read_json(self.folder / "best" / "state.json")["row"]
        last = read_jsonl(self.folder / "metrics.jsonl")[-1]
        val = {k.removeprefix("val/"): v for k, v in chosen.items() if k.startswith("val/")}
        return {"val": val, "epochs": int(last["epoch"]), "seconds": float(last["seconds"])}


@dataclass(frozen=True)
class Contest:
    """A run's contestants, zero-shot first, and what they were trained on."""

    features: Path
    metric: str  # without its split, e.g. t2i_r1
    contestants: list[Contestant]
    draw: Draw | None = None
    retain: tuple[Draw, ...] = ()  # of classes that training never saw
    others: Draw | None = None  # classes to measure on test instead of the draw's own

    @property
    def measured(self) -> Draw | None:
        """The classes to measure on test; None: captions."""
        return self.others or self.draw

    def about_others(self) -> list[str]:
        """The sentence of the protocol that tells what was measured from what was trained on."""
        if self.draw is None or self.others is None:
            return []
        return [
            f"Trained on the {len(self.draw.names)} classes of part `{self.draw.part}`, measured "
            f"on the {len(self.others.names)} of part `{self.others.part}`."
        ]

    @property
    def task(self) -> Task:
        return "retrieval" if self.draw is None else "classification"


def read_contest(run: Path, only_best: bool, others: Path | None = None) -> Contest:
    """The contestants of the study, or of the single training run, in folder `run`; `others` is a
    draw of the classes to measure."""
    if (run / "study.json").is_file():
        about = read_json(run / "study.json")
        trained = _of_study(run, only_best)
    elif (run / "run.json").is_file():
        about = read_json(run / "run.json")
        name = str(read_json(run / "config.json")["name"])
        if "share" in about:
            name += f" at {about['share']:g}"
        trained = [Contestant(name, run, selected=True)]
    else:
        raise DataError(f"`{run}` holds no run: neither study.json nor run.json is there.")
    metric = str(about.get("metric", "val/t2i_r1")).removeprefix("val/")
    features = Path(about["features"])
    draw = _draw(about["draw"], about["draw_key"]) if "draw" in about else None
    pairs = zip(about.get("retain", []), about.get("retain_keys", []), strict=True)
    retain = tuple(_draw(path, key) for path, key in pairs)
    if others is not None and draw is None:
        raise ConfigError(f"`--draw` is for classes, but `{run}` was trained on captions.")
    asked = None if others is None else check_draw(features, others)
    return Contest(features, metric, _with_baseline(trained), draw, retain, asked)


def check_open(contest: Contest, adapters: Sequence[Adapter[Any]]) -> None:
    """Raise where an adapter that knows only its own classes is asked about others."""
    own, asked = contest.draw, contest.others
    if own is None or asked is None or asked.names == own.names:
        return
    for one, adapter in zip(contest.contestants, adapters, strict=True):
        if not adapter.open_classes:
            raise ConfigError(
                f"`{one.name}` knows only the {len(own.names)} classes of part `{own.part}` that "
                f"it was trained on: it cannot be measured on part `{asked.part}`."
            )


def _draw(path: str, key: str) -> Draw:
    """A draw of the run, unchanged since."""
    draw = read_draw(Path(path))
    if draw.key != key:
        raise DataError(f"`{path}` is another draw than the run was trained on.")
    return draw


def _of_study(run: Path, only_best: bool) -> list[Contestant]:
    path = run / "best.json"
    if not path.is_file():
        raise DataError(f"`{run}` has no best.json: no trial has finished, run `cliptune tune`.")
    best = read_json(path)
    entries = {best["adapter"]: best} if only_best else best["per_adapter"]
    return [
        Contestant(name, run / entry["path"], entry["trial"], entry["trial"] == best["trial"])
        for name, entry in entries.items()
    ]


def _with_baseline(trained: list[Contestant]) -> list[Contestant]:
    """Zero-shot first. A zero-shot trial that found no template of its own is that very row."""
    plain = make_config("zero_shot", ZERO_SHOT).adapter
    others = []
    baseline = Contestant("zero_shot")
    for one in trained:
        if one.name != "zero_shot" or one.folder is None:
            others.append(one)
        elif read_config(one.folder).adapter == plain:
            baseline = replace(baseline, selected=one.selected)
        else:
            others.append(replace(one, name="zero_shot, own template"))
    return [baseline, *others]
