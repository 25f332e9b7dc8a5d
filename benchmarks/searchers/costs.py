"""What a suggestion and a result cost the driver of a search that has seen 2,000 trials.

Flows in: nothing; values are drawn at random, nothing is trained. Flows out: seconds of a question,
beside those of a driver that adds every number up anew at each question and must suggest the same,
and beside Optuna's own sampler over the same trials in one study, as cliptune searched before.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import io
import random
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial

from benchmarks.harness import Case, Outputs, Row, measure
from pipelines.tune.callbacks import Progress
from pipelines.tune.samplers.history import History
from pipelines.tune.samplers.race import Standings
from pipelines.tune.samplers.samplers import quiet
from pipelines.tune.samplers.searcher import StudySearcher, suggest
from pipelines.tune.schedulers.asha import EarlyStopping
from pipelines.tune.study.best import Best
from pipelines.tune.study.budget import Spent
from pipelines.tune.study.search import Search
from pipelines.tune.study.study import ADAPTER, open_study
from pipelines.tune.study.sums import Ledger, Total
from trainables.files import read_json, write_json
from trainables.trials.jobs import Job

TRIALS = 2000
MORE = 40  # trials that are timed
FILE = "searchers/costs.json"
METRIC = "val/t2i_r1"
SEARCH = Search(("soft_prompt", "lora"), METRIC, trials=5000, epochs=9, seed=0, fixed={})


class Anew(Ledger[Total]):
    """One that forgets what it has read."""

    def __init__(self, nothing: Total) -> None:
        super().__init__(nothing)
        self.nothing = nothing.copy()

    def of(self, trials: Sequence[FrozenTrial]) -> Total:
        self.settled, self.read = self.nothing.copy(), 0
        return super().of(trials)


class Watch:
    """A clock that only runs while something is timed."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.seconds, self.times = clock, 0.0, 0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        started = self.clock()
        yield
        self.seconds += self.clock() - started
        self.times += 1


class Driver:
    """One life of a driver: all that it does between two calls of Ray's."""

    def __init__(self, folder: Path, search: Search, suggesting: Watch, hearing: Watch) -> None:
        self.study, self.search = open_study(folder), search
        self.asks = StudySearcher(self.study, search, folder, fuse=1)
        self.stops = EarlyStopping(self.study, search, self.asks.budget)
        self.says = Progress(self.study, search, self.asks.budget)
        self.suggesting, self.hearing = suggesting, hearing

    def forget(self) -> None:
        """Add everything up anew from here on."""
        sampler = self.asks.sampler
        self.asks.budget.ledger = Anew(Spent())
        self.asks.best, self.says.best = Anew(Best()), Anew(Best())
        sampler.ledger = Anew(History(self.search, sampler.notes))
        sampler.race.ledger = Anew(Standings(self.search))

    def run(self, trials: int) -> list[dict[str, Any]]:
        """So many trials, one after the other; their values."""
        begun = len(self.study.get_trials(deepcopy=False))
        with contextlib.redirect_stdout(io.StringIO()):
            return [self._trial(number) for number in range(begun, begun + trials)]

    def _trial(self, number: int) -> dict[str, Any]:
        name, drawn = f"trial{number}", random.Random(number)
        with self.suggesting.timed():
            job = self.asks.suggest(name)
        trial: Any = SimpleNamespace(trial_id=name, config=job)
        self.stops.on_trial_add(None, trial)
        value, epoch, goes_on = drawn.random() / 2, 0, True
        while goes_on:
            epoch, value = epoch + 1, value + drawn.random() / 20
            result = row(number, epoch, value, epoch == self.search.epochs)
            with self.hearing.timed():
                goes_on = self._hear(trial, result)
        return {**Job(**job).values}

    def _hear(self, trial: Any, result: dict[str, Any]) -> bool:
        """One epoch's result, told as Tune tells it; whether the trial goes on."""
        stops = self.stops.on_trial_result(None, trial, result) == EarlyStopping.STOP
        if stops or result["done"]:
            self.asks.on_trial_complete(trial.trial_id, result)
            self.says.on_trial_complete(0, [], trial)
        else:
            self.asks.on_trial_result(trial.trial_id, result)
            self.says.on_trial_result(0, [], trial, result)
        return not (stops or result["done"])


def row(number: int, epoch: int, value: float, done: bool) -> dict[str, Any]:
    return {
        **{"number": number, "epoch": epoch, METRIC: value, "best": value, "best_epoch": epoch},
        **{"state": "finished" if done else "running", "done": done},
        **{"seconds": 1.0, "trainable_parameters": 8},
    }


def record(folder: Path) -> None:
    """A study of `TRIALS`; drawn at random, which is quick."""
    quick = dataclasses.replace(SEARCH, sampler="random")
    Driver(folder, quick, Watch(time.time), Watch(time.time)).run(TRIALS)


@cache
def history() -> Path:
    """Its folder, for as long as this process lives."""
    folder = Path(tempfile.mkdtemp(prefix="cliptune-bench-"))
    atexit.register(shutil.rmtree, folder)
    record(folder)
    return folder


@contextlib.contextmanager
def resumed(suggesting: Watch, hearing: Watch) -> Iterator[Driver]:
    """A driver that goes on with a copy of it, and has read all of it."""
    with tempfile.TemporaryDirectory(prefix="cliptune-bench-") as folder:
        shutil.copytree(history(), folder, dirs_exist_ok=True)
        driver = Driver(Path(folder), SEARCH, suggesting, hearing)
        driver.asks.budget.over()
        yield driver


def numbers(trials: Sequence[dict[str, Any]]) -> Outputs:
    """Values as they are compared, a word by its hash: one vector a trial."""

    def number(value: Any) -> float:
        return float(value if isinstance(value, int | float) else zlib.crc32(str(value).encode()))

    return {
        str(place): torch.tensor([number(value) for value in trial.values()], dtype=torch.float64)
        for place, trial in enumerate(trials)
    }


def case(which: str) -> Case:
    """Ours, and the same by sums that are made anew."""
    history()
    watches = {"suggestion": Watch(time.process_time), "result": Watch(time.process_time)}

    def variant(forgets: bool) -> Outputs:
        with resumed(*watches.values()) as driver:
            if forgets:
                driver.forget()
            return numbers(driver.run(MORE))

    return Case(lambda: variant(True), lambda: variant(False), lambda: watches[which].seconds)


def one_study() -> Case:
    """Ours, and one sampler of Optuna's over all trials, whichever adapter they are of."""
    history()
    watch = Watch(time.process_time)

    def before() -> Outputs:
        with tempfile.TemporaryDirectory(prefix="cliptune-bench-") as folder:
            shutil.copytree(history(), folder, dirs_exist_ok=True)
            study = open_study(Path(folder))
            with quiet():
                study.sampler = optuna.samplers.TPESampler(
                    seed=0, multivariate=True, group=True, constant_liar=True
                )
            for _ in range(MORE):
                with watch.timed():
                    trial = study.ask()
                    adapter = trial.suggest_categorical(ADAPTER, SEARCH.adapters)
                    for name, distribution in SEARCH.searched(adapter).items():
                        suggest(trial, f"{adapter}/{name}", distribution)
                study.tell(trial, 0.3)
        return {"trials": torch.tensor(float(MORE))}

    def ours() -> Outputs:
        with resumed(watch, Watch(time.process_time)) as driver:
            return {"trials": torch.tensor(float(len(driver.run(MORE))))}

    return Case(before, ours, lambda: watch.seconds)


def seconds(which: str) -> float:
    """Wall seconds of one, on the average."""
    watches = {"suggestion": Watch(time.perf_counter), "result": Watch(time.perf_counter)}
    with resumed(*watches.values()) as driver:
        driver.run(MORE)
    return watches[which].seconds / watches[which].times


ANEW = "all numbers added up anew at each question"
ROWS = (
    Row("suggestion", ANEW, 3, lambda: case("suggestion"), 0.0),
    Row("result", ANEW, 3, lambda: case("result"), 0.0),
    Row("suggestion in one study", "Optuna's TPE over all adapters at once", 5, one_study, 0.0),
)
ALLOWED = {"suggestion": 0.02, "result": 0.003}


def section(folder: Path) -> list[str]:
    """What the page of all benchmarks says of it."""
    path = folder / FILE
    if not path.is_file():
        return []
    found = read_json(path)
    return [
        f"## The driver of a search at {found['trials']:,} trials",
        "",
        f"Written by `python -m benchmarks.searchers.costs` on {found['cpu']}. CPU",
        f"milliseconds of {found['more']} trials, two adapters, interleaved rounds.",
        "Suggestions are equal to the last bit, but in the last row: before, one sampler saw all",
        "adapters.",
        "",
        "| what | against | before → ours | ratio | 95 % | rounds |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.what} | {1e3 * one['baseline_seconds']:.0f} → "
            f"{1e3 * one['our_seconds']:.0f} ms | {one['ratio']:.1f}x "
            f"| {one['low']:.1f} to {one['high']:.1f} | {one['rounds']} |"
            for row in ROWS
            for one in [found["rows"][row.name]]
        ),
        "",
        *(
            f"- One {name}: {1e3 * taken:.2g} ms on the clock, {1e3 * ALLOWED[name]:g} allowed."
            for name, taken in found["seconds"].items()
        ),
        "",
    ]


def main() -> int:
    """The exit status: 1 where suggestions differ or take too long."""
    from benchmarks.__main__ import HERE, all_limits, all_rows
    from benchmarks.table import Machine, Table

    torch.set_num_threads(1)
    taken = {name: seconds(name) for name in ALLOWED}
    rows = {row.name: measure(row, 5, lambda line: print(line, flush=True)) for row in ROWS}
    write_json(
        HERE / FILE,
        {"cpu": Machine.this().cpu, "trials": TRIALS, "more": MORE, "seconds": taken}
        | {"rows": {name: dataclasses.asdict(one) for name, one in rows.items()}},
    )
    stored = Table(HERE, Machine(**read_json(HERE / "results.json")["machine"]))
    stored.write(all_rows(), all_limits())
    print(*section(HERE), sep="\n")
    failed = [one for row in ROWS for one in [rows[row.name]] if one.error > row.tolerance]
    return int(bool(failed) or any(taken[name] > most for name, most in ALLOWED.items()))


if __name__ == "__main__":
    sys.exit(main())
