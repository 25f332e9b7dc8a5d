"""Numbers on a command line: each flag says which it takes, and refuses the others by name."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest

from pipelines.cli import STAGES, stage_main
from pipelines.ranges import Range, check_ranges
from trainables.adapters.registry import make_config
from trainables.config import LARGEST, read_fields
from trainables.errors import ConfigError

BY_THEMSELVES = {"gpus": "capacity.check_gpus", "confidence": "a calibration's own levels"}


def numbers_of(stage: str) -> dict[str, Any]:
    """The flags of a stage that take numbers, with all that is said of their types."""
    args = importlib.import_module(f"pipelines.{stage}.__main__").Args
    hints = get_type_hints(args, include_extras=True)
    return {
        name: kind
        for name, kind in hints.items()
        if name not in BY_THEMSELVES and {int, float} & set(_parts(kind))
    }


def _parts(kind: Any) -> list[Any]:
    return [kind, *(part for one in get_args(kind) for part in _parts(one))]


@pytest.mark.parametrize("stage", STAGES)
def test_every_number_of_a_stage_has_a_range(stage: str) -> None:
    for name, kind in numbers_of(stage).items():
        assert get_origin(kind) is Annotated, f"--{name} of {stage}"
        ends = kind.__metadata__[0]
        assert isinstance(ends, Range)
        assert ends.least <= ends.most


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--run", "r", "--bootstrap", "1000000000000"],
        ["evaluate", "--run", "r", "--bootstrap", "0"],
        ["tune", "--features", "f", "--trials", "0"],
        ["tune", "--features", "f", "--epochs", "0"],
        ["tune", "--features", "f", "--minutes", "inf"],
        ["tune", "--features", "f", "--minutes", "nan"],
        ["tune", "--features", "f", "--concurrent", "100000000"],
        ["arena", "--data", "d", "--shots", "1", "-4"],
        ["train", "--features", "f", "--out", "o", "--workers", "-1"],
    ],
    ids=" ".join,
)
def test_a_number_out_of_its_range_is_one_sentence(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        stage_main(words[0], words[1:])
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "Traceback" not in said
    flag = next(word for word in reversed(words) if word[:2] == "--")
    assert f"`{flag}` must be " in said


@pytest.mark.parametrize(
    ("field", "rule"),
    [
        ("optim.lr=inf", "a finite number"),
        ("optim.lr=nan", "a finite number"),
        ("optim.weight_decay=1e400", "a finite number"),
        ("temperature.scale=-inf", "a finite number"),
        ("batch_size=inf", "a finite number"),
        (f"batch_size={10**30}", "a whole number of at most 2,147,483,647"),
        ("seed=-1e30", "a whole number of at most 2,147,483,647"),
        ("batch_size=-1", "at least 2"),
    ],
)
def test_a_field_out_of_its_range_is_named(field: str, rule: str) -> None:
    name = field.partition("=")[0]
    with pytest.raises(ConfigError, match=f"`{name}` must be {rule}, got "):
        make_config("lora", read_fields([field]))


def test_every_flags_ends_are_in_it_and_beyond_them_is_refused() -> None:
    @dataclasses.dataclass
    class Args:
        trials: Annotated[int | None, Range(1, 3)] = None

    for fine in (None, 1, 3):
        check_ranges(Args(fine))
    for wrong, rule in ((0, "at least 1"), (4, "at most 3"), (LARGEST + 1, "at most 3")):
        with pytest.raises(ConfigError, match=f"`--trials` must be {rule}, got {wrong}"):
            check_ranges(Args(wrong))
