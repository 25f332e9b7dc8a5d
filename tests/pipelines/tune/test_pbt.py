"""Population-based training: its decisions beside Ray's own, its kills, and its replay."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from ray.tune.schedulers import PopulationBasedTraining
from ray.tune.schedulers.pbt import _PBTTrialState

import trainables.trials.workbench
from pipelines.cli import stage_main
from pipelines.tune.closing import closing
from pipelines.tune.schedulers.pbt import Exploit, Gain, Member, exploits
from pipelines.tune.schedulers.population import lineage, rules
from pipelines.tune.study.best import best_trial
from pipelines.tune.study.search import Search, Stopping
from pipelines.tune.study.study import open_study
from tests.one_process import Driver, snapshots
from tests.pipelines.train.test_train import fails
from tests.pipelines.tune.test_kills import SEARCH as PLAIN
from tests.pipelines.tune.test_kills import tensors
from trainables.files import read_json, write_json
from trainables.models.backbone import Backbone
from trainables.trials.workbench import TrialSettings

METRIC = "val/t2i_mrr"
WIDE = {"a": FloatDistribution(0.0, 1e9), "b": FloatDistribution(0.0, 1e9)}


class RayTrial(SimpleNamespace):
    __hash__ = object.__hash__

    def is_finished(self) -> bool:
        return False


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 13])
def test_the_exploits_are_those_of_rays_own_scheduler(count: int) -> None:
    """The same results, an epoch after another, and the same stream of chance."""
    scores, draw = random.Random(count), random.Random(f"ours/{count}")
    values = {n: {"a": 1.0 + n, "b": 100.0 + n} for n in range(count)}
    theirs = PopulationBasedTraining(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        hyperparam_mutations={name: lambda: random.uniform(0, 1e9) for name in WIDE},
        perturbation_factors=(1.2, 0.8),
        custom_explore_fn=lambda config: {n: min(value, 1e9) for n, value in config.items()},
    )
    trials = [RayTrial(number=n, config=dict(values[n])) for n in range(count)]
    for trial in trials:
        theirs._trial_state[trial] = _PBTTrialState(
            SimpleNamespace(experiment_tag="", trial_id=str(trial.number))
        )
    moved = 0
    for _ in range(20):
        reached = {n: scores.random() for n in range(count)}
        for trial in trials:
            theirs._trial_state[trial].last_score = reached[trial.number]
        seed = str(draw.random())
        members = [
            Member(n, "x", reached[n], values[n], WIDE, best=0 if n else 9) for n in range(count)
        ]
        ours = exploits(members, seed)
        random.seed(seed)
        expected = []
        lower, upper = theirs._quantiles()
        for trial in lower:
            donor = random.choice(upper)
            new, _ = theirs._get_new_config(trial, donor)
            if trial.number:  # the first has the best of all, which is never overwritten
                expected.append(Exploit(trial.number, donor.number, new))
        assert ours == expected
        moved += len(ours)
        for one in ours:
            values[one.number] = one.values  # type: ignore[assignment]
            trials[one.number].config = dict(one.values)
    assert moved


def test_members_of_different_adapters_never_meet() -> None:
    members = [
        Member(n, "ab"[n % 2], float(n), {"a": 1.0}, {"a": WIDE["a"]}, best=float(n))
        for n in range(12)
    ]
    found = exploits(members, "seed")
    assert len(found) == 4
    assert all((one.number - one.donor) % 2 == 0 for one in found)
    assert found == exploits(members, "seed")
    assert exploits(members[:1], "seed") == exploits([], "seed") == []


def test_pb2_goes_where_more_was_gained() -> None:
    """The more of `a`, the more was gained: the model finds the upper end, the seed decides."""
    ranges = {"a": FloatDistribution(0.0, 1.0)}

    def member(n: int) -> Member:
        at = n / 7
        gains = [Gain(epoch, 0.1 * epoch, {"a": at}, at**2) for epoch in (2, 3, 4)]
        return Member(n, "x", float(n), {"a": at}, ranges, float(n), gains)

    members = [member(n) for n in range(8)]
    found = exploits(members, "s", model=True)
    assert [one.number for one in found] == [0, 1]
    assert max(one.values["a"] for one in found) > 0.8
    assert found == exploits(members, "s", model=True)


# -- the search -----------------------------------------------------------------------------------

SEARCH = dataclasses.replace(PLAIN, sampler="random", stopping=Stopping("pbt"))
Begin = Callable[..., Driver]


@pytest.fixture
def begin(features: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Begin:
    monkeypatch.setattr(trainables.trials.workbench, "backbone_of", lambda *_: backbone)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # the machine lives, here

    def driver(folder: Path, workers: int = 1, search: Search = SEARCH) -> Driver:
        folder.mkdir(exist_ok=True)
        key = read_json(features / "manifest.json")["key"]
        about = {"features_key": key, "metric": METRIC, "seed": search.seed}
        if not (folder / "study.json").exists():
            write_json(folder / "study.json", about)
        one = Driver(search, TrialSettings(features, folder, METRIC, threads=1), 1, workers)
        one.searcher, one.scheduler = rules(one.searcher.study, search, folder)
        one.losses.searcher = one.searcher
        return one

    return driver


def facts(folder: Path) -> list[dict[str, Any]]:
    found = []
    for trial in open_study(folder).trials:
        assert trial.state.name == "COMPLETE"
        notes = {k: v for k, v in trial.user_attrs.items() if k != "seconds"}
        found.append({"params": trial.params, "curve": trial.intermediate_values, **notes})
    return found


def schedule_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_json(folder / "schedule.json")
    found.pop("study")
    return found


@pytest.mark.parametrize("kind", ["pbt", "pb2"])
def test_a_population_ends_alike_on_one_worker_and_on_three_and_is_replayed(
    kind: Any, begin: Begin, features: Path, tmp_path: Path
) -> None:
    search = Search(**{**vars(SEARCH), "epochs": 5, "stopping": Stopping(kind)})
    for name, workers in (("one", 1), ("three", 3)):
        begin(tmp_path / name, workers, search).fit()
    one, three = (facts(tmp_path / name) for name in ("one", "three"))
    assert one == three
    assert tensors(tmp_path / "one") == tensors(tmp_path / "three")
    assert schedule_of(tmp_path / "one") == schedule_of(tmp_path / "three")
    study = open_study(tmp_path / "one")
    moved = [trial for trial in study.trials if "exploits" in trial.user_attrs]
    assert moved
    taken = sum(len(trial.user_attrs["exploits"]) for trial in moved)
    assert list(closing(study, search))[:2] == [
        "5 trials complete, 0 failed, 0 unfinished.",
        f"weights of better trials were taken over {taken} times.",
    ]
    assert all(trial.user_attrs["lineage"][-1][0] == trial.number for trial in moved)
    for number in range(5):  # each member's lineage, and so the winner's, is one run
        _replays(tmp_path / "one", number, features, tmp_path)
    top = best_trial(study)
    assert top is not None
    assert [one["member"] for one in schedule_of(tmp_path / "one")["lineage"]] == [
        member for member, _ in lineage(top)
    ]
    out, own = tmp_path / "replay", tmp_path / f"one/trials/{top.number:04d}"
    schedule = str(tmp_path / "one/schedule.json")
    stage_main("train", ["--features", str(features), "--out", str(out), "--schedule", schedule])
    for file in ("best/adapter.safetensors", "best/config.json", "last/optimizer.safetensors"):
        assert (out / file).read_bytes() == (own / file).read_bytes()


def _replays(study: Path, number: int, features: Path, folder: Path) -> None:
    config = dict(open_study(study).trials[number].user_attrs["config"])
    words = [f"{key}={value}" for key, value in config.items() if key not in ("name", "task")]
    out = folder / f"again-{number}"
    flags = ["--features", str(features), "--out", str(out), "--adapter", config["name"]]
    stage_main("train", [*flags, "--metric", METRIC, "--set", *words])
    own = study / f"trials/{number:04d}"
    for file in ("best/adapter.safetensors", "last/adapter.safetensors"):
        assert (out / file).read_bytes() == (own / file).read_bytes()


def test_a_population_killed_between_any_two_writes_ends_as_if_never_killed(
    begin: Begin, tmp_path: Path
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    with snapshots(whole, tmp_path) as points:
        begin(whole).fit()
    expected = facts(whole), tensors(whole), schedule_of(whole)
    assert any("exploits" in fact for fact in expected[0])
    killed = sorted(tmp_path.glob("[0-9]*"))
    copies = [one for one in killed if "best.new" in points[int(one.name)]]
    assert copies
    for folder in sorted({*killed[::7], *copies[::3]}):
        begin(folder).fit()
        assert (facts(folder), tensors(folder), schedule_of(folder)) == expected, points[
            int(folder.name)
        ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--trials", "1"], "`--trials` must be at least 2 with `--scheduler pbt`, got 1"),
        (
            ["--trials", "3", "--adapter", "projection", "lora"],
            "`--trials` must be at least 4 with `--scheduler pbt` of 2 adapters, got 3",
        ),
        (
            ["--set", "changes=2: optim.lr=0.001"],
            "`changes` must not be given with `--scheduler pbt`, which finds them",
        ),
        (["--minutes", "3"], "`--minutes` must be 0 with `--scheduler pbt`, got 3"),
        (["--epochs-total", "30"], "`--epochs-total` must be 0 with `--scheduler pbt`, got 30"),
        (["--limit", "seconds=3"], "`--limit` must be empty with `--scheduler pbt`"),
        (["--interval", "10"], "`--interval` must be at most `--epochs` 9, got 10"),
        (["--fuse", "4"], "`--fuse` must be at most 1 with `--scheduler pbt`, got 4"),
    ],
)
def test_what_a_population_cannot_do_is_said_before_any_work(
    flags: list[str], said: str, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--features", str(features), "--out", str(tmp_path / "x"), "--scheduler", "pbt"]
    adapter = [] if "--adapter" in flags else ["--adapter", "projection"]
    assert said in fails(capsys, "tune", *words, *adapter, *flags)
    assert not (tmp_path / "x").exists()
