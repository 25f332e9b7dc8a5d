"""Two workers of one run: they hold the same bits, and what befalls one befalls both."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from tests.pair import pair
from tests.tiny import COLOURS, tiny_clip, tiny_features, tiny_lm, tiny_shards
from trainables import distributed
from trainables.adapters.base import Adapter
from trainables.adapters.registry import build, make_config
from trainables.config import Task
from trainables.data.batches import Batch
from trainables.distributed import ALONE, Worker, average, join
from trainables.errors import CliptuneError, ConfigError
from trainables.features.classes import Classes
from trainables.features.features import open_features
from trainables.models.load import load_backbone
from trainables.training import loop
from trainables.training.loop import Run
from trainables.training.selection import METRICS
from trainables.trials.crew import failure

TASKS: dict[Task, tuple[str, dict[str, Any]]] = {
    "retrieval": ("soft_prompt", {"batch_size": 8}),
    "classification": ("coop", {"batch_size": 8}),
    "captioning": ("prefix_captioner", {"batch_size": 16, "adapter.prefix_length": 3}),
}
PLAIN = {"precision": "fp32", "epochs": 1, "optim.kind": "sgd", "optim.lr": 0.01, "patience": 0}
LIMIT = 4  # seconds that a collective of the group may take in `outlast`


def start(folder: Path, task: Task, run: str, worker: Worker, **values: Any) -> Run:
    """A run of 3 steps."""
    backbone = load_backbone(str(folder / "clip"))
    name, own = TASKS[task]
    splits = {part: open_features(folder / "store", part, backbone) for part in ("train", "val")}
    if task == "classification":
        for part, count in (("train", 24), ("val", 8)):
            draw = {f"{part}-{n:03}": n % 6 for n in range(count)}
            splits[part] = splits[part].take(draw, Classes(COLOURS))
    if task == "captioning":
        own = own | {"adapter.lm": str(folder / "lm"), "adapter.max_tokens": 4}
    fields = {name.replace("__", "."): value for name, value in values.items()}
    config = make_config(name, {"task": task, **PLAIN, **own, **fields})
    into = folder / f"{run}-{task}"
    return Run(config, backbone, splits["train"], splits["val"], into, METRICS[task][0], worker)


# -- what both do, in processes of their own --------------------------------------------------


def adapt(folder: Path, task: Task, worker: Worker) -> dict[str, Tensor]:
    """An epoch with a temperature that reacts to what is seen."""
    reacting = {"temperature__policy": "adaptive", "temperature__rate": 0.5}
    run = start(folder, task, f"adapt{worker.world}", worker, **reacting)
    row = run.advance()
    kept = {name: tensor.clone() for name, tensor in run.adapter.state_dict().items()}
    return kept | {"loss": torch.tensor(row["train/loss"])}


def leave_out(folder: Path, task: Task, worker: Worker) -> dict[str, Tensor]:
    """An epoch of an adapter with parameters that only one worker's batches use, or none."""
    unlike = {"temperature__policy": "learned", "loss__kind": "siglip"}  # for contrasts only
    with mock.patch.object(loop, "build", partly_used(worker.rank)):
        run = start(folder, task, "leave-out", worker, **unlike)
    run.advance()
    return {name: parameter.detach().clone() for name, parameter in run.trained.items()}


def partly_used(rank: int) -> Callable[..., Adapter[Any]]:
    def built(*args: Any) -> Adapter[Any]:
        adapter = build(*args)
        adapter.rare, adapter.idle = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(2))
        plain = adapter.loss

        def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            value, numbers = plain(batch)
            return value + rank * adapter.rare.sum() if rank else value, numbers

        adapter.loss = loss  # type: ignore[method-assign]
        return adapter

    return built


def diverge(folder: Path, task: Task, worker: Worker) -> dict[str, Any]:
    """What an epoch ends in where the second batch of rank 1 alone is no number."""
    run = start(folder, task, "diverge", worker)
    plain = run.batches

    def batches(step: int, total: int) -> Batch:
        batch = plain(step, total)
        hurt = worker.rank == 1 and step == 1
        factor = torch.nan if hurt else 1.0
        return dataclasses.replace(batch, image_embeds=batch.image_embeds * factor)

    batches.steps_per_epoch = plain.steps_per_epoch  # type: ignore[attr-defined]
    run.batches = batches  # type: ignore[assignment]
    try:
        run.advance()
    except CliptuneError as error:
        return failure(error)
    return {}


def outlast(folder: Path, task: Task, worker: Worker) -> dict[str, float]:
    """An epoch whose pass over val takes longer than the group's limit."""
    plain = loop.examine

    def slow(*args: Any) -> Any:
        time.sleep(LIMIT + 1)
        return plain(*args)

    run = start(folder, task, "outlast", worker)
    with mock.patch.object(loop, "examine", slow):
        row = run.advance()
    return {name: value for name, value in row.items() if name.startswith("val/")}


def share_a_card() -> str:
    with mock.patch.object(distributed, "card", return_value="GPU-1"):
        try:
            join()
        except ConfigError as error:
            return str(error)
    return ""


def together(rank: int, folder: Path) -> None:
    found: dict[str, Any] = {"card": share_a_card()}
    worker = join()
    assert worker.rank == rank
    for what in (adapt, leave_out, diverge):
        found[what.__name__] = {task: what(folder, task, worker) for task in TASKS}
    torch.save(found, folder / f"together-{rank}.pt")


def patiently(rank: int, folder: Path) -> None:
    worker = join()
    found = {task: outlast(folder, task, worker) for task in TASKS}
    (folder / f"patiently-{rank}.json").write_text(json.dumps(found))


# -- what came of it --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What they work on."""
    path = tmp_path_factory.mktemp("together")
    tiny_clip(path / "clip")
    tiny_lm(path / "lm", "llama")  # it has no dropout, which each worker would draw for itself
    shards = tiny_shards(path / "shards", rows_per_shard=24)
    tiny_features(path / "store", val=8, clip=path / "clip", shards=shards)
    return path


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    pair(together, folder)
    return [torch.load(folder / f"together-{rank}.pt") for rank in (0, 1)]


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("task", TASKS)
def test_workers_end_with_the_same_bits_and_with_what_one_learns(
    both: list[dict[str, Any]], folder: Path, task: Task
) -> None:
    first, second = (found["adapt"][task] for found in both)
    with one_thread():
        alone = adapt(folder, task, ALONE)
    assert first.keys() == second.keys() == alone.keys()
    for name, tensor in alone.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], tensor.float(), rtol=1e-4, atol=1e-5)
    if task != "captioning":
        scale = alone["objective.log_scale"].exp()
        assert not torch.isclose(scale, torch.tensor(100.0), rtol=1e-3)  # it did react


@pytest.mark.parametrize("task", TASKS)
def test_a_parameter_that_only_one_workers_batches_use_is_the_same_for_all(
    both: list[dict[str, Any]], task: Task
) -> None:
    first, second = (found["leave_out"][task] for found in both)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    assert (first["rare"] < 0).all()
    assert torch.equal(first["idle"], torch.ones(2))


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_that_is_no_number_for_one_worker_ends_the_trial_of_all(
    both: list[dict[str, Any]], task: Task
) -> None:
    first, second = (found["diverge"][task] for found in both)
    assert first == second
    assert first["state"] == "failed"
    assert first["reason"] == "Diverged: the loss became nan at step 1."
    assert first["common"]


def test_two_workers_on_one_card_are_told_so(both: list[dict[str, Any]]) -> None:
    expected = "each worker of a trial must have a card of its own, got one for ranks 0 and 1"
    assert [found["card"] for found in both] == [f"{expected}: `GPU-1`."] * 2


def test_a_pass_over_val_may_take_longer_than_a_step(folder: Path) -> None:
    pair(patiently, folder, LIMIT)
    first, second = (json.loads((folder / f"patiently-{n}.json").read_text()) for n in (0, 1))
    assert first == second
    assert set(first) == set(TASKS)
    assert all(first.values())


def test_what_no_batch_uses_keeps_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "shared", lambda x: x)  # as if the others' were the same
    used, unused = (nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    used.sum().backward()
    numbers = average([used, unused], torch.tensor([3.0, 4.0]))
    assert numbers.tolist() == [3, 4]
    assert used.grad is not None
    assert used.grad.tolist() == [[1, 1], [1, 1]]
    assert unused.grad is None


def test_one_process_alone_joins_nobody() -> None:
    assert not dist.is_initialized()
    assert join() == ALONE
    assert ALONE.tell("word") == "word"
    assert ALONE.hear("word") == ["word"]
