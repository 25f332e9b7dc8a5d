"""Runs trained together against the same runs trained one after the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contract import ALL, CLASSES, CLASSIFIERS, FUSING
from trainables.adapters.registry import make_config
from trainables.data.transfer import Numbers
from trainables.distributed import ALONE
from trainables.errors import ConfigError
from trainables.features.split import SplitFeatures
from trainables.training.checkpoint import trained_tensors
from trainables.training.integrity import newest_intact
from trainables.training.loop import Diverged, Interrupted, Run
from trainables.training.selection import METRICS
from trainables.trials.crew import Crew
from trainables.trials.jobs import Job, members, pruned_file
from trainables.trials.stacked import FREE, StackedRuns, shape_of
from trainables.trials.width import measure_width
from trainables.trials.workbench import TrialSettings, Workbench

METRIC = METRICS["retrieval"][0]
# What members may differ in: the optimizer, the temperature, the targets.
MEMBERS: list[dict[str, Any]] = [
    {"optim.lr": 2e-4, "temperature.scale": 5.0},
    {"optim.lr": 5e-4, "optim.schedule": "cosine", "optim.weight_decay": 0.3},
    {"optim.lr": 3e-4, "loss.label_smoothing": 0.1, "optim.clip_norm": 0.05, "optim.warmup": 0.5},
]
OBJECTIVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "learned": {"temperature.policy": "learned", "temperature.high": 10.0},
    "adaptive": {"temperature.policy": "adaptive"},
    "cosine": {"temperature.policy": "cosine"},
    "siglip": {"loss.kind": "siglip"},
    "siglip adaptive": {"loss.kind": "siglip", "temperature.policy": "adaptive"},
    "reweight": {"loss.hard_negatives": "reweight"},
}
BY_SGD = [
    variant
    for variant, (name, _) in CLASSIFIERS.items()
    if make_config(name, {"task": "classification"}).optim.kind == "sgd"
]
Make = Callable[..., list[Run]]


@pytest.fixture(scope="module")
def bench(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("study")
    return Workbench(TrialSettings(features, folder, METRIC, threads=1))


@pytest.fixture
def make(bench: Workbench, tmp_path: Path) -> Make:
    def runs(kind: str, variant: str = "projection", count: int = 3, **values: Any) -> list[Run]:
        name, settings = ALL[variant]
        shared = {"precision": "fp32", "epochs": 3, "batch_size": 16, **settings, **values}
        data, metric = (bench.train, bench.val), METRIC
        if variant in CLASSIFIERS:
            shared |= {"task": "classification"}
            data, metric = (labelled(bench.train), labelled(bench.val)), "val/log_likelihood"
        configs = [make_config(name, {**shared, **MEMBERS[n]}) for n in range(count)]
        return [
            Run(config, bench.backbone, *data, tmp_path / f"{kind}{n}", metric)
            for n, config in enumerate(configs)
        ]

    return runs


def labelled(data: SplitFeatures) -> SplitFeatures:
    return data.take({id_: n % len(CLASSES) for n, id_ in enumerate(data.ids)}, CLASSES)


def assert_same_rows(ours: Run, theirs: Run) -> None:
    assert len(ours.rows) == len(theirs.rows)
    for row, other in zip(ours.rows, theirs.rows, strict=True):
        assert row.keys() == other.keys()
        for key in row:
            if "seconds" not in key:
                assert row[key] == pytest.approx(other[key], rel=1e-5, abs=1e-5), key


def assert_same_tensors(ours: Run, theirs: Run) -> None:
    tensors = trained_tensors(theirs.adapter)
    for name, tensor in trained_tensors(ours.adapter).items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(
    "variant", ["projection", "soft_prompt", "lora", "linear_probe text", "lora classes"]
)
def test_members_equal_single_runs(variant: str, objective: str, make: Make) -> None:
    alone = make("alone", variant, **OBJECTIVES[objective])
    for run in alone:
        for _ in range(3):
            run.advance()
    together = make("together", variant, **OBJECTIVES[objective])
    stack = StackedRuns(together)
    for _ in range(3):
        stack.advance()
    assert not stack.runs  # all are finished
    for ours, theirs in zip(together, alone, strict=True):
        assert_same_rows(ours, theirs)
        assert_same_tensors(ours, theirs)


def assert_gradients_of_single_runs(variant: str, make: Make, **values: Any) -> None:
    """Of two steps: in the second, no LoRA matrix is 0 any more."""
    alone, together = make("alone", variant, **values), make("together", variant, **values)
    stack = StackedRuns(together)
    for step in range(2):
        numbers = stack._step()
        for n, (run, other) in enumerate(zip(alone, together, strict=True)):
            expected = run._train_step().row()
            assert numbers.row(n) == pytest.approx(expected, rel=1e-5, abs=1e-6)
            for name, parameter in run.trained.items():
                assert parameter.grad is not None
                grad = other.trained[name].grad
                assert grad is not None
                scale = float(
                    max(p.grad.abs().max() for p in run.trained.values() if p.grad is not None)
                )
                assert (grad - parameter.grad).abs().max() <= 1e-5 * scale, (name, step)
            with torch.no_grad():  # Adam makes noise of what should be 0: both go on from one place
                for name, parameter in run.trained.items():
                    other.trained[name].copy_(parameter)
        for run in (*alone, *together):
            run.step += 1


@pytest.mark.parametrize("variant", [name for name in FUSING if name not in BY_SGD])
def test_every_adapter_fuses_with_the_gradients_of_single_runs(variant: str, make: Make) -> None:
    assert_gradients_of_single_runs(variant, make)


@pytest.mark.parametrize("objective", ["plain", "siglip adaptive"])
def test_a_member_goes_on_alone_and_single_runs_together(objective: str, make: Make) -> None:
    values = OBJECTIVES[objective]
    alone = make("alone", **values)
    for run in alone:
        for _ in range(3):
            run.advance()
    first = StackedRuns(make("member", **values))
    first.advance()
    single = make("member", **values)  # resumed from what the stack saved
    assert [run.epoch for run in single] == [1, 1, 1]
    for run in single:
        run.advance()
    second = StackedRuns(make("member", **values))
    assert [run.epoch for run in second.runs] == [2, 2, 2]
    ended = second.runs
    second.advance()
    for ours, theirs in zip(ended, alone, strict=True):
        assert_same_rows(ours, theirs)
        assert_same_tensors(ours, theirs)


def test_one_that_leaves_changes_nothing_for_the_others(make: Make) -> None:
    alone = make("alone")
    for run in alone:
        for _ in range(3):
            run.advance()
    together = make("together")
    stack = StackedRuns(together)
    stack.advance()
    stack.leave([together[1]])
    assert len(stack.advance()) == 2
    stack.advance()
    assert together[1].epoch == 1
    for n in (0, 2):
        assert_same_tensors(together[n], alone[n])


def test_one_that_diverges_fails_alone(make: Make) -> None:
    alone = make("alone")
    for run in alone:
        run.advance()
    together = make("together")
    stack = StackedRuns(together)
    with torch.no_grad():
        next(iter(together[1].trained.values())).fill_(torch.nan)
    results = stack.advance()
    assert isinstance(results[1], Diverged)
    assert stack.runs == [together[0], together[2]]
    for n in (0, 2):
        assert_same_rows(together[n], alone[n])
        assert_same_tensors(together[n], alone[n])


def test_patience_ends_single_members(make: Make) -> None:
    together = make("together", epochs=9)
    patient = together[1]
    object.__setattr__(patient.config, "patience", 1)
    stack = StackedRuns(together)
    while stack.runs:
        stack.advance()
    assert together[0].epoch == together[2].epoch == 9
    assert patient.epoch < 9


def test_an_interrupted_stack_has_saved_every_member(make: Make) -> None:
    together = make("together")
    steps = iter([False, False, True])
    with pytest.raises(Interrupted):
        StackedRuns(together).advance(lambda: next(steps))
    for run in together:
        assert newest_intact(run.folder / "last")[0] is not None
    assert [run.step for run in make("together")] == [2, 2, 2]


def test_members_must_have_one_shape_and_one_step(make: Make) -> None:
    runs = make("together")
    other = make("other", batch_size=8)
    with pytest.raises(ConfigError, match="one shape and one step"):
        StackedRuns([runs[0], other[1]])
    runs[1].advance()
    with pytest.raises(ConfigError, match=r"at step 0 .* at 3"):
        StackedRuns(runs)


def test_the_shape_is_all_but_what_members_may_differ_in() -> None:
    shape = shape_of(make_config("soft_prompt"))
    assert not shape.keys() & FREE
    assert {"name", "adapter.n_ctx", "batch_size", "temperature.policy", "seed"} <= shape.keys()
    assert shape == shape_of(make_config("soft_prompt", {"optim.lr": 0.5, "adapter.init": "a"}))
    assert shape != shape_of(make_config("soft_prompt", {"adapter.n_ctx": 3}))


@pytest.mark.parametrize(
    ("seconds", "width"),
    [
        ({1: 1.0, 2: 2.2}, 1),  # nothing shared
        ({1: 1.0, 2: 2.0, 4: 3.0, 8: 3.2}, 8),  # two are no faster, but eight are
        ({1: 1.0, 2: 1.1, 4: 1.5, 8: 3.3}, 4),
        ({1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}, 8),  # all shared: as many as allowed
    ],
)
def test_the_width_that_is_fastest_is_found(
    seconds: dict[int, float], width: int, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def step(self: StackedRuns) -> Numbers:
        now[0] += seconds[len(self.runs)]
        return Numbers(["loss"], torch.ones(len(self.runs), 1))

    def single(self: Run) -> Numbers:
        now[0] += seconds[1]
        return Numbers(["loss"], torch.ones(1, 1))

    monkeypatch.setattr(StackedRuns, "_step", step)
    monkeypatch.setattr(Run, "_train_step", single)
    run = make("any", count=1)[0]
    notes: list[int] = []
    measure_width(lambda n: [run] * n, 8, lambda best, _: notes.append(best), lambda: now[0])
    assert notes[-1] == width


@pytest.fixture
def crew(features: Path, tmp_path: Path) -> Callable[[Job], Crew]:
    bench = Workbench(TrialSettings(features, tmp_path, METRIC, threads=1))
    return lambda job: Crew(bench, job, ALONE)


def test_a_crew_tells_of_each_trial_and_drops_what_was_pruned(
    crew: Callable[[Job], Crew], tmp_path: Path
) -> None:
    shared = {"name": "projection", "epochs": 2, "batch_size": 16}
    jobs = [{"number": n + 1, "values": shared | MEMBERS[n], "reported": 0} for n in range(3)]
    jobs[2]["values"] = shared | {"optim.lr": -1.0}
    own = crew(Job(**jobs[0], siblings=(jobs[1], jobs[2])))  # type: ignore[arg-type]
    first = own.advance(lambda: False)
    assert {n: r["state"] for n, r in first.items()} == {1: "running", 2: "running", 3: "failed"}
    assert "`optim.lr` must be above 0" in first[3]["reason"]
    pruned_file(tmp_path, 1).touch()
    second = own.advance(lambda: False)
    assert {n: r["state"] for n, r in second.items()} == {2: "finished"}
    assert members({"members": list(second.values())}) == second
    assert (tmp_path / "trials" / "0001" / "best" / "manifest.json").is_file()


def test_runs_by_sgd_do_not_train_together(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"with `optim.kind` adamw, got sgd"):
        StackedRuns(make("sgd", "coop"))
