"""The k nearest rows against a sort of all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.search import codes, exact
from pipelines.search.codes import Codes, encode
from pipelines.search.exact import Rows, Top, top
from trainables import hardware

WIDTH = 24
KINDS = ("plain", "grouped", "close", "equal", "steps")


def drawn(count: int, kind: str, seed: int = 0) -> Tensor:
    """Rows (count, WIDTH): alike by nothing, by groups, by a last bit, or exactly."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, WIDTH, generator=random)
    groups = torch.randn(5, WIDTH, generator=random)
    of = groups[torch.randint(5, (count,), generator=random)]
    if kind == "grouped":
        rows = of + 0.2 * rows
    elif kind == "close":  # to a last bit
        return torch.nextafter(F.normalize(of, dim=1), rows.sign() * 9)
    elif kind == "equal":
        rows = of
    elif kind == "steps":  # ties among products of few bits
        return rows.sign() / 4
    return F.normalize(rows, dim=1)


def sorted_all(rows: Tensor, asked: Tensor, k: int, mask: Tensor | None = None) -> Top:
    """A stable sort of every exact cosine."""
    numbers = torch.arange(len(rows)) if mask is None else mask.nonzero()[:, 0]
    exactly = (asked.double() @ rows[numbers].double().T).float()
    cosines, order = exactly.sort(dim=1, descending=True, stable=True)
    return cosines[:, :k], numbers[order[:, :k]]


def check(found: Top, wanted: Top) -> None:
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[0], wanted[0])


def coded(values: Tensor) -> Rows:
    """Rows, of which the whole blocks are coded."""
    blocks = [encode(block) for block in values.split(codes.BLOCK) if len(block) == codes.BLOCK]
    if not blocks:
        return Rows.of(values)
    ints, steps, misfit = zip(*blocks, strict=True)
    of = Codes(torch.stack(ints), torch.stack(steps), torch.tensor(misfit))
    return Rows(values, of, Rows.of(values).longest)


@pytest.fixture(params=["int8", "fp32"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Blocks of 32 rows, none scored outright, on a CPU that has int8 or has it not."""
    if request.param == "int8" and not codes.fits(WIDTH):
        monkeypatch.setattr(torch, "_int_mm", int_mm)
    monkeypatch.setattr(exact, "fits", lambda width: request.param == "int8")
    monkeypatch.setattr(exact, "FEW", 0)
    for module in (codes, exact):
        monkeypatch.setattr(module, "BLOCK", 32)
    monkeypatch.setattr(codes, "SCALED", 3)
    return bool(request.param == "int8")


def int_mm(rows: Tensor, columns: Tensor, out: Tensor) -> Tensor:
    return out.copy_(rows.long() @ columns.long())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 7, 31, 32, 33, 300])
def test_what_is_found_is_what_a_sort_finds(count: int, kind: str, small: bool) -> None:
    values, asked = drawn(count, kind), drawn(4, kind, seed=1)
    rows, numbers = coded(values), torch.arange(count)
    assert len(rows.codes.steps) == count // 32
    for mask in (None, numbers % 2 == 0, numbers > 270, numbers < 0):
        for k in (1, 5, count, count + 3):
            check(top(rows, asked, k, mask), sorted_all(values, asked, k, mask))
    assert top(rows, asked, 3, numbers < 0)[1].shape == (4, 0)
    assert top(rows, asked[:0], 3)[1].shape == (0, min(3, count))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_called_otherwise_are_told_apart_by_that(kind: str, small: bool) -> None:
    values, asked = drawn(300, kind), drawn(40, "plain", seed=1)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    found = top(coded(values[order]), asked, 20, order=order)
    check(found, sorted_all(values, asked, 20))


@pytest.mark.parametrize("kind", [*KINDS, "spiked"])
def test_no_cosine_is_above_its_bound(kind: str, small: bool) -> None:
    values, asked = drawn(320, kind), drawn(9, kind, seed=1)
    if kind == "spiked":  # as CLIP's are: a column or two hold most of it
        values[:, 3], values[::50, 5], asked[:, 3], asked[0] = 9.0, -40.0, 0.5, 0.0
    rows = coded(values)
    bounds = exact._bounds(rows, asked, None)
    cosines = asked.double() @ values.double().T
    assert (bounds >= cosines).all()
    longest = values.norm(dim=1).max() * asked.norm(dim=1, keepdim=True)
    assert ((bounds - cosines) <= (0.06 if small else 1e-5) * longest + 1e-6).all()


def test_few_rows_are_read_where_the_rest_cannot_be_meant(
    small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, asked, scored = drawn(960, "plain"), drawn(3, "plain", seed=1), []

    def score(values: Tensor, query: Tensor, chosen: Tensor) -> Tensor:
        scored.append(len(chosen))
        return honest(values, query, chosen)

    honest = exact._score
    monkeypatch.setattr(exact, "_score", score)
    check(top(coded(values), asked, 10), sorted_all(values, asked, 10))
    assert sum(scored) < 3 * (60 if small else 21)


def test_a_cpu_without_int8_is_told_by_its_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags, has in (("avx2 fma", False), ("avx2 avx_vnni", True), ("amx_int8", True)):
        path = tmp_path / flags.replace(" ", "-")
        path.write_text(f"flags : {flags}\n")
        monkeypatch.setattr(hardware, "CPUINFO", path)
        assert hardware.has_int8() == has
    monkeypatch.setattr(codes, "has_int8", lambda: True)
    monkeypatch.setattr(torch, "_int_mm", lambda rows, columns: (rows @ columns).int())
    assert not codes.fits.__wrapped__(WIDTH)  # sums in 8 bits
    monkeypatch.setattr(codes, "has_int8", lambda: False)
    assert not codes.fits.__wrapped__(WIDTH)
