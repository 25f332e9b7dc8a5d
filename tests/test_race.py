"""The budget moves between adapters by what each reached when as much was spent on each."""

from __future__ import annotations

from pipelines.searching.race import Cut, Runner, turn


def runner(name: str, *path: tuple[int, float], finished: int = 2) -> Runner:
    return Runner(name, 1, len(path), finished, path[-1][0] if path else 0, list(path))


def test_each_adapter_gets_its_first_trials_whatever_it_reached() -> None:
    bad = runner("bad", (9, 0.1))
    good = runner("good", (9, 0.5), (18, 0.6))
    assert turn([good, bad], 80).name == "bad"


def test_a_field_shares_its_part_and_the_half_that_reached_most_goes_on() -> None:
    # 120 epochs in three parts for four, two and one: 10 of each, then 20 more.
    four = [
        runner(name, (5, 0.1), (10, best)) for name, best in zip("abcd", (2, 4, 3, 1), strict=True)
    ]
    found = turn(four, 80)
    assert found.name in "bc"
    assert found.cuts == {"a": Cut(10, 2, "b", 4), "d": Cut(10, 1, "b", 4)}
    two = [four[0], runner("b", (10, 4), (30, 4)), runner("c", (10, 3), (30, 5)), four[3]]
    assert turn(two, 40).name == "c"


def test_what_came_after_the_others_had_spent_as_much_does_not_count() -> None:
    early = runner("early", (5, 0.4), (10, 0.4))
    late = runner("late", (5, 0.1), (10, 0.1), (16, 0.9))
    found = turn([early, late], 14)  # two parts of 20: 10 of each
    assert (found.name, found.cuts["late"].best) == ("early", 0.1)


def test_none_is_passed_over_before_all_spent_their_share_or_by_trials_that_were_stopped() -> None:
    one, other = runner("one", (10, 0.9), (20, 0.9)), runner("other", (5, 0.1), (9, 0.1))
    assert turn([one, other], 11).name == "other"
    stopped = runner("stopped", (5, 0.1), (10, 0.1), finished=1)
    assert not turn([one, stopped], 10).cuts
    assert not turn([one, other], float("inf")).cuts  # nobody said how much there is


def test_an_adapter_that_always_fails_is_not_asked_for_ever() -> None:
    fails = Runner("fails", 1, 3, 3, 27)
    assert turn([fails, runner("works", (9, 0.1), (18, 0.2))], 45).name == "works"


def test_of_first_trials_that_cost_more_than_a_share_all_count() -> None:
    slow = runner("slow", (9, 0.3), (18, 0.6))
    quick = runner("quick", (1, 0.4), (10, 0.4), (19, 0.5))
    found = turn([slow, quick], 3)  # two parts of 20: 10 of each, which the second trials exceed
    assert (found.name, found.cuts) == ("slow", {"quick": Cut(18, 0.4, "slow", 0.6)})
