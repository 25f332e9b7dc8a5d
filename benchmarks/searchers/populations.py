"""Populations beside early stopping: `python -m benchmarks.searchers.populations`.

Flows in: data sets and a small CLIP, as `cells` takes them. Flows out: `populations.json`, and its
part of `RESULTS.md`. What changes while training is on no recorded curve, so searches are run: by
`tune`'s own rules, one trial at a time, in this process. All spend the same epochs, and test is
measured when a search has ended.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import tyro

from benchmarks.searchers import cells, record
from benchmarks.searchers.curves import Data
from benchmarks.searchers.sheet import interval
from pipelines.runs.provenance import versions
from pipelines.tune.args import Args
from pipelines.tune.flags import check
from pipelines.tune.schedulers.asha import EarlyStopping, rungs
from pipelines.tune.schedulers.population import rules
from pipelines.tune.study.best import best_trial
from pipelines.tune.study.choice import write_choice
from pipelines.tune.study.kinds import Scheduler
from pipelines.tune.study.search import Search, about_study
from pipelines.tune.study.study import open_study
from trainables.data.store import find_store
from trainables.distributed import ALONE
from trainables.files import now, read_json, write_json
from trainables.training.checkpoint import load_adapter
from trainables.training.measure import measure
from trainables.trials.crew import Crew
from trainables.trials.jobs import Job
from trainables.trials.workbench import TrialSettings, Workbench

HERE = Path(__file__).parent.parent
FILE = "populations.json"
Found = dict[str, float]  # of a search: what it spent, and what its answers are worth
HOW = "python -m benchmarks.searchers.populations"
STOP = EarlyStopping.STOP
SCHEDULERS: tuple[Scheduler, ...] = ("asha", "none", "pbt", "pb2")
CELLS = (
    *("eurosat-16-1.projection", "eurosat-16-2.clip_adapter", "eurosat-16-3.projection"),
    *("pets-16-1.clip_adapter", "pets-16-2.projection", "colours-16-1.clip_adapter"),
    *("flickr8k.projection", "scenes.projection"),
)


@dataclass(frozen=True)
class Options:
    data: Path = Path("../shared/data")
    """Where the data sets are."""
    work: Path = Path("runs/searchers")
    """For shards, features and draws."""
    only: tuple[str, ...] = ()
    """Cells, as `scenes.projection`: those found of others stay. Else some of each kind."""
    seeds: int = 5
    """Searches of each scheduler on each cell."""
    trials: int = 16
    """Of a population; every search has as many epochs as its members together."""
    epochs: int = 9
    """Of a trial that is not stopped early."""
    out: Path = HERE
    """The folder for what is written."""


def main(options: Options) -> None:
    torch.set_num_threads(1)
    given = {name: getattr(options, name) for name in ("seeds", "trials", "epochs")}
    path = options.out / FILE
    stored = read_json(path) if path.is_file() else {}
    if any(stored.get(name) != value for name, value in given.items()):
        stored = given | {"cells": {}, "cpu_minutes": {}}
    for cell in options.only or CELLS:
        started = time.process_time()
        stored["cells"][cell] = play(options, cell)
        stored["cpu_minutes"][cell] = (time.process_time() - started) / 60
        write_json(path, stored | {"created": now(), "versions": versions()})
    print("\n".join(section(options.out)))
    if (options.out / "results.json").is_file():
        from benchmarks.__main__ import all_limits, all_rows
        from benchmarks.table import Machine, Table

        machine = Machine(**read_json(options.out / "results.json")["machine"])
        Table(options.out, machine).write(all_rows(), all_limits())


def play(options: Options, cell: str) -> dict[str, list[Found]]:
    """By scheduler, what each seed brought on a cell."""
    name, adapter = cell.rsplit(".", 1)
    prepare, seed, _, _ = cells.DATA[name]
    place, draw = prepare(cells.Options(options.data, options.work), seed)
    store = find_store(place / "features").absolute()
    data = record.load(record.Args(store, place / "shards", adapter, name, draw))
    found: dict[str, list[Found]] = {}
    for scheduler in SCHEDULERS if find_spec("sklearn") else SCHEDULERS[:-1]:
        population, most = scheduler in ("pbt", "pb2"), options.trials * options.epochs
        asked = Args(
            *(store, Path("nowhere"), (adapter,), options.trials if population else None),
            *(options.epochs, 0 if population else most),  # the same budget either way
            scheduler=scheduler,
            draw=draw,
            stop=False,
            set=("patience=0",),  # all epochs are to be spent
            portfolio=False,  # it was made of this data
        )
        search = check(asked)
        seeds = (replace(search, seed=one) for one in range(options.seeds))
        found[scheduler] = [run(one, asked, data) for one in seeds]
        print(cell, scheduler, *found[scheduler], sep="\n", flush=True)
    return found


def run(search: Search, asked: Args, data: Data) -> Found:
    """A search, as Tune would run it with one worker."""
    folder = Path(tempfile.mkdtemp())
    about = about_study(search, rungs(search), asked.features, asked.draw)
    write_json(folder / "study.json", about)
    settings = TrialSettings(asked.features, folder, search.metric, threads=1, draw=asked.draw)
    bench, study, spent = Workbench(settings, data.backbone), open_study(folder), 0
    searcher, scheduler = rules(study, search, folder)
    while isinstance(job := searcher.suggest(name := f"from-{spent}"), dict):
        trial = SimpleNamespace(trial_id=name, config=job)
        scheduler.on_trial_add(None, trial)
        crew, goes_on = Crew(bench, Job(**job), ALONE), True
        while goes_on:
            (result,) = crew.advance(lambda: False).values()
            spent += "epoch" in result  # a step that diverged ends none
            told = dict(result)
            stops = not result["done"] and scheduler.on_trial_result(None, trial, told) == STOP
            if goes_on := not (result["done"] or stops):
                searcher.on_trial_result(name, told)
        scheduler.on_trial_complete(None, trial, dict(result))
        searcher.on_trial_complete(name, dict(result))
    write_choice(study, search, folder)
    top = best_trial(study)
    assert top is not None

    def on_test(path: str) -> float:
        adapter = load_adapter(folder / path / "best", data.backbone)
        return measure(adapter, data.test)[search.metric.removeprefix("val/")]

    found = {
        **{"epochs": spent, "trials": len(study.trials), "val": top.user_attrs["best"]},
        "test": on_test(f"trials/{top.number:04d}"),
        "handed back": on_test(read_json(folder / "best.json")["path"]),
    }
    shutil.rmtree(folder)
    return found


def section(folder: Path) -> list[str]:
    """What `RESULTS.md` says about populations: the text, the table, a verdict on each."""
    lines = ["## Populations", ""]
    if not (folder / FILE).is_file():
        return [*lines, f"`{HOW}` was not run yet."]
    stored = read_json(folder / FILE)
    every = {  # (C, S) by scheduler and what was found
        name: {
            what: np.array([[one[what] for one in own[name]] for own in stored["cells"].values()])
            for what in ("epochs", "trials", "val", "test", "handed back")
        }
        for name in next(iter(stored["cells"].values()))
    }
    ran, minutes = stored["cells"], sum(stored["cpu_minutes"].values())
    lines += [
        f"Written by `{HOW} --seeds {stored['seeds']}` in {minutes:.0f} CPU minutes: searches",
        f"that were run, each worth {stored['trials']} trials of {stored['epochs']} epochs, on",
        f"{len(ran)} of {len(CELLS)} cells: {', '.join(f'`{cell}`' for cell in ran)}.",
        "Val and test are those of the trial that is highest on val; handed back is, on test, what",
        "`tune` chooses: by likelihood where there are classes, but not of a population. Means in",
        "points; to ASHA with the same seed, with 95 % by bootstrap over cells, and seeds of each.",
        "A population also varies weight decay, label smoothing and temperature where the space of",
        "an adapter, in which the others search, leaves them at its recipe.",
        "",
        "| scheduler | epochs | trials | val | to ASHA | 95 % | test | to ASHA | 95 % "
        "| handed back | to ASHA | 95 % |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    verdicts = []
    for name, found in every.items():
        row = [f"`{name}`", *(f"{found[what].mean():.3g}" for what in ("epochs", "trials"))]
        words = []
        for what in ("val", "test", "handed back"):
            ours, asha = 100 * found[what], 100 * every["asha"][what]
            gap, low, high = interval(ours - asha, np.mean)
            row += [f"{ours.mean():.2f}", f"{gap:+.2f}", f"{low:+.2f} to {high:+.2f}"]
            differs = f"{abs(gap):.1f} points {'better' if gap > 0 else 'worse'}"
            words.append("not shown to differ" if low <= 0 <= high else differs)
        lines.append(f"| {' | '.join(row)} |")
        if name != "asha":
            said = "{} on val, {} on test, {} as handed back".format(*words)
            verdicts.append(f"- `{name}` beside ASHA: {said}.")
    return [*lines, "", *verdicts]


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
