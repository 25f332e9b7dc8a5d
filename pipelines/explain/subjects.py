"""The adapters to explain.

Flows in: folders of runs. Flows out: trained adapters on one backbone. All that can be wrong with
the folders is found here, before any weight is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.runs.contestants import Contest, Contestant, read_contest
from trainables.data.shards import ShardSet
from trainables.data.store import read_manifest
from trainables.errors import ConfigError, DataError
from trainables.features.features import open_features
from trainables.features.few_shot import measured
from trainables.features.split import SplitFeatures
from trainables.models.backbone import Backbone


@dataclass(frozen=True)
class Subject:
    """A trained adapter of a run, and the val that it was chosen on."""

    run: Path
    contest: Contest
    contestant: Contestant

    @property
    def name(self) -> str:
        return self.contestant.name

    @property
    def metric(self) -> str:
        """The metric by which it is judged here: for classes the accuracy, which readers know; else
        the run's own."""
        return "accuracy" if self.contest.draw else self.contest.metric

    def identity(self) -> list[str]:
        """A value that changes when anything that the page says of it can change."""
        draw = self.contest.draw.key if self.contest.draw else ""
        key = read_manifest(self.contest.features)["key"]
        return [self.run.as_posix(), self.name, self.contestant.identity(), key, draw, self.metric]


def read_subjects(runs: Sequence[Path]) -> list[Subject]:
    """The adapters of each run that have a checkpoint; all runs must be of one backbone."""
    if len(set(runs)) < len(runs):
        twice = next(run for n, run in enumerate(runs) if run in runs[:n])
        raise DataError(f"`--run` must name each run once, got `{twice}` twice.")
    subjects = []
    first: dict[str, Any] = {}
    for run in runs:
        contest = read_contest(run, only_best=False)
        if contest.task == "captioning":
            raise ConfigError(
                f"`{run}` is a run of captioning: it writes captions, and moves none of the "
                "embeddings that `cliptune explain` maps. Give a run of retrieval or "
                "classification. What a captioner says is shown by `cliptune evaluate --run "
                f"{run}`, then `cliptune report --run {run}`."
            )
        made_with = read_manifest(contest.features)["backbone"]
        first = first or made_with
        if made_with["fingerprint"] != first["fingerprint"]:
            raise DataError(
                f"`{run}` was trained on backbone `{made_with['name']}` with fingerprint "
                f"{made_with['fingerprint'][:12]}, `{runs[0]}` on `{first['name']}` with "
                f"{first['fingerprint'][:12]}: words and maps of two backbones do not compare."
            )
        trained = [one for one in contest.contestants if one.folder is not None]
        if not trained:
            raise DataError(f"`{run}` holds no trained adapter but zero-shot: nothing to explain.")
        subjects += [Subject(run, contest, one) for one in trained]
    return subjects


def val_of(contest: Contest, backbone: Backbone) -> SplitFeatures:
    """The val images that the run's choices were made on."""
    val = open_features(contest.features, "val", backbone)
    return measured(val, contest.draw, ())


def captioned_classes(contest: Contest, val: SplitFeatures) -> tuple[list[int], list[str]] | None:
    """Labels of val's images and class names, where captioned shards have both."""
    manifest = read_manifest(contest.features)
    folder = Path(manifest["shards"] or "missing")
    if not (folder / "manifest.json").is_file():
        return None
    shards = ShardSet.open(folder)
    if shards.digest != manifest["shards_sha256"] or len(shards.classes) < 2:
        return None
    names = sorted(shards.classes, key=lambda name: shards.classes[name])
    number = {shards.classes[name]: n for n, name in enumerate(names)}
    label_of = {row["id"]: row["label"] for row in shards.rows("val", ["id", "label"])}
    found = [label_of.get(id_) for id_ in val.ids]
    labels = [number[label] for label in found if label is not None]
    return (labels, names) if len(labels) == len(val.ids) else None
