"""The budget moves between adapters by what each reached when as much was spent on each."""

from __future__ import annotations

from pipelines.tune.samplers.race import Cut, Runner, turn


def runner(name: str, *path: tuple[float, ...], finished: int = 2) -> Runner:
    """`path`: of each trial, epochs spent until then, and its value in each goal."""
    reached = [(int(spent), goals) for spent, *goals in path]
    return Runner(name, 1, len(path), finished, reached[-1][0], [*reached])


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


def test_who_is_out_stays_out_and_with_the_numbers_of_that_moment() -> None:
    other = runner("other", (10, 0.1), (20, 0.1), (24, 0.9))
    one = runner("one", (5, 0.4), (10, 0.4))
    first = turn([one, other], 6)  # two parts of 20: 10 of each
    assert (first.name, first.cuts) == ("one", {"other": Cut(10, 0.1, "one", 0.4)})
    one = runner("one", (10, 0.4), (26, 0.4))
    assert turn([one, other], 54).name == "other"  # each has half of 52 before one is out
    again = turn([one, other], 54, before=first.cuts)
    assert (again.name, again.cuts) == (first.name, first.cuts)


def test_a_round_that_is_decided_is_not_decided_again() -> None:
    out = {name: Cut(9, 0.1, "d", 0.7) for name in "ab"}
    four = [runner(name, (4, 0.1), (9, 0.1)) for name in "ab"]
    four += [runner(name, (10, best), (30, best)) for name, best in (("c", 0.6), ("d", 0.7))]
    found = turn(four, 50, before=out)  # three parts of 42.7: 32 of c and of d
    assert (found.name, set(found.cuts)) == ("c", {"a", "b"})
    found = turn(four, 40, before=out)  # 29.5
    assert (found.name, set(found.cuts)) == ("d", {"a", "b", "c"})


def test_of_two_goals_none_is_cut_that_is_on_the_front() -> None:
    high = runner("high", (5, 0.9, 0.2), (10, 0.9, 0.2))
    kept = runner("kept", (5, 0.4, 0.8), (10, 0.4, 0.8), (20, 0.95, 0.95))  # the last came later
    beaten = runner("beaten", (5, 0.5, 0.1), (10, 0.5, 0.1))
    last = runner("last", (5, 0.3, 0.1), (10, 0.3, 0.1))
    found = turn([last, beaten, high, kept], 70)  # three parts of 40: 10 of each, then 20 more
    assert found.cuts == {
        name: Cut(10, best, "high", 0.9) for name, best in (("beaten", 0.5), ("last", 0.3))
    }
    assert found.name == "high"
    high = runner("high", (5, 0.9, 0.2), (10, 0.9, 0.9), (20, 0.9, 0.9))
    before = turn([high, kept], 0)  # at 20 epochs each
    assert set(before.cuts) == {"high"}


def test_without_a_result_an_adapter_is_out_first() -> None:
    fails = Runner("fails", 1, 2, 2, 18)
    assert turn([fails, runner("works", (9, 0.1), (18, 0.2))], 0).cuts == {
        "fails": Cut(18, None, "works", 0.2)
    }


def test_a_trial_that_runs_is_waited_for_before_a_cut_which_is_final() -> None:
    quick = runner("quick", (10, 0.4), (20, 0.4), (30, 0.4))
    one = Runner("one", 1, 1, 0, 3, [], running=3)  # its only configuration
    assert not turn([one, quick], 7, ["one"]).cuts
    other = runner("other", (5, 0.1), (10, 0.1))
    other.asked, other.spent, other.running = 4, 30, 20
    assert not turn([other, quick], 0).cuts  # 15 of each
    other.running = 0
    assert set(turn([other, quick], 0).cuts) == {"other"}
