"""Search adapters and their hyperparameters on train and val. The test split stays sealed."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.console import done, nothing_to_do, say, word
from pipelines.hold import hold
from pipelines.tune.args import Args
from trainables.errors import CliptuneError, DataError
from trainables.files import read_json, write_hashed

if TYPE_CHECKING:
    import optuna

    from pipelines.records.mirror import Mirror
    from pipelines.tune.study.search import Search
    from trainables.trials.workbench import TrialSettings


NO_FLAGS = {
    "--no-val": "a search chooses on val, or on val and the shots by `--folds`; "
    "`cliptune train --no-val` trains one configuration without it.",
}


def run(args: Args) -> None:
    from pipelines.tune.first_checks import check_first
    from trainables.data.store import find_store

    check_first(args)
    args = dataclasses.replace(args, features=find_store(args.features).absolute())
    from pipelines.tune.flags import check  # torch, too late for what is wrong at first sight

    search = check(args)
    folder = args.out.absolute()
    with hold(folder, "study.json", "journal.log"):
        _search(args, search, folder)


def _search(args: Args, search: Search, folder: Path) -> None:
    from pipelines.records.keeper import FOLDER
    from pipelines.tune.closing import closing
    from pipelines.tune.recording import recording
    from pipelines.tune.study.best import best_trial, over_all
    from pipelines.tune.study.budget import Budget
    from pipelines.tune.study.choice import write_choice
    from pipelines.tune.study.journal import NAME, SUMS
    from pipelines.tune.study.mending import check_whole, restore
    from pipelines.tune.study.study import open_study, states
    from trainables.trials.workbench import Workbench

    for line in check_whole(folder, args.mend):
        say(line)
    _claim(folder, args, search)
    study = open_study(folder, search.retains)
    for line in restore(study, search, folder, lambda: Workbench(_settings(args, search, folder))):
        say(line)
    write_choice(study, search, folder)  # a kill may have come between a trial's end and this
    then = f"cliptune evaluate --run {word(args.out)}"
    counts = states(study)
    if Budget(search, study).over() and not counts["RUNNING"]:
        if best_trial(study) is None:
            why = over_all(study, search, folder) or f"no trial of `{folder}` succeeded"
            raise CliptuneError(f"{why}: give another `--out`.")
        _over(folder, study)
        if args.log:  # of what they lack
            with recording(args.log, study, folder):
                pass
        nothing_to_do(folder / "best.json", then)
        return
    try:
        with recording(args.log, study, folder) as mirrors:
            interrupted = _tune(args, search, folder, study, mirrors)
            for line in closing(study, search):
                say(line)
            chosen = write_choice(study, search, folder)
            if interrupted:
                raise KeyboardInterrupt("what runs is saved; the same command goes on from here.")
    except BaseException:
        if not study.get_trials(deepcopy=False):  # nothing began: other flags may have the folder
            for name in ("study.json", NAME, SUMS):
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
        raise
    if best_trial(study) is None:
        none = f"no trial of `{folder}` succeeded; their reasons are listed above"
        raise CliptuneError(f"{over_all(study, search, folder) or none}.")
    _over(folder, study)
    say(chosen)
    made = [folder / "schedule.json"] if search.stopping.population else []
    done([folder / "best.json", *made, folder / NAME, folder / "trials"], then)
    say(
        f"look:  tensorboard --logdir {word(args.out / FOLDER)}   or   "
        f"optuna-dashboard {word(args.out / NAME)}"
    )


def _claim(folder: Path, args: Args, search: Search) -> None:
    """Write `study.json`, or check that this folder holds the same study."""
    from pipelines.tune.schedulers.asha import rungs
    from pipelines.tune.study.search import about_study

    wanted = about_study(
        search, rungs(search), args.features, args.draw, args.retain, args.workers_per_trial
    )
    wanted |= {"portfolio": args.portfolio, "prior": [str(path) for path in args.prior]}
    free = (
        *("created", "features", "draw", "retain", "budget", "trials", "sampler", "limits"),
        "hints",  # settled when the study began
    )
    path = folder / "study.json"
    if path.exists():
        found = {"portfolio": args.portfolio, "prior": []} | read_json(path)
        found.setdefault("stopping", wanted["stopping"])  # older studies do not say
        if not search.spaces:  # older studies do not say that they search the adapters' own
            found.setdefault("spaces", wanted["spaces"])
        for name in ["retain_keys", "folds", *wanted]:
            old, new = found.get(name), wanted.get(name)
            if name not in free and old != new:
                if isinstance(old, dict) and isinstance(new, dict):
                    old, new = _without(old, new), _without(new, old)
                raise DataError(
                    f"`{folder}` holds another study: its `{name}` is {old!r}, "
                    f"this one's {new!r}. Give another `--out`."
                )
        wanted["created"] = found["created"]
    write_hashed(path, wanted)


def _over(folder: Path, study: optuna.Study) -> None:
    """Say in `study.json` that the search was to have as many trials as it has."""
    path = folder / "study.json"
    write_hashed(path, read_json(path) | {"trials": len(study.get_trials(deepcopy=False))})


def _without(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What `one` does not have in common with `other`."""
    return {key: value for key, value in one.items() if other.get(key, ...) != value}


def _settings(args: Args, search: Search, folder: Path) -> TrialSettings:
    """Of trials that train alone."""
    from trainables.trials.workbench import TrialSettings

    return TrialSettings(
        *(args.features, folder, search.metric, 0),
        folds=search.folds,
        draw=args.draw and args.draw.absolute(),
        retain=tuple(path.absolute() for path in args.retain),
    )


def _tune(
    args: Args, search: Search, folder: Path, study: optuna.Study, mirrors: list[Mirror]
) -> bool:
    """Run what is left of the search; whether it was interrupted."""
    from pipelines.cluster import connect, places_freed, quiet_tune

    quiet_tune()
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # TensorBoard is one of `mirrors`
    from ray import tune
    from ray.tune.logger import JsonLoggerCallback

    from pipelines.tune.callbacks import Losses, Progress, Recording
    from pipelines.tune.samplers.from_disk import pausing
    from pipelines.tune.samplers.searcher import widest
    from pipelines.tune.schedulers.population import rules
    from pipelines.tune.study.best import best_so_far
    from pipelines.tune.workers.division import take
    from pipelines.tune.workers.interrupt import Interrupt
    from trainables.trials.trial import AdapterTrial

    connect(dashboard=True)
    workers = take(args.concurrent, args.workers_per_trial, args.gpus, args.wait)
    alone = search.stopping.population or args.workers_per_trial > 1 or search.folds
    fuse = 1 if alone else args.fuse
    settings = dataclasses.replace(
        _settings(args, search, folder),
        threads=workers.threads,
        most_fused=1 if fuse else widest(search),
        share=workers.share,
    )
    settings.stop_file.unlink(missing_ok=True)
    searcher, scheduler = rules(study, search, folder, fuse)
    interrupt = Interrupt(
        settings.stop_file, searcher.stop, lambda: best_so_far(study, search.metric)
    )
    say(f"{search.budget} over {', '.join(search.adapters)}: {workers}")
    with workers.pool(settings) as make_runner:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(AdapterTrial, make_runner=make_runner), workers.trial_resources
            ),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,  # the searcher says when it is finished
                max_concurrent_trials=workers.concurrent,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}",
            ),
            run_config=tune.RunConfig(
                name=f"from-{len(list((folder / 'ray').glob('from-*'))):03d}",
                storage_path=str(folder / "ray"),
                # A run keeps its own checkpoints, in the study's folder, whole and verified.
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                callbacks=[
                    *(Losses(searcher), Progress(study, search, searcher.budget)),
                    *(Recording(study, folder, mirror) for mirror in mirrors),
                    JsonLoggerCallback(),  # what Tune reads at the end
                ],
                verbose=0,
            ),
        )
        with interrupt.listening(), places_freed(), pausing(searcher):
            tuner.fit()
    settings.stop_file.unlink(missing_ok=True)
    return interrupt.seen


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("tune")
