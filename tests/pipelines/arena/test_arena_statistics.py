"""Standings, ranks and Pareto fronts against plain formulas; what is left out is named."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipelines.arena.cells import read_cells
from pipelines.arena.pairs import Answers, paired
from pipelines.arena.ranks import Point, critical_difference, points, rank_tables, ranks
from pipelines.arena.statistics import Pair, Table, pareto, standings
from tests.arena import answers, arena, cell, failed, large, share
from trainables.errors import DataError


def one_table(*cells: Any) -> Table:
    (table,) = standings(arena(cells))
    return table


def numbers(text: str) -> np.ndarray:
    return np.array([float(c) for c in text])


# -- standings --------------------------------------------------------------------------------


def test_means_and_sample_deviations_are_over_the_seeds() -> None:
    texts = ["1110", "1100", "1000"]
    table = one_table(*(cell("coop", seed=i, correct=t) for i, t in enumerate(texts)))
    (row,) = table.rows
    assert row.mean == {"all": pytest.approx(0.5)}
    assert row.spread == {"all": pytest.approx(0.25)}  # n - 1 in the denominator
    assert row.seeds == [0, 1, 2]
    assert row.per_class["all"]["cat"] == pytest.approx(np.mean([1.0, 0.5, 0.5]))


def test_one_seed_has_no_deviation() -> None:
    (row,) = one_table(cell("coop", correct="110")).rows
    assert row.spread == {}
    assert row.next is None


def test_rows_are_sorted_and_each_is_compared_with_the_next() -> None:
    table = one_table(
        cell("a", correct="1000"), cell("b", correct="1110"), cell("c", correct="11" * 2)
    )
    assert [row.adapter for row in table.rows] == ["c", "b", "a"]
    gaps = [row.next.gap.difference if row.next else None for row in table.rows]
    assert gaps == [pytest.approx(0.25), pytest.approx(0.5), None]


def test_failures_and_pending_runs_are_counted_with_their_reasons() -> None:
    table = one_table(
        cell("lora", seed=1, correct="10"),
        failed("lora", "Diverged: at step 40.", seed=2),
        failed("lora", "", seed=3) | {"state": "pending"},
        failed("coop", "OutOfMemory", seed=1),
    )
    lora, coop = table.rows
    assert (lora.seeds, lora.failures, lora.pending) == ([1], [(2, "Diverged: at step 40.")], [3])
    assert (coop.adapter, coop.key, coop.failures) == ("coop", None, [(1, "OutOfMemory")])
    assert lora.next is None  # nothing to compare with


def test_pairs_use_the_seeds_that_both_have() -> None:
    table = one_table(
        cell("a", seed=1, correct="1111"),
        cell("a", seed=2, correct="1110"),
        cell("b", seed=2, correct="1000"),
        cell("b", seed=3, correct="1000"),
    )
    pair = table.rows[0].next
    assert pair is not None
    assert pair.seeds == [2]
    assert pair.gap.difference == pytest.approx(0.5)


def test_rows_without_a_shared_seed_are_not_compared() -> None:
    table = one_table(cell("a", seed=1, correct="11"), cell("b", seed=2, correct="10"))
    assert table.rows[0].next is None


def test_base_alone_is_never_sorted_among_harmonic_means() -> None:
    table = one_table(
        cell("coop", correct={"base": "1100", "new": "1100"}),
        cell("lora", correct={"base": "1110", "new": "1000"}),
        cell("probe", correct={"base": "1111"}),
    )
    assert [(r.adapter, r.key) for r in table.rows] == [
        ("coop", "harmonic"),
        ("lora", "harmonic"),
        ("probe", "base"),
    ]
    assert [row.adapter for row in table.ranked] == ["coop", "lora"]
    coop, lora, _ = table.rows
    assert coop.next
    assert coop.next.key == "harmonic"
    assert coop.next.gap.difference == pytest.approx(0.5 - 2 * 0.75 * 0.25)
    assert lora.next
    assert lora.next.key == "base"  # all that the two have in common
    assert lora.next.gap.difference == pytest.approx(-0.25)


def test_the_gap_of_harmonic_means_is_the_gap_of_the_means_in_the_table() -> None:
    cells = [
        cell(name, seed=seed, correct={"base": base, "new": new})
        for name, seed, base, new in (
            ("a", 1, "1111", "1000"),
            ("a", 2, "1100", "1111"),
            ("b", 1, "1000", "1000"),
            ("b", 2, "1110", "1100"),
        )
    ]
    first, second = one_table(*cells).rows
    assert first.next
    assert first.accuracy is not None
    assert second.accuracy is not None
    assert first.next.gap.difference == pytest.approx(first.accuracy - second.accuracy)


# -- pairs ------------------------------------------------------------------------------------


def run(*parts: np.ndarray, clusters: Any = None) -> list[Answers]:
    return [Answers(one, np.arange(len(one)) if clusters is None else clusters) for one in parts]


def test_the_interval_is_as_wide_as_the_paired_differences_allow() -> None:
    ours, theirs = (numbers(answers(skill, 900, seed)) for skill, seed in ((0.6, 1), (0.5, 2)))
    gap = paired([run(ours)], [run(theirs)])
    differences = ours - theirs
    error = differences.std(ddof=1) / math.sqrt(len(differences))
    assert gap.difference == pytest.approx(differences.mean())
    assert gap.high - gap.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def test_an_image_that_stands_in_four_rows_is_one_image() -> None:
    ours, theirs = (numbers(answers(skill, 300, seed)) for skill, seed in ((0.6, 1), (0.5, 2)))
    once = paired([run(ours)], [run(theirs)])
    rows = np.repeat(np.arange(300), 4)
    often = paired([run(ours[rows], clusters=rows)], [run(theirs[rows], clusters=rows)])
    assert (often.low, often.high) == pytest.approx((once.low, once.high))
    alone = paired([run(ours[rows])], [run(theirs[rows])])
    assert alone.high - alone.low < 0.6 * (once.high - once.low)


def test_three_seeds_that_differ_widen_the_interval() -> None:
    """The same mean, once from equal seeds and once from ones that are far apart."""
    images, none = 400, np.zeros(400)
    same = [run(np.arange(images) < 240.0) for _ in range(3)]
    apart = [run(np.arange(images) < right) for right in (200.0, 240.0, 280.0)]
    base = [run(none) for _ in range(3)]
    still, moved = paired(same, base), paired(apart, base)
    assert still.difference == pytest.approx(moved.difference)
    # Student's factor for two degrees of freedom times the error of three means, 0.1 apart.
    assert moved.high - moved.difference > 4.3 * 0.1 / math.sqrt(3)
    assert still.high - still.difference < 2 * math.sqrt(0.24 / images)


def test_two_seeds_that_happen_to_agree_do_not_make_images_certain() -> None:
    """Both lead by one point of 100 images, each on images of its own."""
    skill = numbers("10" * 50)
    ours, gained = [skill.copy(), skill.copy()], [(1, 3, 5), (7, 9, 11)]
    for right, own, lost in zip(ours, gained, [(0, 2), (4, 6)], strict=True):
        right[list(own)], right[list(lost)] = 1, 0
    gap = paired([run(right) for right in ours], [run(skill)] * 2)
    error = np.std(np.mean(ours, 0) - skill, ddof=1) / 10
    assert gap.difference == pytest.approx(0.01)
    assert gap.high - gap.low == pytest.approx(2 * 1.98 * error, rel=0.08)
    assert gap.p > 0.05


def test_equal_answers_differ_by_nothing() -> None:
    text = numbers("110100")
    gap = paired([run(text)], [run(text)])
    assert (gap.difference, gap.low, gap.high, gap.p) == (0, 0, 0, 1)


def test_one_image_and_a_lead_without_any_spread_claim_no_certainty() -> None:
    one, other = np.ones(1), np.zeros(1)
    assert paired([run(one)], [run(other)]).p == 1


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("apart", [4, 5, 6])
def test_p_is_at_least_that_of_all_signs_alike(seeds: int, apart: int) -> None:
    """Two equal adapters that differ on 4 images lead on all of them in one of eight cases."""
    ours, theirs = np.ones(400), np.arange(400) >= apart
    gap = paired([run(ours)] * seeds, [run(theirs.astype(float))] * seeds)
    assert gap.p == 2.0 ** (1 - apart)
    pair = Pair("b", "all", list(range(seeds)), gap)
    assert gap.low > 0
    assert pair.leads == (apart == 6)


def test_base_and_new_images_are_drawn_independently() -> None:
    """Were they drawn alike, opposite answers would cancel in each resample's sum."""
    text = numbers("10" * 200)
    none = np.zeros(400)
    gap = paired([run(text, 1 - text)], [run(none, none)])
    error = 0.5 / math.sqrt(400) / math.sqrt(2)  # of the mean of two independent halves
    assert gap.high - gap.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_two_adapters_that_are_never_right_have_a_harmonic_mean_of_0() -> None:
    none = np.zeros(10)
    assert paired([run(none, none)], [run(none, none)]).difference == 0


# -- ranks ------------------------------------------------------------------------------------


def block(dataset: str, **accuracies: str) -> list[Any]:
    return [cell(name, dataset, correct=text) for name, text in accuracies.items()]


def five_blocks() -> list[Any]:
    cells = block("w", a="1111", b="1100", c="1000")
    cells += block("x", a="1110", b="1100", c="1100")  # b and c are tied
    cells += block("y", a="1000", b="1110", c="0000")
    cells += block("s", a="1111", b="1110", c="1000")
    return cells + block("z", a="1111", b="1110", c="1100")


def test_average_ranks_share_ties() -> None:
    found = ranks(arena(five_blocks()))
    assert found.average == pytest.approx({"a": 6 / 5, "b": 9.5 / 5, "c": 14.5 / 5})
    assert len(found.blocks) == 5
    assert found.left_out == []


def test_shots_of_one_data_set_are_one_rank() -> None:
    """Of three comparisons on w the ranks 1, 1, 3 of a make 5/3, below b's 6/3: it is first."""
    cells = five_blocks()
    for shots, (a, b, c) in {1: ("11", "10", "00"), 4: ("00", "10", "11")}.items():
        cells += [
            cell(name, "w", correct=text, shots=shots)
            for name, text in {"a": a, "b": b, "c": c}.items()
        ]
    found = ranks(arena(cells))
    assert len(found.blocks) == 7
    assert found.datasets == ["s", "w", "x", "y", "z"]
    assert found.average == pytest.approx({"a": 6 / 5, "b": 9.5 / 5, "c": 14.5 / 5})


def test_friedman_without_ties_is_demsars_formula() -> None:
    texts = ("1111", "1110", "1100", "1000")
    orders = ("abcd", "abdc", "bacd", "acbd", "abcd")
    cells = [
        each
        for i, order in enumerate(orders)
        for each in block(f"d{i}", **dict(sorted(zip(order, texts, strict=True))))
    ]
    found = ranks(arena(cells))
    n, k = len(orders), 4
    squares = sum(rank**2 for rank in found.average.values())
    chi = 12 * n / (k * (k + 1)) * (squares - k * (k + 1) ** 2 / 4)
    assert found.statistic == pytest.approx(chi)
    x = chi / 2  # the survival of chi-squared with 3 degrees of freedom, in closed form
    p = math.erfc(math.sqrt(x)) + 2 * math.sqrt(x / math.pi) * math.exp(-x)
    assert found.p == pytest.approx(p)


@pytest.mark.parametrize(
    ("adapters", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (7, 2.949), (10, 3.164)]
)
def test_critical_differences_are_those_of_demsars_table(adapters: int, q: float) -> None:
    expected = q * math.sqrt(adapters * (adapters + 1) / (6 * 30))
    assert critical_difference(adapters, 30) == pytest.approx(expected, abs=2e-3)


def test_the_critical_difference_of_demsars_example() -> None:
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_groups_join_all_that_are_within_the_critical_difference() -> None:
    skills = {"a": 40, "b": 36, "c": 20, "d": 5}
    cells = []
    for i in range(12):
        better = {"a": "b", "b": "a"} if i % 3 == 0 else {}  # a and b change places
        texts = {name: "1" * skills[better.get(name, name)] for name in skills}
        cells += block(f"d{i}", **{name: text.ljust(50, "0") for name, text in texts.items()})
    found = ranks(arena(cells))
    assert found.average == pytest.approx({"a": 4 / 3, "b": 5 / 3, "c": 3, "d": 4})
    assert found.critical == pytest.approx(1.354, abs=1e-3)
    assert found.differ
    assert found.groups == [["a", "b"], ["b", "c"], ["c", "d"]]
    assert not found.apart("a", "b")
    assert found.apart("a", "c")


def test_without_any_difference_nobody_is_told_apart() -> None:
    cells = [each for i in range(5) for each in block(f"d{i}", a="10", b="10", c="01")]
    found = ranks(arena(cells))
    assert (found.statistic, found.p, found.differ) == (0, 1, False)
    assert found.groups == [["a", "b", "c"]]


def test_incomplete_blocks_are_left_out_by_name() -> None:
    cells = five_blocks() + block("v", a="10", b="11")
    cells += [*block("u", a="10", b="11"), failed("c", "Diverged: inf.", "u")]
    found = ranks(arena(cells))
    assert {b.dataset for b in found.blocks} == {"s", "w", "x", "y", "z"}
    assert [(b.name, why) for b, why in found.left_out] == [
        ("u, 16 shots", "c: failed, Diverged: inf."),
        ("v, 16 shots", "c: not run"),
    ]


def test_an_adapter_without_any_number_does_not_empty_the_ranks() -> None:
    cells = five_blocks() + [failed("d", "OutOfMemory", dataset) for dataset in "swxyz"]
    found = ranks(arena(cells))
    assert list(found.average) == ["a", "b", "c"]
    assert found.absent == {"d": "failed, OutOfMemory"}
    assert found.problem is None


def test_what_cannot_name_new_classes_is_absent_from_base_to_new() -> None:
    found = ranks(large(), "base_to_new")
    why = "no harmonic accuracy, it cannot name new classes"
    assert found.absent == {"linear_probe": why}
    assert len(found.blocks) == 5
    everywhere = ranks(large())
    assert everywhere.absent == {}
    assert len(everywhere.left_out) == 7  # base to new, and the transfers that few were run on


@pytest.mark.parametrize(
    ("cells", "sentence"),
    [
        (block("x", a="1", b="0", c="0"), "with 1 data set; 5 are needed."),
        ([c for d in "vwxyz" for c in block(d, a="1", b="0")], "with 2 adapters; 3 are needed."),
        ([failed("a", "Diverged")], "with 0 data sets and 0 adapters; 5 and 3 are needed."),
    ],
)
def test_too_little_for_a_test_is_said(cells: list[Any], sentence: str) -> None:
    found = ranks(arena(cells))
    assert found.problem == f"Ranks are not tested {sentence}"
    assert (found.p, found.critical, found.groups) == (None, None, [])


# -- Pareto -----------------------------------------------------------------------------------


def test_pareto_keeps_what_no_other_beats() -> None:
    rows = [
        Point("free", 0.5, 0, 0),
        Point("quick", 0.6, 5, 900),
        Point("slow", 0.6, 9, 100),
        Point("beaten", 0.55, 6, 901),
        Point("best", 0.7, 90, 900),
        Point("twin", 0.7, 90, 900),
        Point("unknown", 0.9, None, None),
    ]
    assert pareto(rows) == {
        "seconds": ["free", "quick", "best", "twin"],
        "parameters": ["free", "slow", "best", "twin"],
    }


def test_pareto_takes_standings() -> None:
    table = one_table(
        cell("a", correct="11", seconds=3.0),
        cell("b", correct="10", seconds=4.0),
        failed("c", "no"),
    )
    assert pareto(table.rows)["seconds"] == ["a"]


def test_points_average_the_blocks_of_the_ranks() -> None:
    cells = five_blocks() + block("v", a="0000", b="0000")  # c is missing
    tables = standings(arena(cells))
    made = {p.adapter: p for p in points(tables, rank_tables(tables))}
    assert made["a"].accuracy == pytest.approx((1 + 0.75 + 0.25 + 1 + 1) / 5)
    assert made["a"].seconds == 12.5


# -- strict at the door -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "more", "sentence"),
    [
        ([cell("a")], {"format": "x"}, "`format` must be 'cliptune-arena-1', got 'x'."),
        ([cell("lorra")], {"adapters": ["lora"]}, "unknown adapter `lorra`. Did you mean `lora`?"),
        ([cell("a", state="dome")], {}, "unknown state `dome`. Did you mean `done`?"),
        ([cell("a", protocol="al")], {}, "unknown protocol `al`. Did you mean `all`?"),
        (
            [cell("a"), cell("a")],
            {},
            "each run once, got `a` with seed 1 on `pets, 16 shots` twice",
        ),
        (
            [cell("a", correct="110"), cell("b", correct="10")],
            {},
            "each of the 3 test images of `pets, 16 shots`, got 2 for `b`, seed 1.",
        ),
        ([cell("a", correct="1x")], {}, "must be made of 0 and 1, got 'x' for `a`"),
        (
            [cell("a", accuracy={"all": None})],
            {},
            "must hold a number, got {'all': None} for `a` on `pets`, seed 1.",
        ),
    ],
)
def test_a_broken_arena_is_named(cells: list[Any], more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        read_cells(arena(cells, **more))
    assert sentence in str(caught.value)


def test_the_order_of_the_cells_changes_nothing() -> None:
    whole = large()
    turned = {**whole, "cells": whole["cells"][::-1]}
    assert standings(whole) == standings(turned)


def test_the_made_up_arena_is_what_it_says() -> None:
    assert share(answers(0.5, 2000, 1)) == pytest.approx(0.5, abs=0.05)
