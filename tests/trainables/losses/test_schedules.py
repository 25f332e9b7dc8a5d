"""Learning rates and temperatures, against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trainables.losses.schedules import adapted, cosine_scale, lr_factor


def factors(schedule: str, warmup: float, total: int) -> list[float]:
    return [lr_factor(schedule, warmup, step, total) for step in range(total)]


def test_learning_rates_by_hand() -> None:
    assert factors("constant", 0.0, 4) == [1, 1, 1, 1]
    assert factors("linear", 0.0, 4) == [1, 0.75, 0.5, 0.25]
    root = math.sqrt(0.5)
    expected = [1, 0.5 * (1 + root), 0.5, 0.5 * (1 - root)]
    assert factors("cosine", 0.0, 4) == pytest.approx(expected)
    assert factors("linear", 0.5, 8) == [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.3, 0.99])
@pytest.mark.parametrize("total", [1, 2, 7, 100])
def test_every_step_learns(schedule: str, warmup: float, total: int) -> None:
    rates = factors(schedule, warmup, total)
    top = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


def test_cosine_scale_goes_from_start_to_final() -> None:
    ends = torch.tensor(100.0), torch.tensor(20.0)
    assert cosine_scale(*ends, torch.tensor(0.0)) == 100
    assert cosine_scale(*ends, torch.tensor(0.5)).item() == pytest.approx(60)
    assert cosine_scale(*ends, torch.tensor(1.0)).item() == pytest.approx(20)


def test_adaptive_rule_moves_towards_the_wanted_entropy_and_stops_at_its_bounds() -> None:
    rule = [torch.tensor(x) for x in (0.5, 0.3, math.log(2), math.log(50))]

    def after(entropy: float, start: float = math.log(10)) -> float:
        return float(adapted(torch.tensor(start), torch.tensor(entropy), *rule).exp())

    assert after(0.3) == pytest.approx(10)
    assert after(0.9) == pytest.approx(10 * math.exp(0.5 * 0.6))  # too uncertain: sharper
    assert after(0.0) == pytest.approx(10 * math.exp(-0.5 * 0.3))  # too certain: softer
    assert after(1.0, start=9.0) == pytest.approx(50)
    assert after(0.0, start=-9.0) == pytest.approx(2)
