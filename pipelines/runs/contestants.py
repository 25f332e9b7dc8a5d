"""The checkpoints that are measured on test.

Flows in: a run's folder. Flows out: named checkpoints, chosen on val. Everything about them that
can be wrong is found here, before the test split is opened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.console import word
from pipelines.hold import refuse_links
from trainables.adapters.base import Adapter
from trainables.adapters.registry import ADAPTERS, BASELINES, build, make_config
from trainables.config import Task, TrainConfig, Value
from trainables.data.store import MANIFEST
from trainables.errors import ConfigError, DataError, unknown
from trainables.features.features import open_features
from trainables.features.few_shot import Draw, check_draw, read_draw
from trainables.features.split import SplitFeatures
from trainables.files import read_json, understood
from trainables.hardware import Resolved
from trainables.models.backbone import Backbone
from trainables.training.checkpoint import load_adapter, read_config
from trainables.training.integrity import digest, verify
from trainables.training.rows import rows_of
from trainables.training.selection import METRICS, check_metric

PLAIN: dict[str, Value] = {"adapter.template": "{}"}  # the captions as they are


def baseline(task: Task) -> TrainConfig:
    """The configuration of the task's baseline, with which every row is compared.

    >>> baseline("captioning").name
    'nearest_caption'
    """
    name = BASELINES[task]
    return make_config(name, {"task": task, **(PLAIN if name == "zero_shot" else {})})


@dataclass(frozen=True)
class Contestant:
    """One row of the result: a trained checkpoint, or the task's baseline where it is None."""

    name: str
    folder: Path | None = None  # of the trial: metrics.jsonl, best/
    trial: int | None = None
    selected: bool = False  # chosen on val among all of the run

    def load(
        self,
        backbone: Backbone,
        task: Task = "retrieval",
        train: SplitFeatures | None = None,
        precision: Resolved | None = None,
    ) -> Adapter[Any]:
        """The adapter of this row. `train`: the images from which a baseline of captioning takes
        its words; `precision`: of a checkpoint, another than that of its training."""
        if self.folder is None:
            config = replace(baseline(task), precision=backbone.precision)  # frozen, as the store
            return build(config, backbone, train).to(backbone.device).eval()
        return load_adapter(self.folder / "best", backbone, precision)

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
        with understood(self.folder / "best" / "state.json"):
            chosen = read_json(self.folder / "best" / "state.json")["row"]
            val = {k.removeprefix("val/"): v for k, v in chosen.items() if k.startswith("val/")}
        with understood(self.folder / "metrics.jsonl"):
            last = rows_of(self.folder)[-1]
            return {"val": val, "epochs": int(last["epoch"]), "seconds": float(last["seconds"])}


@dataclass(frozen=True)
class Contest:
    """A run's contestants, the baseline first, and what they were trained on."""

    features: Path
    task: Task
    metric: str  # without its split, e.g. t2i_r1
    contestants: list[Contestant]
    draw: Draw | None = None
    retain: tuple[Draw, ...] = ()  # of classes that training never saw
    others: Draw | None = None  # classes to measure on test instead of the draw's own
    folds: int = 0  # over the shots, by which it was chosen too
    with_val: bool = True

    @property
    def best(self) -> Contestant:
        """The one chosen on val among all of the run."""
        return next(one for one in self.contestants if one.selected)

    @property
    def measured(self) -> Draw | None:
        """The classes to measure on test; None: captions."""
        return self.others or self.draw

    def about_val(self) -> list[str]:
        """The sentence of the protocol on what val was, where more than val was measured."""
        if not self.with_val:
            return ["It was trained without val: its last epoch is measured, and nothing chosen."]
        if self.folds:
            return [
                f"Beside val stood {self.folds} folds over the shots, each measured by a run that "
                "had not seen it."
            ]
        return []

    def about_others(self) -> list[str]:
        """The sentence of the protocol that tells the measured classes from the trained ones."""
        if self.draw is None or self.others is None:
            return []
        return [
            f"Trained on the {len(self.draw.names)} classes of part `{self.draw.part}`, measured "
            f"on the {len(self.others.names)} of part `{self.others.part}`."
        ]

    def load(self, backbone: Backbone) -> list[Adapter[Any]]:
        """The adapters of all contestants."""
        train = None
        if self.task == "captioning":
            train = open_features(self.features, "train", backbone)
        return [one.load(backbone, self.task, train) for one in self.contestants]


def read_contest(run: Path, only_best: bool, others: Path | None = None) -> Contest:
    """The contestants of the study, or of the single training run, in folder `run`; `others` is a
    draw of the classes to measure."""
    path, about = read_about(run)
    with understood(path):
        task: Task = about.get("task", "classification" if "draw" in about else "retrieval")
        if task not in METRICS:
            raise DataError(f"`{path}`: " + unknown("task", str(task), METRICS))
        check_metric(about.get("metric", METRICS[task][0]), task)
        metric = str(about.get("metric", METRICS[task][0])).removeprefix("val/")
        features = Path(about["features"])
        draw = _draw(about["draw"], about["draw_key"]) if "draw" in about else None
        if task == "classification" and draw is None:
            raise DataError(f"`{path}` lacks the field `draw`.")
        pairs = zip(about.get("retain", []), about.get("retain_keys", []), strict=True)
        retain = tuple(_draw(path, key) for path, key in pairs)
        how = int(about.get("folds", 0)), bool(about.get("val", True))
        share = f" at {about['share']:g}" if "share" in about else ""
    if path.name == "study.json":
        trained = _of_study(run, only_best)
    else:
        trained = [Contestant(read_config(run).name + share, run, selected=True)]
    if others is not None and draw is None:
        raise ConfigError(f"`--draw` is for classes, but `{run}` was trained on captions.")
    if not (features / MANIFEST).is_file():
        raise DataError(
            f"`{run}` was trained on `{features}`, which is not there any more. If it was moved, "
            f"type {_relink(run)}."
        )
    asked = None if others is None else check_draw(features, others)
    contestants = _with_baseline(trained, task)
    return Contest(features, task, metric, contestants, draw, retain, asked, *how)


def about_files(run: Path) -> list[Path]:
    """The files that identify what is in `run`; none where it is no run."""
    return [path for name in ("study.json", "run.json") if (path := run / name).is_file()]


def read_about(run: Path) -> tuple[Path, dict[str, Any]]:
    """The file that identifies a study, or a single training run, and its contents."""
    refuse_links(run)
    paths = about_files(run)
    if not paths:
        raise DataError(f"`{run}` holds no run: neither study.json nor run.json is there.")
    help = f"Restore it. Where its features lie now is said by {_relink(run)}."
    with understood(paths[0]):
        return paths[0], dict(read_json(paths[0], help))


def _relink(run: Path) -> str:
    return f"`cliptune relink --run {word(run)} --features NEW_PLACE`"


def join(contest: Contest, run: Path, beside: Sequence[Path]) -> Contest:
    """The contestants of more runs, on the same features, beside those of `run`. Each then has the
    name of its run's folder before its own."""
    if not beside:
        return contest
    names = [path.resolve().name for path in (run, *beside)]
    if len(set(names)) < len(names):
        raise ConfigError(f"`--beside` must be runs in folders of different names, got {names}.")
    own = [replace(one, name=f"{names[0]}: {one.name}") for one in contest.contestants[1:]]
    for path, name in zip(beside, names[1:], strict=True):
        other = read_contest(path, only_best=True)
        if (other.features, other.task, other.draw) != (
            contest.features,
            contest.task,
            contest.draw,
        ):
            raise ConfigError(
                f"`--beside {path}` must be a run for {contest.task} on `{contest.features}`, with "
                f"the same draw if any; it is one for {other.task} on `{other.features}`."
            )
        own += [
            replace(one, name=f"{name}: {one.name}", selected=False)
            for one in other.contestants[1:]
        ]
    return replace(contest, contestants=[contest.contestants[0], *own])


def check_open(contest: Contest, adapters: Sequence[Adapter[Any]]) -> None:
    """Raise where an adapter that scores only its own classes is asked about others, or where the
    record of its training cannot be read."""
    for one in contest.contestants:
        one.history()
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
    with understood(path):
        best = read_json(path)
        entries = [best] if only_best else [*best["per_adapter"].values()]
        if best not in entries and best["trial"] is None:  # val prefers what needs no training
            entries.append(best)
        for one in entries:
            if one["adapter"] not in ADAPTERS:
                raise DataError(f"`{path}`: " + unknown("adapter", str(one["adapter"]), ADAPTERS))
        return [
            Contestant(one["adapter"], _inside(run, one), number, number == best["trial"])
            for one in entries
            for number in [one["trial"]]
        ]


def _inside(run: Path, entry: Mapping[str, Any]) -> Path:
    """The folder of a trial, which is in its study's own."""
    folder = run / entry["path"]
    if not folder.resolve().is_relative_to(run.resolve()):
        raise DataError(
            f"`{run / 'best.json'}`: `path` of `{entry['adapter']}` must lie in the study's "
            f"folder, got {entry['path']!r}."
        )
    return folder


def _with_baseline(trained: list[Contestant], task: Task) -> list[Contestant]:
    """The contestants with the baseline first. A trial of zero-shot that chose nothing of its own
    is the same row."""
    plain = baseline(task)
    others = []
    first = Contestant(plain.name)
    for one in trained:
        if one.name != plain.name or one.folder is None:
            others.append(one)
        elif read_config(one.folder).adapter == plain.adapter:
            first = replace(first, selected=first.selected or one.selected)
        else:
            others.append(replace(one, name=f"{plain.name}, own template"))
    return [first, *others]
