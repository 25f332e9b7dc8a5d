"""The stages of cliptune as functions: a keyword is the flag of the same name.

Flows in: paths and values. Flows out: folders on disk, as the commands write them, and what is in
them as Python has it. A second call with the same values does no work and returns the same (but
`export` wants a new folder); one that was killed goes on. `cliptune STAGE --help` says what each
flag means.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from cliptune.results import Arena, Result, Run, Shards, Study
from cliptune.values import Pairs, PathLike, Paths, Words, run_stage
from pipelines.records.kinds import Log
from pipelines.tune.study.kinds import Sampler, Scheduler


def shards(
    source: PathLike,
    out: PathLike = "shards",
    *,
    format: str | None = None,
    images: PathLike | None = None,
    columns: Pairs = (),
    split: Literal["source", "val-of-train", "hash", "train", "val", "test"] = "source",
    multi_label: Literal["largest", "drop"] = "largest",
    max_bad_fraction: float = 0.01,
    on_leak: Literal["error", "drop"] = "error",
    rows_per_shard: int = 1000,
    overwrite: bool = False,
) -> Shards:
    """Check a source of images and words, and write it as Parquet shards.

    Raises `DataError` where no format fits, or where more than `max_bad_fraction` of the records
    are bad.

    >>> made = cliptune.shards("captions.csv", out="shards")
    >>> made.splits
           images  captions
    train      40        40
    val        10        10
    test       10        10
    >>> made.quarantine.empty
    True
    """
    run_stage("shards", locals())
    return Shards.read(out)


def draw(
    shards: PathLike,
    *,
    shots: int = 16,
    seed: int = 1,
    part: Literal["all", "base", "new"] = "all",
    words: PathLike = "default",
    index: PathLike | None = None,
    missing: Literal["error", "drop"] = "error",
    fewer: bool = False,
    dataset: str | None = None,
    out: PathLike | None = None,
) -> Path:
    """Choose `shots` labelled images a class to train on: a task of classes, as a file.

    >>> cliptune.draw("things", shots=2, words="things.json", out="two-shots.json")
    PosixPath('two-shots.json')
    """
    return Path(run_stage("draw", locals()))


def encode(
    shards: PathLike | None = None,
    *,
    backbone: PathLike = "",
    revision: str | None = None,
    out: PathLike = "features",
    views: int = 0,
    pixels: bool = False,
    data_seed: int = 0,
    frames: int = 0,
    sampling: Literal["uniform", "motion"] = "uniform",
    batch_size: int = 256,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    activations_gb: float = 20.0,
    workers: int | Literal["auto"] = "auto",
    gpus: float | Literal["auto"] = "auto",
    wait: float = 10.0,
    embeddings: PathLike | None = None,
    split: Literal["source", "hash", "draw"] = "source",
    captions: PathLike | None = None,
    logit_scale: float = 100.0,
    clean_text: bool = True,
) -> Path:
    """Run the frozen towers once over train and val; the feature store's folder.

    `backbone` is a folder in Hugging Face's or open_clip's layout, or a Hub id with the commit
    `revision`. With `embeddings` no tower is run: they are taken as they are.

    >>> store = cliptune.encode("shards", backbone="clip", out="features")
    >>> store.parent.name
    'features'
    """
    return Path(run_stage("encode", locals()))


def tune(
    features: PathLike,
    *,
    out: PathLike = "runs/study",
    adapter: Words = (),
    trials: int | None = None,
    epochs: int = 9,
    epochs_total: int = 0,
    minutes: float = 0.0,
    stop: bool = True,
    sampler: Sampler = "auto",
    scheduler: Scheduler = "asha",
    interval: int = 1,
    grace: int = 0,
    eta: int = 3,
    brackets: int = 1,
    draw: PathLike | None = None,
    metric: str = "",
    seed: int = 0,
    concurrent: int = 0,
    workers_per_trial: int = 1,
    gpus: float | Literal["auto"] = "auto",
    wait: float = 10.0,
    fuse: int = 0,
    set: Pairs = (),
    limit: Pairs = (),
    space: PathLike | None = None,
    search: Pairs = (),
    retain: Paths = (),
    portfolio: bool = True,
    prior: Paths = (),
    mend: bool = False,
    folds: int | None = None,
    log: Log | Sequence[Log] = (),
) -> Study:
    """Search adapters and their hyperparameters on train and val. The test split stays sealed.

    It runs in the Ray cluster that this process is connected to or that `RAY_ADDRESS` names, else
    in one that is started on this machine.

    >>> study = cliptune.tune("features", out="runs/search", adapter="soft_prompt", trials=2,
    ...                       epochs=2, set={"batch_size": 16}, search={"optim.lr": "1e-3..1:log"})
    >>> study.metric, len(study.trials)
    ('t2i_r1', 2)
    """
    run_stage("tune", locals())
    return Study.read(out)


def train(
    features: PathLike,
    out: PathLike,
    *,
    adapter: str = "",
    set: Pairs = (),
    draw: PathLike | None = None,
    metric: str = "",
    workers: int = 1,
    gpus: float | Literal["auto"] = "auto",
    wait: float = 10.0,
    retain: Paths = (),
    schedule: PathLike | None = None,
    val: bool = True,
) -> Run:
    """Train one adapter with given hyperparameters, from its published recipe on.

    >>> run = cliptune.train("features", "runs/one", adapter="soft_prompt",
    ...                      set={"epochs": 3, "optim.lr": 1e-2})
    >>> len(run.history), run.config["optim.lr"]
    (3, 0.01)
    """
    run_stage("train", locals())
    return Run.read(out)


def arena(
    data: Pairs,
    *,
    backbone: PathLike = "",
    revision: str | None = None,
    out: PathLike = "runs/arena",
    words: Pairs = (),
    adapter: Words = (),
    shots: int | Sequence[int] = (16,),
    seed: int | Sequence[int] = (1, 2, 3),
    protocol: Words = ("all", "base_to_new"),
    trials: int = 4,
    seconds: float = 0.0,
    epochs: int = 0,
    views: int = 0,
    precision: Literal["auto", "fp32", "bf16"] = "auto",
    fewer: bool = False,
    concurrent: int = 0,
    gpus: float | Literal["auto"] = "auto",
    wait: float = 10.0,
    portfolio: bool = True,
) -> Arena:
    """Every few-shot adapter on labelled data, with one budget each, and test opened once.

    >>> arena = cliptune.arena({"things": "things"}, backbone="clip", out="runs/arena",
    ...                        words={"things": "things.json"}, protocol="all", trials=1,
    ...                        adapter=["zero_shot", "gda"], shots=2, seed=1)
    >>> sorted(arena.table.adapter)
    ['gda', 'zero_shot']
    """
    run_stage("arena", locals())
    return Arena.read(out)


def evaluate(
    run: PathLike,
    *,
    adapters: Literal["per-adapter", "best"] = "per-adapter",
    bootstrap: int = 2000,
    batch_size: int = 256,
    gallery: int = 8,
    beside: Paths = (),
    draw: PathLike | None = None,
) -> Result:
    """Open the sealed test split: the best of each adapter beside the baseline.

    Each opening is logged in the run. (`cliptune.arena` opens test by itself, once.)

    >>> result = cliptune.evaluate("runs/mine")
    >>> list(result.standings.index)
    ['zero_shot', 'soft_prompt']
    """
    run_stage("evaluate", locals())
    return Result.read(run, draw)


def report(run: PathLike) -> Path:
    """Write one page about a run: `report.html`, with `report.md` beside it.

    >>> cliptune.report("runs/mine")
    PosixPath('runs/mine/report.html')
    """
    return Path(run_stage("report", {"run": run}))


def export(
    run: PathLike | None = None,
    out: PathLike | None = None,
    *,
    merged: bool = False,
    to: Literal["", "peft", "transformers", "open_clip", "onnx", "safetensors", "numpy"] = "",
    numbers: Literal["fp32", "fp16", "int8"] = "fp32",
    takes: Literal["pixels", "squares", "pictures"] = "pixels",
    check: PathLike | None = None,
) -> Path:
    """Hand the best adapter of a run over in `out`, a new folder, as other libraries load it. With
    `to` it is run there and compared; `check`, alone, compares what lies in a folder again.

    >>> cliptune.export("runs/few", "handed-over", to="numpy")
    PosixPath('handed-over')
    >>> cliptune.export(check="handed-over")
    PosixPath('handed-over')
    """
    run_stage("export", locals())
    return Path(out if check is None and out is not None else check or "")
