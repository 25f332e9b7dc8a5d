"""What the docs say that the simulations find: the tables of docs/protocol.md."""

from __future__ import annotations

import re
from functools import cache

from tests import ROOT

PAGE = ROOT / "docs" / "protocol.md"


@cache
def rows() -> dict[str, list[list[float]]]:
    """The numbers of each cell of a table's row, in per cent, by the row's first words."""
    found = {}
    for line in PAGE.read_text().splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells:
            found[name] = [[float(n) for n in re.findall(r"\d+\.?\d*", cell)] for cell in cells]
    return found


def agrees(shares: list[float], row: str, column: int = 0) -> bool:
    """Whether the docs have these shares, to half a point, in a cell of their tables."""
    (name,) = [name for name in rows() if name.startswith(row)]
    said = rows()[name][column]
    assert len(said) == len(shares), (said, shares)
    return all(abs(100 * one - other) <= 0.5 for one, other in zip(shares, said, strict=True))
