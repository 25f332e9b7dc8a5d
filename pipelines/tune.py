"""Search adapters and their hyperparameters on train and val. The test split stays sealed."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pipelines.capacity import Gpus
from pipelines.console import done, nothing_to_do, say, word
from pipelines.hold import hold
from pipelines.ranges import MANY, Range, Wait, check_ranges
from pipelines.searching.kinds import Sampler, Scheduler
from trainables.errors import CliptuneError, DataError
from trainables.files import read_json, write_hashed

if TYPE_CHECKING:
    import optuna

    from pipelines.searching.study import Search
    from trainables.trial import TrialSettings


@dataclass(frozen=True)
class Args:
    features: Path
    """A feature store written by `cliptune encode`, or a folder with one in it."""
    out: Path = Path("runs/study")
    """Folder of the study. The same command in the same folder goes on where it stopped."""
    adapter: tuple[str, ...] = ()
    """Adapters to search over; `auto`: all that there are for retrieval, or for the classes of a
    draw. prefix_captioner speaks captions instead. Default: soft_prompt and lora, with a draw coop
    and lora."""
    trials: Annotated[int | None, Range(1)] = None
    """Trials at most; each adapter's published recipes are its first. Default, where no other
    budget is given: 16, or 4 an adapter where that is more."""
    epochs: Annotated[int, Range(1)] = 9
    """Epochs of a trial that is never stopped early. ASHA decides at 1, 3, 9, ...,
    with a draw at 3, 9, ..."""
    epochs_total: Annotated[int, Range(0)] = 0
    """Epochs at most, of all trials together; trials that run then are stopped, and count with what
    they reached, but recipes. 0: no limit."""
    minutes: Annotated[float, Range(0)] = 0.0
    """Minutes at most; trials that run then are stopped, and count with what they reached."""
    stop: bool = True
    """End by itself where the best has stood for half of the trials, for 24, and for two an
    adapter."""
    sampler: Sampler = "auto"
    """What draws an adapter's values, from that adapter's trials alone. auto: tpe."""
    scheduler: Scheduler = "asha"
    """What stops trials early, each held against those of its own adapter. pbt, pb2: none is; the
    trials are a population, in which the lowest take over weights and values of the highest, and
    the values change while training."""
    interval: Annotated[int, Range(1)] = 1
    """Of pbt and pb2: epochs between two exchanges."""
    grace: Annotated[int, Range(0)] = 0
    """The first epoch after which a trial may be stopped. 0: 3 with a draw, else 1."""
    eta: Annotated[int, Range(2)] = 3
    """Of the trials at a rung one of so many goes on to the next, so many times further."""
    brackets: Annotated[int, Range(1, 32)] = 1
    """Of ASHA: some trials meet their first rung later. hyperband: as many as there are rungs."""
    draw: Path | None = None
    """A draw written by `cliptune draw`: classify its images instead of retrieving captions."""
    metric: str = ""
    """What is maximised on val: `val/t2i_r1`, `val/i2t_r5`, `val/t2i_mrr`, ...; of captioners
    `val/cider_d`, `val/bleu4`, ...; with a draw `val/accuracy`, `val/class_accuracy` or
    `val/log_likelihood`. Default: the first of them."""
    seed: Annotated[int, Range(0)] = 0
    """Of the sampler and of every trial."""
    concurrent: Annotated[int, Range(0, MANY)] = 0
    """Trials at once. 0: as many as the machine or cluster holds."""
    workers_per_trial: Annotated[int, Range(1, MANY)] = 1
    """Ray Train workers that train one trial together: gradients averaged, negatives gathered."""
    gpus: Gpus = "auto"
    """GPUs of a worker; a fraction packs several trials on a card. auto: 1 where the cluster has
    GPUs or its autoscaler can start nodes with them, else 0."""
    wait: Wait = 10.0
    """Minutes to wait for room for the first trial, where nodes have to be started or are busy."""
    fuse: Annotated[int, Range(0, MANY)] = 0
    """Trials of one shape trained as one. 0: as many as is fastest, measured; 1: none."""
    set: tuple[str, ...] = field(default_factory=tuple)
    """Fields not to search, as `batch_size=64 loss.kind=siglip`."""
    limit: tuple[str, ...] = ()
    """What a trial may have at most, as `parameters=100000 seconds=30` (its folds' seconds too);
    what has more is stopped and never chosen."""
    space: Path | None = None
    """What to search, as `cliptune space` prints it, edited; what it leaves out of an adapter stays
    at the recipe. Without `--adapter`, its adapters are searched."""
    search: tuple[str, ...] = field(default_factory=tuple)
    """Fields to search too or otherwise, of every adapter that has them:
    `optim.lr=1e-5..1e-2:log adapter.n_ctx=1..32 batch_size=32,64,128`."""
    retain: tuple[Path, ...] = ()
    """Draws of classes that training never sees (`cliptune draw --part new`). The search then has
    two goals, the metric and the accuracy on their val images; ASHA stops no trial."""
    portfolio: bool = True
    """After its recipes, each adapter tries a few shipped points that were good on other data."""
    prior: tuple[Path, ...] = ()
    """Earlier searches for the same task, studies or arenas, the most similar first: after its
    recipes, each adapter tries what was best there."""
    mend: bool = False
    """Where the study's journal was damaged: go on from what is whole of it. All else is kept."""
    folds: Annotated[int | None, Range(0)] = None
    """Choose by so many folds over the shots of the draw, beside val: in each a run is trained
    without a part of the shots and measured on it, so an epoch takes as many times longer. Default:
    4 where several adapters are compared on fewer than 200 val images, else 0."""

    def __post_init__(self) -> None:
        check_ranges(self)


NO_FLAGS = {
    "--no-val": "a search chooses on val, or on val and the shots by `--folds`; "
    "`cliptune train --no-val` trains one configuration without it.",
}


def run(args: Args) -> None:
    from pipelines.searching.first_checks import check_first
    from trainables.store import find_store

    check_first(args)
    args = dataclasses.replace(args, features=find_store(args.features).absolute())
    from pipelines.searching.flags import check  # torch, too late for what is wrong at first sight

    search = check(args)
    folder = args.out.absolute()
    with hold(folder, "study.json", "journal.log"):
        _search(args, search, folder)


def _search(args: Args, search: Search, folder: Path) -> None:
    from pipelines.searching.best import best_trial, over_all
    from pipelines.searching.budget import Budget
    from pipelines.searching.choice import write_choice
    from pipelines.searching.closing import closing
    from pipelines.searching.journal import NAME, SUMS
    from pipelines.searching.mending import check_whole, restore
    from pipelines.searching.study import open_study, states
    from trainables.trial import Workbench

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
        nothing_to_do(folder / "best.json", then)
        return
    try:
        interrupted = _tune(args, search, folder, study)
    except BaseException:
        if not study.get_trials(deepcopy=False):  # nothing began: other flags may have the folder
            for name in ("study.json", NAME, SUMS):
                (folder / name).unlink(missing_ok=True)
        raise
    if interrupted:
        say("interrupted: the running trials are saved; the same command goes on from here.")
    for line in closing(study, search):
        say(line)
    chosen = write_choice(study, search, folder)
    if interrupted:
        import ray

        ray.shutdown()  # its processes go now; the deadline of the interrupt still holds
        os._exit(130)  # Ray's own exit handlers may wait for longer than the user should
    if best_trial(study) is None:
        none = f"no trial of `{folder}` succeeded; their reasons are listed above"
        raise CliptuneError(f"{over_all(study, search, folder) or none}.")
    _over(folder, study)
    say(chosen)
    made = [folder / "schedule.json"] if search.stopping.population else []
    done([folder / "best.json", *made, folder / NAME, folder / "trials"], then)
    say(
        f"look:  tensorboard --logdir {word(args.out / 'ray')}   or   "
        f"optuna-dashboard {word(args.out / NAME)}"
    )


def _claim(folder: Path, args: Args, search: Search) -> None:
    """Write `study.json`, or check that this folder holds the same study."""
    from pipelines.searching.asha import rungs
    from pipelines.searching.study import about_study

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
    from trainables.trial import TrialSettings

    return TrialSettings(
        *(args.features, folder, search.metric, 0),
        folds=search.folds,
        draw=args.draw and args.draw.absolute(),
        retain=tuple(path.absolute() for path in args.retain),
    )


def _tune(args: Args, search: Search, folder: Path, study: optuna.Study) -> bool:
    """Run what is left of the search; whether it was interrupted."""
    from pipelines.cluster import connect, quiet_tune

    quiet_tune()
    from ray import tune

    from pipelines.searching.best import best_so_far
    from pipelines.searching.callbacks import Losses, Progress
    from pipelines.searching.from_disk import pausing
    from pipelines.searching.interrupt import Interrupt
    from pipelines.searching.population import rules
    from pipelines.searching.searcher import widest
    from pipelines.searching.workers import take
    from trainables.trial import AdapterTrial

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
                callbacks=[Losses(searcher), Progress(study, search, searcher.budget)],
                verbose=0,
            ),
        )
        with interrupt, pausing(searcher):
            tuner.fit()
    settings.stop_file.unlink(missing_ok=True)
    return interrupt.seen


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("tune")
