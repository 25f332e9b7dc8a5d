"""What CLIP retains: measured beside the task, searched for as a second goal, and reported."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optuna.trial import TrialState
from torch.nn import functional as F

from pipelines.evaluate.standings import retention
from pipelines.report import __main__ as report
from pipelines.runs.contestants import read_contest
from pipelines.train import __main__ as train
from pipelines.tune import __main__ as tune
from pipelines.tune import flags as tune_flags
from pipelines.tune.callbacks import Progress
from pipelines.tune.samplers.searcher import StudySearcher
from pipelines.tune.study.best import best_so_far, best_trial
from pipelines.tune.study.choice import write_choice
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import open_study
from tests import ROOT
from tests.shelf import draw, shelf
from trainables.errors import CliptuneError, DataError
from trainables.features.features import open_features
from trainables.features.few_shot import read_draw, write_draw
from trainables.files import append_jsonl, read_json, read_jsonl, write_hashed
from trainables.metrics.balance import as_share, front, harmonic, standing
from trainables.models.backbone import Backbone
from trainables.models.text_tower import embed_text
from trainables.training.checkpoint import load_adapter
from trainables.trials.workbench import Workbench

SET = ("epochs=2", "batch_size=8", "optim.lr=0.05")
METRIC = "val/accuracy"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    base = tmp_path_factory.mktemp("retention")
    shelf(base, clip)
    return base


def args(folder: Path, out: Path, adapter: str, *fields: str, **more: Any) -> train.Args:
    values = {"draw": folder / "base.json", "retain": (folder / "new.json",), **more}
    return train.Args(folder / "features", out, adapter, (*SET, *fields), **values)


def accuracy(backbone: Backbone, folder: Path, name: str, checkpoint: Path | None) -> float:
    """Of a draw's val images, by a formula of its own: the class with the largest cosine."""
    task = read_draw(folder / name)
    data = open_features(folder / "features", "val", backbone)
    words = "a photo of a {}." if checkpoint is None else "{}."
    tokens = backbone.tokenize([words.replace("{}", n) for n in task.names])[0]
    with torch.no_grad():
        if checkpoint is None:
            texts = embed_text(backbone, tokens)
        else:
            texts = load_adapter(checkpoint, backbone).embed_text(tokens)
    right = 0
    for member in task.val:
        image = data.image_embeds[data.ids.index(member.id)]
        right += int(F.cosine_similarity(image[None], texts).argmax()) == member.label
    return right / len(task.val)


# -- measured ------------------------------------------------------------------------------------


def test_each_epoch_and_zero_shot_say_what_is_retained(
    folder: Path, backbone: Backbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = (folder / "new.json", folder / "pair.json")
    train.run(args(folder, tmp_path, "coop", "adapter.n_ctx=2", retain=both))
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert len(rows) == 2
    assert all("val/retained" in row for row in rows)
    best = read_json(tmp_path / "best" / "state.json")["row"]
    for where, row in ((tmp_path / "best", best), (None, _zero_shot(tmp_path))):
        own = [accuracy(backbone, folder, name, where) for name in ("new.json", "pair.json")]
        assert row["val/retained"] == pytest.approx(sum(own) / 2)
        assert row["val/accuracy"] == pytest.approx(accuracy(backbone, folder, "base.json", where))
    assert "val/retained" in (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert f"val/retained {rows[0]['val/retained']:.4f}" in capsys.readouterr().out


def _zero_shot(run: Path) -> dict[str, float]:
    (row,) = read_jsonl(run / "zero_shot" / "metrics.jsonl")
    return row


def test_training_is_the_same_whatever_is_measured_beside_it(folder: Path, tmp_path: Path) -> None:
    for name, retain in (("with", (folder / "new.json",)), ("without", ())):
        train.run(args(folder, tmp_path / name, "coop", retain=retain))
    with_, without = ((tmp_path / n / "best" / "adapter.safetensors") for n in ("with", "without"))
    assert with_.read_bytes() == without.read_bytes()
    assert not (tmp_path / "without" / "zero_shot").exists()
    assert "retain" not in read_json(tmp_path / "without" / "run.json")


@pytest.mark.parametrize(
    ("adapter", "fields"),
    [("linear_probe", ()), ("coop", ("adapter.class_specific=true", "adapter.n_ctx=2"))],
)
def test_what_knows_only_its_own_classes_retains_nothing_that_applies(
    folder: Path, tmp_path: Path, adapter: str, fields: tuple[str, ...]
) -> None:
    train.run(args(folder, tmp_path, adapter, *fields))
    assert not any("val/retained" in row for row in read_jsonl(tmp_path / "metrics.jsonl"))
    assert "val/retained" in _zero_shot(tmp_path)
    contest = read_contest(tmp_path, only_best=False)
    assert [task.part for task in contest.retain] == ["new"]
    rows = [
        {"name": one.name, "val": one.history()["val"] if one.folder else {"retained": 0.5}}
        for one in contest.contestants
    ]
    said = retention(rows)
    assert said.endswith(f"zero_shot 0.5000, {adapter} not applicable")


def test_captions_may_be_the_task(folder: Path, backbone: Backbone, tmp_path: Path) -> None:
    given = args(folder, tmp_path, "projection", draw=None)
    train.run(given)
    row = _zero_shot(tmp_path)
    assert "val/t2i_r1" in row
    assert row["val/retained"] == pytest.approx(accuracy(backbone, folder, "new.json", None))


def test_a_result_without_such_tasks_says_nothing() -> None:
    assert retention([{"name": "zero_shot", "val": {"accuracy": 1.0}}]) == ""


def test_classes_that_training_sees_are_no_retention(folder: Path, tmp_path: Path) -> None:
    write_draw(tmp_path / "mixed.json", draw((2, 3)))
    with pytest.raises(DataError, match=r"mixed.json` must hold classes .* got `blue`"):
        train.run(args(folder, tmp_path / "run", "coop", retain=(tmp_path / "mixed.json",)))
    write_draw(tmp_path / "foreign.json", draw((4, 5), shards="ab" * 32))
    with pytest.raises(DataError, match="other shards"):
        train.run(args(folder, tmp_path / "run", "coop", retain=(tmp_path / "foreign.json",)))
    assert not (tmp_path / "run" / "run.json").exists()


def test_another_retention_is_another_run(folder: Path, tmp_path: Path) -> None:
    train.run(args(folder, tmp_path, "clip_adapter"))
    with pytest.raises(DataError, match="its `retain_keys` is"):
        train.run(args(folder, tmp_path, "clip_adapter", retain=()))
    retain = (folder / "pair.json",)
    with pytest.raises(DataError, match="its `retain_keys` is"):
        train.run(args(folder, tmp_path, "clip_adapter", retain=retain))


# -- two goals -----------------------------------------------------------------------------------


def test_the_front_is_what_no_other_beats() -> None:
    pairs = [(0.5, 0.5), (0.7, 0.2), (0.6, 0.4), (0.6, 0.3), (0.4, 0.5), (0.7, 0.2), (0.1, 0.9)]

    def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
        return a != b and a[0] >= b[0] and a[1] >= b[1]

    expected = {n for n, b in enumerate(pairs) if not any(beats(a, b) for a in pairs)}
    found = front(pairs)
    assert set(found) == expected == {0, 1, 2, 5, 6}
    assert found == [1, 5, 2, 0, 6]
    assert all(pairs[a][0] >= pairs[b][0] for a, b in pairwise(found))
    assert front([]) == []


def test_the_balance_is_the_harmonic_mean_and_below_it_stands_the_task_alone() -> None:
    assert harmonic(0.8, 0.4) == pytest.approx(1 / ((1 / 0.8 + 1 / 0.4) / 2))
    assert harmonic(0.8, 0.0) == 0
    assert standing(0.2, 0.1) > standing(0.9, None) > standing(0.8, None)
    assert as_share("val/log_likelihood", 0.0) == 1.0
    assert as_share("val/accuracy", 0.3) == 0.3


TWO = Search(*(("coop",), METRIC, 6, 9, 3, {}), task="classification", retains=True)


def searcher(folder: Path) -> StudySearcher:
    study = open_study(folder, retains=True)
    return StudySearcher(study, TWO, folder)


def row(number: int, value: float, kept: float | None, state: str = "finished") -> dict[str, Any]:
    return {
        "number": number,
        **{"epoch": 9, METRIC: value, "best": value, "best_epoch": 9, "state": state},
        **{"seconds": 1.0, "trainable_parameters": 8},
        **({} if kept is None else {"best_retained": kept, "val/retained": kept}),
    }


REACHED = ((0.8, 0.3), (0.95, None), (0.6, 0.6), (0.5, 0.55), (0.4, 0.7))


def searched(folder: Path) -> StudySearcher:
    search = searcher(folder)
    for number, (value, kept) in enumerate(REACHED):
        assert search.suggest(f"ray{number}")["number"] == number
        search.on_trial_result(
            f"ray{number}", row(number, value / 2, kept, "running") | {"epoch": 1}
        )
        search.on_trial_complete(f"ray{number}", row(number, value, kept))
    return search


def test_best_json_holds_the_front_and_a_choice_on_it(tmp_path: Path) -> None:
    searched(tmp_path)
    best = json.loads((tmp_path / "best.json").read_text())
    assert [(e["trial"], e["value"], e["retained"]) for e in best["front"]] == [
        (0, 0.8, 0.3),
        (2, 0.6, 0.6),
        (4, 0.4, 0.7),
    ]
    assert (best["trial"], best["value"], best["retained"]) == (2, 0.6, 0.6)
    assert "harmonic mean" in best["rule"]
    assert best["per_adapter"]["coop"]["trial"] == 2
    trials = open_study(tmp_path, retains=True).get_trials()
    assert [t.values for t in trials[:5]] == [[a, b or 0.0] for a, b in REACHED]
    assert trials[0].intermediate_values == {1: 0.4, 9: 0.8}
    assert all(t.state == TrialState.COMPLETE for t in trials[:5])


def test_a_front_that_is_kept_is_that_of_all_trials(tmp_path: Path) -> None:
    drawn = random.Random(2)
    search = searcher(tmp_path)
    for number in range(60):
        search.suggest(f"ray{number}")
        kept = None if drawn.random() < 0.1 else drawn.randrange(8) / 8  # ties
        search.on_trial_complete(f"ray{number}", row(number, drawn.randrange(8) / 8, kept))
        both = [
            (t.number, (t.user_attrs["best"], t.user_attrs["retained"]))
            for t in search.study.get_trials(deepcopy=False)
            if t.state == TrialState.COMPLETE and t.user_attrs["retained"] is not None
        ]
        expected = [both[place][0] for place in front([pair for _, pair in both])]
        assert [one["trial"] for one in read_json(tmp_path / "best.json")["front"]] == expected


def test_a_front_is_not_made_anew_from_all_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, looked = searcher(tmp_path), []

    def counted(pairs: list[tuple[float, float]]) -> list[int]:
        looked.append(len(pairs))
        return front(pairs)

    monkeypatch.setattr("pipelines.tune.study.best.front", counted)
    for number in range(40):
        search.suggest(f"ray{number}")
        search.on_trial_complete(f"ray{number}", row(number, 1 - number / 40, 1 - number / 40))
    assert max(looked) == 2  # trial 0 beats all others


def test_a_trial_over_a_limit_is_on_no_front(tmp_path: Path) -> None:
    limited = dataclasses.replace(TWO, limits={"seconds": 0.5})
    search = StudySearcher(open_study(tmp_path, retains=True), limited, tmp_path)
    for number, seconds in enumerate((1.0, 0.1)):
        search.suggest(f"ray{number}")
        search.on_trial_complete(
            f"ray{number}", row(number, 0.8 - 0.1 * number, 0.5) | {"seconds": seconds}
        )
    assert [e["trial"] for e in read_json(tmp_path / "best.json")["front"]] == [1]
    write_choice(search.study, limited, tmp_path)
    assert [e["trial"] for e in read_json(tmp_path / "best.json")["front"]] == [1]


def test_where_retention_applies_to_no_trial_the_task_alone_chooses(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number, value in enumerate((0.7, 0.9, 0.8)):
        search.suggest(f"ray{number}")
        search.on_trial_complete(f"ray{number}", row(number, value, None))
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["trial"], best["retained"], best["front"]) == (1, None, [])


def test_a_restarted_search_of_two_goals_suggests_the_same(tmp_path: Path) -> None:
    last = searched(tmp_path).suggest("next")
    again = searcher(tmp_path)
    assert again.suggest("new") == last
    again.on_trial_complete("new", row(5, 0.65, 0.65))
    top = best_trial(again.study)
    assert top is not None
    assert top.number == 5


def test_progress_and_the_last_word_name_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = searcher(tmp_path)
    progress = Progress(search.study, TWO, search.budget)
    for number, (value, kept) in enumerate(REACHED[:2]):
        ray = SimpleNamespace(trial_id=f"ray{number}", config=search.suggest(f"ray{number}"))
        search.on_trial_complete(ray.trial_id, row(number, value, kept))
        progress.on_trial_complete(0, [], ray)  # type: ignore[arg-type]
    first, second = capsys.readouterr().out.splitlines()
    assert "complete 0.8000, retained 0.3000 in  1 epoch  |" in first
    assert "complete 0.9500, retained not applicable in  1 epoch  |" in second
    assert "| best 0.8000, retained 0.3000 (trial 0) |" in second
    expected = "best so far: trial 0, coop, val/accuracy 0.8000, retained 0.3000"
    assert best_so_far(search.study, METRIC) == expected


def test_a_failed_trial_of_two_goals_has_none(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    search.suggest("ray0")
    failed = {"number": 0, "done": True, "state": "failed", "reason": "x"}
    search.on_trial_complete("ray0", failed)
    assert not (tmp_path / "best.json").exists()
    assert search.study.get_trials()[0].state == TrialState.FAIL


def test_a_second_goal_asks_for_a_metric_that_is_a_share(folder: Path) -> None:
    given: dict[str, Any] = {"draw": folder / "base.json", "retain": (folder / "new.json",)}
    args = tune.Args(folder / "features", **given, metric="val/log_likelihood")
    with pytest.raises(CliptuneError, match="must be a share beside `--retain`"):
        tune_flags.check(args)
    search = tune_flags.check(tune.Args(folder / "features", **given))
    assert search.retains
    assert not tune_flags.check(tune.Args(folder / "features", draw=folder / "base.json")).retains


@pytest.mark.slow
def test_a_whole_search_of_two_goals(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *(sys.executable, "-m", "pipelines.tune", "--features", str(folder / "features")),
        *("--draw", str(folder / "base.json"), "--retain", str(folder / "new.json")),
        *("--adapter", "projection", "linear_probe", "--trials", "4", "--epochs", "3"),
        *("--out", str(tmp_path), "--seed", "1"),
    ]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = open_study(tmp_path, retains=True).get_trials()
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 4  # no rung stops one
    for trial in trials:  # what L-BFGS fits has one epoch
        assert max(trial.intermediate_values) == (1 if "lbfgs" in trial.params.values() else 3)
    best = read_json(tmp_path / "best.json")
    for entry in best["front"]:
        kept = read_json(tmp_path / entry["path"] / "best" / "state.json")["row"]
        assert (entry["value"], entry["retained"]) == (kept[METRIC], kept["val/retained"])
    assert re.search(r"linear_probe complete 0\.\d+, retained not applicable", done.stdout)
    assert "retained 0." in done.stdout.rsplit("best so far", 1)[1]
    assert "val/retained" in _zero_shot(tmp_path)
    again = tune.Args(
        *(folder / "features", tmp_path, ("projection", "linear_probe"), 4, 3),
        **{"draw": folder / "base.json", "retain": (folder / "new.json",), "seed": 1},
    )
    tune.run(again)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(DataError, match="its `retain_keys` is"):
        tune.run(dataclasses.replace(again, retain=()))


def test_a_worker_measures_what_it_is_told_to(folder: Path, tmp_path: Path) -> None:
    from trainables.trials.workbench import TrialSettings

    new = (folder / "new.json",)
    settings = TrialSettings(folder / "features", tmp_path, METRIC, 0, 1, folder / "base.json", new)
    val = Workbench(settings).val
    assert [one.classes.names for one in val.others if one.classes] == [
        ("white", "black", "yellow")
    ]
    assert val.take({val.ids[0]: 0}, read_draw(new[0]).classes).others == ()


# -- reported ------------------------------------------------------------------------------------


def reported(folder: Path) -> str:
    facts = {"metric": METRIC, "adapters": ["coop"], "trials": 5, "rungs": []}
    write_hashed(folder / "study.json", facts | {"retain_keys": ["a"]})
    append_jsonl(
        folder / "zero_shot" / "metrics.jsonl", [{METRIC: 0.5, "val/retained": 0.65, "epoch": 1}]
    )
    report.run(report.Args(folder))
    return (folder / "report.html").read_text()


def test_the_report_draws_the_front_and_says_what_the_choice_retains(tmp_path: Path) -> None:
    searched(tmp_path)
    page = reported(tmp_path)
    said = (
        "Of 4 trials with both goals, 3 stand on the front of accuracy and retention; the one "
        "chosen, trial 2, has 60.0 % accuracy on val of classes it never saw where zero-shot has "
        "65.0 %."
    )
    assert said in page
    assert said in re.sub(r"\\(.)", r"\1", (tmp_path / "report.md").read_text())
    chart = page[page.index('id="front"') :]
    chart = chart[: chart.index("</figure>")]
    assert "trial 2" in chart
    assert "zero-shot" in chart
    headline = "coop (trial 2) is the best balance on val: 60.0 % accuracy, 60.0 % retained"
    assert headline in page


def test_the_report_of_one_goal_has_no_front(tmp_path: Path) -> None:
    searched(tmp_path)
    reported(tmp_path)
    facts = read_json(tmp_path / "study.json")
    del facts["retain_keys"]
    write_hashed(tmp_path / "study.json", facts)
    report.run(report.Args(tmp_path))
    assert 'id="front"' not in (tmp_path / "report.html").read_text()


def test_the_report_says_where_retention_applies_to_no_trial(tmp_path: Path) -> None:
    search = searcher(tmp_path)
    for number in range(2):
        search.suggest(f"ray{number}")
        if number == 1:
            search.on_trial_complete("ray1", row(1, 0.9, None))
    page = reported(tmp_path)
    assert "retention is not applicable, and trial 1 was chosen by accuracy alone" in page
    assert 'id="front"' not in page
