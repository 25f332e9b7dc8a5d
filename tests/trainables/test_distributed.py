"""Two workers with half a batch each learn exactly what one with all of it does."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch import distributed as dist

from tests.pair import pair
from tests.tiny import tiny_clip, tiny_features
from trainables.adapters.registry import build, make_config
from trainables.data.batches import Batch
from trainables.distributed import average, gather
from trainables.features.features import open_features
from trainables.models.load import load_backbone

ADAPTERS, LOSSES = ("soft_prompt", "projection"), ("infonce", "siglip")
CASES = list(itertools.product(ADAPTERS, LOSSES))
SETTINGS = {
    "temperature.policy": "learned",
    "temperature.scale": 20.0,
    "loss.hard_negatives": "reweight",
    "loss.label_smoothing": 0.1,
}


def part(store: Path, rows: Tensor) -> Batch:
    """The batch of images `rows` with their two captions each; some images stand in it twice."""
    data = open_features(store, "train")
    captions = (2 * rows[:, None] + torch.arange(2)).flatten()
    return Batch(
        data.image_embeds[rows],
        None,
        data.tokens.select(captions),
        None,
        data.groups[rows],
        data.groups[data.caption_rows[captions]],
        0.0,
    )


def gradients(folder: Path, name: str, loss: str, rows: Tensor) -> dict[str, Tensor]:
    """The gradients, and the loss, of one step on images `rows` of this worker."""
    backbone = load_backbone(str(folder / "clip"))
    adapter = build(make_config(name, {**SETTINGS, "loss.kind": loss}), backbone)
    value, numbers = adapter(part(folder / "store", rows))
    value.backward()
    if dist.is_initialized():
        average(list(adapter.parameters()), value.detach()[None])
    grads = {n: p.grad for n, p in adapter.named_parameters() if p.grad is not None}
    return grads | {"loss": numbers["loss"]}


def worker(rank: int, folder: Path) -> None:
    for name, loss in CASES:
        rows = torch.arange(16 * rank, 16 * (rank + 1))
        found = gradients(folder, name, loss, rows)
        save_file(found, folder / f"{name}-{loss}-{rank}.safetensors")
    # Unequal parts: 1 row here, 2 there; the gradient of each is summed over both workers' losses.
    x = torch.full((1 + rank, 2), float(rank), requires_grad=True)
    rows = gather(x)
    (rows * torch.arange(6.0).view(3, 2) * (1 + rank)).sum().backward()
    assert x.grad is not None
    save_file({"rows": rows.detach(), "grad": x.grad}, folder / f"gather-{rank}.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers wrote."""
    path = tmp_path_factory.mktemp("workers")
    tiny_clip(path / "clip")
    tiny_features(path / "store", images=32, duplicates=5)
    pair(worker, path)
    return path


@pytest.mark.parametrize(("name", "loss"), CASES)
def test_two_workers_are_one(folder: Path, name: str, loss: str) -> None:
    expected = gradients(folder, name, loss, torch.arange(32))
    assert len(expected) >= 3  # adapter, temperature, loss
    for rank in (0, 1):
        found = load_file(folder / f"{name}-{loss}-{rank}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            size = value.abs().max()
            assert size > 0
            assert (found[key] - value).abs().max() < 1e-5 * size, key


def test_gather_of_unequal_parts(folder: Path) -> None:
    for rank, own in ((0, slice(0, 1)), (1, slice(1, 3))):
        found = load_file(folder / f"gather-{rank}.safetensors")
        assert found["rows"].tolist() == [[0, 0], [1, 1], [1, 1]]
        torch.testing.assert_close(found["grad"], 3 * torch.arange(6.0).view(3, 2)[own])


def test_gather_alone_is_the_identity() -> None:
    x = torch.randn(3, 2)
    assert gather(x) is x
