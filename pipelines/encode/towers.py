"""The bulk of the `encode` stage: images out of shards, through the frozen towers.

Flows in: row groups of shards. Flows out: batches of embeddings in whatever order they are ready,
each with its place. Ray Data does it: tasks read and decode, a pool of actors holds the towers. A
few images on one machine are embedded in this process, sooner than Ray would have started.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch

from pipelines.capacity import Capacity, Gpus, await_place, capacity
from pipelines.cluster import connect
from pipelines.console import say
from trainables.data.tensor_file import Array
from trainables.errors import CliptuneError, ConfigError
from trainables.features.frames import STILLS, Frames, embed_frames
from trainables.hardware import Resolved, check_precision, default_device
from trainables.media.image_headers import BadImage
from trainables.media.preprocess import Preprocess
from trainables.models.backbone import Backbone
from trainables.models.image_tower import frozen_embeds
from trainables.models.load import load_backbone

FEW = 2000  # images
LEAST = 0.01  # CPUs of a tower, where its GPU decides where it runs
Step = dict[str, Any]  # what a tower takes or gives at once


class Unit(NamedTuple):
    """A row group of a shard."""

    file: str
    group: int
    split: str
    first: int  # row of its first image in the split


@dataclass(frozen=True)
class Resources:
    """How the cluster is divided between decoding and towers."""

    towers: int
    tower_cpus: float  # each
    tower_gpus: float
    threads: int  # of torch, each tower
    task_cpus: float

    @classmethod
    def plan(cls, workers: int | str, gpus: Gpus, have: Capacity) -> Resources:
        """Towers get half of the CPUs of their nodes: if they took all, none would be left to
        decode for them.

        A task never asks for as much as a tower: Ray Data fuses two stages that ask for the same,
        and the tower's process would decode.
        """
        cpus, cards = (sum(getattr(node, kind) for node in have.best) for kind in ("cpus", "gpus"))
        if cpus < 1:
            raise ConfigError(f"Ray must have at least 1 CPU, got {cpus:g}.")
        each = have.gpus(gpus)
        if gpus == "auto" and workers != "auto" and cards:
            each = 1 / math.ceil(int(workers) / cards)  # they share what there is
        hosts = have.hosts(LEAST, each)
        places = sum(node.holds(LEAST, each) for node in hosts) if each else int(cpus) // 4
        towers = max(1, places) if workers == "auto" else int(workers)
        on_one = [min(towers, node.holds(LEAST, each)) if each else 1 for node in hosts]
        shares = [node.cpus / 2 / n for node, n in zip(hosts, on_one, strict=True)]
        most = (min if each else max)(shares, default=cpus)
        share = min(cpus / 2 / towers, most)
        return cls(
            towers=towers,
            tower_cpus=int(share)
            if share >= 1
            else round(share, 3),  # Ray wants whole ones above 1
            tower_gpus=each,
            threads=max(1, int(2 * share)),
            task_cpus=0.9 * min(1.0, cpus / 2),
        )

    @classmethod
    def take(cls, workers: int | str, gpus: Gpus, wait: float) -> Resources:
        """The division of the cluster, once there is room for one tower."""
        plan = cls.plan(workers, gpus, capacity())
        place = {"CPU": plan.tower_cpus} | ({"GPU": plan.tower_gpus} if plan.tower_gpus else {})
        await_place([place], wait)
        have = capacity()  # anew: only now is it sure how many CPUs stand beside a GPU
        plan = cls.plan(workers, gpus, have)
        if have.grows:
            where = f"{plan.tower_gpus:g} GPU" if plan.tower_gpus else f"{plan.threads} CPUs"
            say(f"{plan.towers} tower(s) with {where} each: the cluster has {have}, and grows.")
        return plan


class ReadAndDecode:
    """A row group's images as squares for the tower, as many at a time as it takes in a step."""

    def __init__(self, preprocess: Preprocess, at_once: int, frames: Frames = STILLS) -> None:
        self.preprocess = preprocess
        self.at_once = at_once
        self.frames = frames

    def __call__(self, unit: Mapping[str, Any]) -> Iterator[Step]:
        """A unit to its steps: `split`, `row`, `error`, and `pixels`: (n, 3, R, R), or
        (n, F, 3, R, R) where images have F frames."""
        torch.set_num_threads(1)
        yield from self.unit(Unit(**unit))

    def unit(self, unit: Unit) -> Iterator[Step]:
        first = unit.first
        with pq.ParquetFile(unit.file, pre_buffer=False) as file:
            columns = ["id", "image"]
            for part in file.iter_batches(self.at_once, row_groups=[unit.group], columns=columns):
                squares, errors = zip(*map(self._square, part.to_pylist()), strict=True)
                yield {
                    "split": unit.split,
                    "row": np.arange(first, first + len(errors)),
                    "pixels": np.stack(squares),
                    "error": next(filter(None, errors), ""),
                }
                first += len(errors)

    def _square(self, record: dict[str, Any]) -> tuple[Array, str]:
        """An image; one that does not decode is black, and says why."""
        try:
            return self.frames.squares(self.preprocess, record["image"]).numpy(), ""
        except BadImage as error:
            size, frames = self.preprocess.size, [self.frames.count] if self.frames.count else []
            return np.zeros((*frames, 3, size, size), np.uint8), f"`{record['id']}`: {error}"


class Tower:
    """A frozen image tower, loaded once a worker."""

    def __init__(
        self,
        name: str,
        revision: str | None,
        fingerprint: str,
        precision: Resolved,
        threads: int,
    ) -> None:
        torch.set_num_threads(threads)
        check_precision(precision, default_device(), "--precision")
        self.backbone = load_backbone(name, revision, default_device(), precision)
        if self.backbone.fingerprint != fingerprint:
            raise CliptuneError(f"`{name}` changed while it was being used.")

    def __call__(self, step: Step, keep_pixels: bool) -> Step:
        return embed(self.backbone, step, keep_pixels)


def embed(backbone: Backbone, step: Step, keep_pixels: bool) -> Step:
    pixels = torch.from_numpy(np.array(step["pixels"]))
    result = {name: step[name] for name in ("split", "row", "error")}
    if pixels.dim() == 5:  # (n, F, 3, R, R)
        means, each = embed_frames(backbone, pixels)
        result |= {"image_embeds": means.numpy(), "frame_embeds": each.numpy()}
    else:
        result["image_embeds"] = frozen_embeds(backbone, pixels).numpy()
    return result | ({"pixels": step["pixels"]} if keep_pixels else {})


@dataclass(frozen=True)
class Job:
    """The work to do on every unit."""

    backbone: Backbone
    images: int  # of all units
    pixels: bool  # hand the pixels on
    batch_size: int
    workers: int | str
    gpus: Gpus = "auto"
    wait: float = 10.0  # minutes
    frames: Frames = STILLS

    @property
    def at_once(self) -> int:
        """Images a step of the tower, at most."""
        return max(1, self.batch_size // max(1, self.frames.count))

    @property
    def here(self) -> bool:
        """Whether this process embeds, sooner than Ray would have started."""
        return (
            self.images <= FEW
            and (self.workers, self.gpus) == ("auto", "auto")
            and not os.environ.get("RAY_ADDRESS")
        )


def embed_units(units: Sequence[Unit], job: Job) -> Iterator[Step]:
    """Steps of one unit each, `split`, `row` (n), `error` (of one of its images, or empty) and
    `image_embeds` (n, e) and, where the job says so, `frame_embeds` (n, F, e) or `pixels`."""
    yield from (_embed_here if job.here else _embed_with_ray)(units, job)


def _embed_here(units: Sequence[Unit], job: Job) -> Iterator[Step]:
    backbone = job.backbone
    read = ReadAndDecode(backbone.preprocess, job.at_once, job.frames)
    if default_device() != backbone.device.type:
        backbone = Tower(*of_backbone(backbone), torch.get_num_threads()).backbone
    for unit in units:
        for step in read.unit(unit):
            yield embed(backbone, step, job.pixels)


def of_backbone(backbone: Backbone) -> tuple[str, str | None, str, Resolved]:
    """The facts of the backbone that a tower is told."""
    return backbone.name, backbone.revision, backbone.fingerprint, backbone.precision


def _embed_with_ray(units: Sequence[Unit], job: Job) -> Iterator[Step]:
    """Embed with Ray Data, where a row is a whole step. `map_batches` would put single images
    together in the order in which they are ready, and sums would be rounded differently."""
    connect()
    import ray

    resources = Resources.take(job.workers, job.gpus, job.wait)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    backbone = job.backbone
    read = ReadAndDecode(backbone.preprocess, job.at_once, job.frames)
    embedded = (
        ray.data.from_items([unit._asdict() for unit in units], override_num_blocks=len(units))
        .flat_map(read.__call__, num_cpus=resources.task_cpus)
        .map(
            Tower,
            fn_constructor_args=(*of_backbone(backbone), resources.threads),
            fn_kwargs={"keep_pixels": job.pixels},
            compute=ray.data.ActorPoolStrategy(size=resources.towers),
            num_cpus=resources.tower_cpus,
            num_gpus=resources.tower_gpus or None,
        )
    )
    yield from embedded.iter_rows()
