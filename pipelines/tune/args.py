"""The flags of `cliptune tune`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pipelines.capacity import Gpus
from pipelines.ranges import MANY, Range, Wait, check_ranges
from pipelines.records.kinds import Log
from pipelines.tune.study.kinds import Sampler, Scheduler


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
    log: tuple[Log, ...] = ()
    """Where to record the study too, each trial as a run in it: MLflow or Weights & Biases, as
    `MLFLOW_TRACKING_URI`, `WANDB_PROJECT` and their like say; without them in the study's folder.
    TensorBoard's files are always written."""

    def __post_init__(self) -> None:
        check_ranges(self)
