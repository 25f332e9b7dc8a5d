"""The graph beside an index: what it finds, how it grows, and what damage and kills leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pipelines.search import graph as module
from pipelines.search.exact import Rows, top
from pipelines.search.graph import Graph, drawn, graph_of
from pipelines.search.index import Indexed
from pipelines.search.kept import hash_of
from trainables.errors import DataError

usearch = pytest.importorskip("usearch.index", reason="`cliptune[approximate]` is not installed")
WIDTH, MANY = 32, 3000


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LEAST": 1000, "REACH": 64, "NEAREST": 10, "QUERIES": 50}.items():
        monkeypatch.setattr(module, name, value)


def vectors(rows: int = MANY, seed: int = 0) -> Tensor:
    """In groups, the first ten of them twice."""
    random = torch.Generator().manual_seed(seed)
    groups = torch.randn(60, WIDTH, generator=random)
    some = groups[torch.arange(rows) % 60] + 0.5 * torch.randn(rows, WIDTH, generator=random)
    some[10:20] = some[:10]
    return F.normalize(some, dim=1)


def made(folder: Path, values: Tensor, captions: Tensor | None = None) -> Graph:
    folder.mkdir(exist_ok=True)
    given = None if captions is None else lambda: captions
    found = graph_of(folder, Rows.of(values), lambda n: hash_of(values[:n]), given, True)
    assert found is not None
    return found


def indexed(values: Tensor, graph: Graph, places: Tensor | None = None) -> Indexed:
    many = len(values) if places is None else len(places)
    return Indexed([Path(str(n)) for n in range(many)], Rows.of(values), places, 0, {}, None, graph)


def linked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows are linked from now on, call by call."""
    seen: list[int] = []
    before = usearch.Index.add

    def add(self: Any, keys: Any, *more: Any, **others: Any) -> Any:
        seen.append(len(keys))
        return before(self, keys, *more, **others)

    monkeypatch.setattr(usearch.Index, "add", add)
    return seen


@pytest.mark.parametrize("some", [None, torch.randperm(MANY)[: MANY - 500]])
def test_only_misses_tell_it_from_the_exact_search(tmp_path: Path, some: Tensor | None) -> None:
    values = vectors()
    index = indexed(values, made(tmp_path, values), some)
    asked = values[:40]
    exact = index.top(asked, MANY if some is None else len(some), torch.ones(len(index.paths)) > 0)
    cosines, rows = index.top(asked, 12)
    for query in range(len(asked)):
        places = (exact[1][query][None] == rows[query][:, None]).nonzero()[:, 1]
        assert torch.equal(places, places.sort().values)
        assert torch.equal(cosines[query], exact[0][query][places])
    first = (rows[:, None] == exact[1][:, :12, None]).any(1).double().mean()
    assert first > 0.9


def test_a_filter_and_many_others_rows_go_the_exact_way(tmp_path: Path) -> None:
    class Lost:
        def search(self, *_: object, **__: object) -> None:
            raise AssertionError

    values = vectors()
    index = indexed(values, Graph(Lost(), {}))
    mask = torch.arange(MANY) % 3 == 0
    wanted = top(Rows.of(values), values[:5], 7, mask)
    assert all(map(torch.equal, index.top(values[:5], 7, mask), wanted))
    with pytest.raises(AssertionError):
        index.top(values[:5], 7)
    few = indexed(values, Graph(Lost(), {}), torch.arange(MANY // 3))
    wanted = top(Rows.of(values[: MANY // 3]), values[:5], 7)
    assert all(map(torch.equal, few.top(values[:5], 7), wanted))


def test_who_finds_too_few_of_those_asked_for_is_answered_exactly(tmp_path: Path) -> None:
    values = vectors()
    graph, rows = made(tmp_path, values), Rows.of(values)
    mask = torch.zeros(MANY, dtype=torch.bool)
    mask[values @ values[0] < 0] = True  # none that a walk from the first gathers
    wanted = top(rows, values[:1], 5, mask)
    assert all(map(torch.equal, graph.top(rows, values[:1], 5, mask), wanted))
    assert [one.shape for one in graph.top(rows, values[:2], MANY + 5)] == [(2, MANY)] * 2
    assert [one.shape for one in graph.top(rows, values[:0], 5)] == [(0, 5)] * 2


def test_what_is_told_of_misses_is_a_recount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REACH", 12)  # so that some are missed
    values, captions = vectors(), vectors(30, 1)
    graph, rows = made(tmp_path, values, captions), Rows.of(values)
    own = drawn(MANY)
    for kind, asked, skip in (("images", values[own], own), ("captions", captions, [-1] * 30)):
        shares = []
        for query, one in zip(asked, skip, strict=True):
            wanted = [row for row in top(rows, query[None], 11)[1][0].tolist() if row != one][:10]
            found = graph.top(rows, query[None], 11)[1][0].tolist()
            shares.append(len({*wanted} & {*found}) / 10)
        told = graph.recalls[kind]
        assert told.queries == len(shares)
        assert told.found == pytest.approx(sum(shares) / len(shares))
        assert told.low <= told.found <= told.high
    low, found = graph.recalls["captions"].low, graph.recalls["captions"].found
    assert f" and {found:.1%} [{100 * low:.1f}, " in graph.told()
    assert graph.about()["images"]["found"] == graph.recalls["images"].found
    assert graph.told().endswith(" of the 10 nearest to 30 of its own captions")
    assert made(tmp_path, values).recalls == graph.recalls


def test_it_grows_by_what_is_new_and_is_made_anew_of_other_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, seen = vectors(), linked(monkeypatch)
    first = made(tmp_path, values[:2000])
    second = made(tmp_path, values)
    assert made(tmp_path, values).told() == second.told()
    assert seen == [2000, 1000]
    assert len(first.links) == 2000  # whoever reads goes on
    assert [path.name for path in tmp_path.glob("*.usearch")] == ["graph-3000.usearch"]
    others = vectors(2500, 3)
    rows = Rows.of(others)
    assert made(tmp_path, others).top(rows, others[20:21], 1)[1].tolist() == [[20]]
    assert seen[2:] == [2500]


def test_small_ones_and_folders_of_others_have_none(tmp_path: Path) -> None:
    values = vectors()

    def state(rows: int) -> str:
        return hash_of(values[:rows])

    assert graph_of(tmp_path, Rows.of(values[:999]), state, None, True) is None
    assert graph_of(tmp_path, Rows.of(values), state, None, False) is None
    assert [*tmp_path.iterdir()] == []
    made(tmp_path, values)
    assert graph_of(tmp_path, Rows.of(values), state, None, False) is not None


@pytest.mark.parametrize("name", ["graph.json", "graph-3000.usearch"])
@pytest.mark.parametrize("harm", ["cut", "altered", "gone"])
def test_what_is_damaged_is_told_and_made_anew(
    name: str,
    harm: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = vectors()
    made(tmp_path, values)
    path = tmp_path / name
    data = path.read_bytes()
    path.unlink()
    if harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    if harm == "altered":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    seen = linked(monkeypatch)
    assert made(tmp_path, values).top(Rows.of(values), values[30:31], 1)[1].tolist() == [[30]]
    assert seen == [MANY]
    warned = "warning: the graph is made anew" in capsys.readouterr().err
    assert warned == ((name, harm) != ("graph.json", "gone"))


@pytest.mark.parametrize("call", ["_save", "write_hashed"])
def test_a_kill_leaves_the_one_before(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = vectors()
    told = made(tmp_path, values[:2000]).told()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, call, killed)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path, values)
    seen = linked(monkeypatch)
    assert made(tmp_path, values[:2000]).told() == told
    made(tmp_path, values)
    assert seen == [1000]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("No space left on device")

    monkeypatch.setattr(usearch.Index, "save", full)
    with pytest.raises(DataError, match=r"could not write .*graph-3000.usearch`: No space left"):
        made(tmp_path, vectors())
    assert [*tmp_path.iterdir()] == []
