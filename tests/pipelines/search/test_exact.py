"""The k nearest rows against a sort of all of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.search import exact
from pipelines.search.exact import Top, top

WIDTH = 24


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


@pytest.mark.parametrize("kind", ["plain", "grouped", "close", "equal", "steps"])
@pytest.mark.parametrize("count", [0, 1, 7, 300])
def test_what_is_found_is_what_a_sort_finds(count: int, kind: str) -> None:
    rows, asked = drawn(count, kind), drawn(4, kind, seed=1)
    half = torch.arange(count) % 2 == 0
    for k in (1, 5, count, count + 3):
        check(top(rows, asked, k), sorted_all(rows, asked, k))
        check(top(rows, asked, k, half), sorted_all(rows, asked, k, half))
    assert top(rows, asked, 3, half & False)[1].shape == (4, 0)
    assert top(rows, asked[:0], 3)[1].shape == (0, 0)


def test_scores_do_not_depend_on_how_the_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, asked = drawn(300, "equal"), drawn(2, "plain", seed=1)
    whole = top(rows, asked, 40)
    monkeypatch.setattr(exact, "PART", 7)
    check(top(rows, asked, 40), whole)
