"""Search spaces are data that fit the adapters' configs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from search_spaces.registry import SPACES
from tests import ROOT
from trainables.adapters.registry import ADAPTERS, make_config
from trainables.config import flatten

FIELDS = [
    (name, task, field)
    for name, spaces in SPACES.items()
    for task, space in spaces.items()
    for field in space
]


def edges(distribution: BaseDistribution) -> list[Any]:
    """The values most likely to break a rule: every choice, or both ends."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def test_every_adapter_has_a_space_of_its_name_and_file() -> None:
    assert SPACES.keys() == ADAPTERS.keys()
    root = ROOT
    shared = {
        "__init__",
        "common",
        "notation",
        "portfolio",
        "registry",
        "base",
        "shared",
        "crossfit",
    }
    for folder in (root / "search_spaces", root / "trainables" / "adapters"):
        assert {path.stem for path in folder.glob("*.py")} - shared == SPACES.keys()


@pytest.mark.parametrize(("name", "task", "field"), FIELDS)
def test_every_value_fits_its_config_field(name: str, task: str, field: str) -> None:
    for value in edges(SPACES[name][task][field]):
        config = flatten(make_config(name, {"task": task, field: value}))
        assert config[field] == value
        assert type(config[field]) is type(value)


@pytest.mark.parametrize(("name", "task", "field"), FIELDS)
def test_the_published_recipe_lies_inside(name: str, task: str, field: str) -> None:
    distribution = SPACES[name][task][field]
    value = flatten(make_config(name, {"task": task}))[field]
    assert distribution._contains(distribution.to_internal_repr(value))


@pytest.mark.parametrize("name", SPACES)
def test_a_space_stays_small(name: str) -> None:
    assert SPACES[name].keys() == ADAPTERS[name].RECIPES.keys()
    assert all(1 <= len(space) <= 10 for space in SPACES[name].values())


def test_spaces_import_no_model_code() -> None:
    code = (
        "import sys, search_spaces.registry\n"
        "print({'torch', 'trainables', 'ray', 'pipelines'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.check_output(command, cwd=ROOT, text=True)
    assert output.strip() == "set()"
