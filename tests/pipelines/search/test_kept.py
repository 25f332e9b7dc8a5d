"""The index on disk: what grows, what a kill leaves, and what damage is found."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.search import codes, exact, kept
from pipelines.search.kept import Kept
from pipelines.search.names import Entry, table_of
from trainables.errors import DataError

WIDTH, BLOCK = 8, 16


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (codes, exact, kept):
        monkeypatch.setattr(module, "BLOCK", BLOCK)


def drawn(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed))


def entries(first: int, rows: int, stamp: int = 1, at: int | None = None) -> list[Entry]:
    """Files `first` and on, whose rows begin at `at`."""
    begin = first if at is None else at
    return [(f"/{first + n}", (stamp, stamp), begin + n, None) for n in range(rows)]


def opened(folder: Path) -> Kept:
    found = Kept.open(folder, WIDTH)
    assert found is not None
    return found


def grown(folder: Path, *parts: int) -> Kept:
    """An index of rows that were added in `parts`, each opened anew."""
    done = 0
    for rows in parts:
        one = Kept.open(folder, WIDTH) or Kept.new(folder, WIDTH)
        one.add(drawn(sum(parts))[done : done + rows])
        one.commit(table_of(entries(done, rows)))
        done += rows
    return opened(folder)


def test_rows_are_the_same_however_they_came(tmp_path: Path) -> None:
    values = drawn(70)
    at_once = grown(tmp_path / "one", 70)
    in_parts = grown(tmp_path / "two", 5, 10, 1, 33, 21)
    for found in (at_once, in_parts):
        rows = found.rows()
        assert torch.equal(rows.values, values)
        assert rows.codes.values.shape == (4, BLOCK, WIDTH)
        for number, block in enumerate(values[:64].split(BLOCK)):
            ints, steps, misfit = codes.encode(block)
            assert torch.equal(rows.codes.values[number], ints)
            assert torch.equal(rows.codes.steps[number], steps)
            assert rows.codes.misfit[number] == torch.tensor(misfit)
        assert (values.norm(dim=1) <= rows.longest).all()
        assert found.names.places(["/69", "/0", "/70"])[2] == -1
        assert found.names.column("row")[found.names.places(["/69", "/0"])].tolist() == [69, 0]
    for name in ("rows-1.bin", "codes-1.bin", "steps-1.bin"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert at_once.said.blocks == in_parts.said.blocks
    assert Kept.open(tmp_path, WIDTH) is None


def test_what_was_said_of_a_file_last_holds_and_parts_become_one(tmp_path: Path) -> None:
    one = grown(tmp_path, *[1] * 8)
    for time in range(2, kept.PARTS + 3):
        one.add(drawn(1, seed=time))
        one.commit(table_of([*entries(0, 1, time, one.said.rows - 1), ("/bad", (0, 0), -1, "why")]))
    one = opened(tmp_path)
    assert len(one.said.parts) < kept.PARTS
    assert len(list(tmp_path.glob("names-*"))) == len(one.said.parts)
    places = one.names.places(["/0", "/1", "/bad"])
    assert one.names.column("row")[places].tolist() == [one.said.rows - 1, 1, -1]
    assert one.names.reasons(places) == [None, None, "why"]
    newest = kept.PARTS + 2
    same = one.names.unchanged(places, [(newest, newest), (1, 2), (0, 0)])
    assert same.tolist() == [True, False, True]
    assert one.names.living == 8


def test_the_living_are_copied_in_their_order(tmp_path: Path) -> None:
    one = grown(tmp_path / "one", 40)
    one.add(drawn(3, seed=1))
    one.commit(table_of([*entries(5, 3, 2, 40), ("/9", (0, 0), -1, "gone")]))
    two = Kept.new(tmp_path / "two", WIDTH)
    two.copy(one.rows().values, one.names)
    two = opened(tmp_path / "two")
    alive = torch.cat([drawn(40)[:5], drawn(40)[8:9], drawn(40)[10:], drawn(3, seed=1)])
    assert torch.equal(two.rows().values, alive)
    places = two.names.places([f"/{n}" for n in (4, 8, 10, 5, 7, 9)])
    assert two.names.column("row")[places].tolist() == [4, 5, 6, 36, 38, -1]


def test_a_kill_leaves_the_index_before_or_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown(tmp_path / "before", 20)
    left = []
    for moment in count():
        folder = tmp_path / str(moment)
        shutil.copytree(tmp_path / "before", folder)
        one = opened(folder)
        with monkeypatch.context() as patch:
            calls = count()
            for module, name in ((kept, "_written"), (kept, "write_bytes"), (Path, "replace")):
                patch.setattr(module, name, dying(getattr(module, name), calls, moment))
            try:
                one.add(drawn(45)[20:])
                one.commit(table_of(entries(20, 25)))
            except KeyboardInterrupt:
                ended = False
            else:
                ended = True
        found = opened(folder)
        left.append(found.said.rows)
        assert torch.equal(found.rows().values, drawn(45)[: left[-1]])
        assert len(found.names.table) == left[-1]
        found.add(drawn(45)[left[-1] :])
        found.commit(table_of(entries(left[-1], 45 - left[-1])))
        found = opened(folder)
        found.verify()
        assert torch.equal(found.rows().values, drawn(45))
        if ended:
            break
    assert set(left) == {20, 45}
    assert len(left) > 10


def dying(call: Callable[..., Any], calls: count[int], moment: int) -> Callable[..., Any]:
    def until(*given: Any, **named: Any) -> Any:
        if next(calls) == moment:
            raise KeyboardInterrupt
        return call(*given, **named)

    return until


def test_who_reads_beside_one_who_adds_sees_what_was_there(tmp_path: Path) -> None:
    one = grown(tmp_path, 20)
    rows, names = one.rows(), one.names
    two = opened(tmp_path)
    for at in range(20, 60, 4):
        two.add(drawn(60)[at : at + 4])
        assert opened(tmp_path).said.rows == at  # not yet said
        two.commit(table_of(entries(at, 4)))
        assert torch.equal(opened(tmp_path).rows().values[:20], rows.values)
    third = Kept.new(tmp_path, WIDTH)  # in the place of both
    third.copy(two.rows().values, two.names)
    assert torch.equal(rows.values, drawn(20))
    assert names.column("row")[names.places(["/19", "/3"])].tolist() == [19, 3]
    assert len(list(tmp_path.glob("rows-*"))) == 1


@pytest.mark.parametrize("name", ["rows-1.bin", "codes-1.bin", "steps-1.bin", "names-1-0.arrow"])
@pytest.mark.parametrize("how", ["flipped", "last", "cut", "gone"])
def test_damage_is_found(tmp_path: Path, name: str, how: str) -> None:
    grown(tmp_path, 40)
    path = tmp_path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 3 if how == "flipped" else -1] ^= 1
    path.write_bytes(data[:-1] if how == "cut" else data)
    if how == "gone":
        path.unlink()
    with pytest.raises(DataError, match=re.escape(str(tmp_path))):
        Kept.open(tmp_path, WIDTH)


def test_a_copy_is_read_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grown(tmp_path / "one", 40)
    assert not opened(tmp_path / "one").checked
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    found = opened(tmp_path / "two")
    assert found.checked
    found.write()
    assert not opened(tmp_path / "two").checked
    with pytest.raises(DataError, match="is of another model"):
        Kept.open(tmp_path / "two", WIDTH + 1)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    one = grown(tmp_path, 3)
    one.files[1].unlink()
    one.files[1].mkdir()
    with pytest.raises(DataError, match=r"could not write `.*codes-1.bin`: Is a directory"):
        one.add(drawn(1))
