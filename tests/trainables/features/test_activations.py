"""Hidden states kept on disk: right whatever happens to the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.pair import forking
from trainables.features.hidden_states import CRC, LowerStates, reading_pays

SHAPE = (3, 4)
SLOT = 4 * 12 + CRC
ALL = torch.arange(10)


class Compute:
    """States that are a function of the row, and which rows were asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def __call__(self, rows: Tensor) -> Tensor:
        self.asked.append(rows.tolist())
        return rows[:, None, None] + torch.arange(12).view(SHAPE) / 7


def expected(rows: Tensor) -> Tensor:
    return Compute()(rows)


def test_each_row_is_computed_once(tmp_path: Path) -> None:
    compute = Compute()
    states = LowerStates(tmp_path / "new" / "states", 10, SHAPE, 10**6)
    for rows in (torch.tensor([3, 1]), torch.tensor([1, 7, 3]), ALL):
        assert torch.equal(states(rows, compute), expected(rows))
    assert compute.asked == [[3, 1], [7], [0, 2, 4, 5, 6, 8, 9]]
    again = LowerStates(tmp_path / "new" / "states", 10, SHAPE, 10**6)
    assert torch.equal(again(ALL, compute), expected(ALL))
    assert len(compute.asked) == 3


@pytest.mark.parametrize("damage", ["flipped", "cut", "zeros"])
def test_a_damaged_slot_is_computed_again(damage: str, tmp_path: Path) -> None:
    path, compute = tmp_path / "states", Compute()
    LowerStates(path, 10, SHAPE, 10**6)(ALL, compute)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[4 * SLOT + 20] ^= 1
    elif damage == "zeros":
        data[4 * SLOT : 5 * SLOT] = bytes(SLOT)
    else:
        data = data[: 9 * SLOT + 5]
    path.write_bytes(data)
    assert torch.equal(LowerStates(path, 10, SHAPE, 10**6)(ALL, compute), expected(ALL))
    assert compute.asked[1] == ([9] if damage == "cut" else [4])


def test_the_budget_is_kept(tmp_path: Path) -> None:
    path, compute = tmp_path / "states", Compute()
    states = LowerStates(path, 10, SHAPE, 4 * SLOT + 1)
    for _ in range(2):
        assert torch.equal(states(ALL, compute), expected(ALL))
    assert path.stat().st_size == 4 * SLOT
    assert compute.asked[1] == [4, 5, 6, 7, 8, 9]


def test_nothing_is_kept_without_a_path() -> None:
    compute = Compute()
    states = LowerStates(None, 10, SHAPE, 10**6)
    for _ in range(2):
        assert torch.equal(states(ALL, compute), expected(ALL))
    assert len(compute.asked) == 2


def test_a_full_disk_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    states = LowerStates(tmp_path / "states", 10, SHAPE, 10**6)
    monkeypatch.setattr(os, "pwrite", full)
    assert torch.equal(states(ALL, Compute()), expected(ALL))
    assert states.notice is not None
    assert "No space left on device" in states.notice


def test_a_path_that_cannot_be_written_costs_time_only(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    states = LowerStates(tmp_path / "file" / "states", 10, SHAPE, 10**6)
    assert torch.equal(states(ALL, Compute()), expected(ALL))
    assert states.notice is not None


def fill(path: Path, start: int) -> None:
    states = LowerStates(path, 200, SHAPE, 10**6)
    for row in range(200):
        states(torch.tensor([(row + start) % 200]), expected)


def test_two_processes_may_fill_one_file(tmp_path: Path) -> None:
    context = forking()
    workers = [context.Process(target=fill, args=(tmp_path / "states", n)) for n in (0, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    compute, rows = Compute(), torch.arange(200)
    assert torch.equal(
        LowerStates(tmp_path / "states", 200, SHAPE, 10**6)(rows, compute), expected(rows)
    )
    assert not compute.asked


@pytest.mark.parametrize(("seconds", "pays"), [((1.0, 2.0), True), ((2.0, 1.0), False)])
def test_reading_pays_where_it_was_the_quicker(
    seconds: tuple[float, float], pays: bool, tmp_path: Path
) -> None:
    times = iter([time for number in range(3) for time in _round(number, *seconds)])
    compute = Compute()
    found = reading_pays(tmp_path, ALL + 5, compute, lambda: next(times))
    assert found is pays
    assert list(times) == []
    assert compute.asked == [(ALL + 5).tolist()] * 4  # what is read is not computed
    assert list(tmp_path.iterdir()) == []


def _round(number: int, read: float, made: float) -> tuple[float, float, float]:
    """What a clock shows before reading, between, and after computing again."""
    began = 100.0 * number
    return began, began + read, began + read + made


def test_reading_does_not_pay_where_nothing_can_be_kept(tmp_path: Path) -> None:
    assert not reading_pays(tmp_path / "none", ALL, Compute())
