"""How a field's range is written, in a file and on a command line: text to distributions and back.

`1e-5..1e-2:log` is a range drawn by its logarithm, `1..32` and `0..0.5` are ranges, `32,64,128` (in
a file also `[32, 64, 128]`) are choices, and a single value is the only choice. What a field's
values are is not known here: the caller says whether they are numbers, and converts choices.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Callable

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

Value = str | int | float | bool | None
Convert = Callable[[object], Value]


class Unreadable(ValueError):
    """What is no range and no choices, in one sentence."""


def read(name: str, given: object, number: type | None, convert: Convert) -> BaseDistribution:
    """What is `given` for field `name`, as text, a value or a list of values.

    `number`: `int` or `float` where the field's values are such, then they are a range's ends too;
    `convert`: a choice as the field has it, or an error of its own. Text that is no number's is
    one choice, whatever it holds.

    >>> read("lr", "1e-5..1e-2:log", float, float)
    FloatDistribution(high=0.01, log=True, low=1e-05, step=None)
    >>> read("batch_size", "32,64", int, int)
    CategoricalDistribution(choices=(32, 64))
    >>> read("lr", "2..1", float, float)
    Traceback (most recent call last):
    search_spaces.notation.Unreadable: `lr` must be a range whose lower end comes first, got '2..1'.
    """
    if isinstance(given, str) and number:
        if ".." in given:
            return _range(name, given, number)
        _check(":log" not in given, name, "a range such as `1..32:log` where it has `:log`", given)
    if isinstance(given, str):
        given = split(name, given) if number else [given]
    values = given if isinstance(given, list) else [given]
    _check(values != [], name, "a list of one choice or more", given)
    choices = []
    for value in values:
        choice = convert(value)
        fits = not isinstance(choice, float) or math.isfinite(choice)
        _check(fits, name, "a finite number", value)
        _check(
            choice not in choices, name, f"choices of which none is twice {plain(choice)}", given
        )
        choices.append(choice)
    return CategoricalDistribution(choices)


def split(name: str, text: str) -> list[object]:
    """The choices of `32,64,128`."""
    parts = [part.strip() for part in text.split(",")]
    _check(all(parts), name, "choices of which none is empty", text)
    return list(parts)


def words(distribution: BaseDistribution) -> str | list[Value]:
    """A range's text, or the list of choices: what `read` makes the same distribution of.

    >>> words(FloatDistribution(1e-5, 1e-2, log=True)), words(CategoricalDistribution([32, 64]))
    ('1e-5..1e-2:log', [32, 64])
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    log = ":log" if distribution.log else ""
    return f"{plain(distribution.low)}..{plain(distribution.high)}{log}"


def text_of(distribution: BaseDistribution) -> str:
    """The same for a sentence.

    >>> text_of(CategoricalDistribution([32, 64]))
    '[32, 64]'
    """
    written = words(distribution)
    return written if isinstance(written, str) else f"[{', '.join(map(plain, written))}]"


def plain(value: Value) -> str:
    """A value as short as it can be written, and exactly.

    >>> plain(0.00001), plain(100.0), plain(True)
    ('1e-5', '100', 'true')
    """
    if not isinstance(value, float):
        return value if isinstance(value, str) else json.dumps(value)
    digits, exponent = f"{value:e}".split("e")
    ways = [f"{value:g}", f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}", repr(value)]
    if abs(value) < 1:  # 1e-2 beside 1e-5, but 100
        ways[:2] = ways[1::-1]
    return min((way for way in ways if float(way) == value), key=len)


def edges(distribution: BaseDistribution) -> list[Value]:
    """The values that are most likely to break a rule: both ends, or every choice.

    >>> edges(IntDistribution(1, 32))
    [1, 32]
    """
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return [distribution.low, distribution.high]


def contains(distribution: BaseDistribution, value: Value) -> bool:
    """Whether `value` could be drawn.

    >>> contains(IntDistribution(1, 32), 33), contains(CategoricalDistribution(["sgd"]), "sgd")
    (False, True)
    """
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    if (
        value is None
        or isinstance(value, str)
        or not distribution.low <= value <= distribution.high
    ):
        return False
    steps = (value - distribution.low) / distribution.step if distribution.step else 0.0
    return abs(steps - round(steps)) < 1e-8


def _range(name: str, text: str, number: type) -> BaseDistribution:
    start, _, rest = text.partition("..")
    end, colon, suffix = rest.partition(":")
    _check(not end.startswith("."), name, "a range with two dots, as `low..high`", text)
    rule = "`low..high` or `low..high:log`, without a step"
    _check(not colon or suffix.strip() == "log", name, rule, text)
    low, high = (_end(name, one, number, text) for one in (start, end))
    _check(low <= high, name, "a range whose lower end comes first", text)
    _check(not colon or low > 0, name, "a range above 0 where it is `:log`", text)
    if number is int:
        return IntDistribution(int(low), int(high), log=bool(colon))
    return FloatDistribution(low, high, log=bool(colon))


def _end(name: str, text: str, number: type, given: str) -> float:
    try:
        value = float(text)
    except ValueError:
        rule = "`low..high` or `low..high:log`, with a number at each end"
        raise Unreadable(_sentence(name, rule, given)) from None
    _check(math.isfinite(value), name, "a range with finite ends", given)
    _check(number is float or value == int(value), name, "a range with whole ends", given)
    return value


def _check(rule: bool, name: str, text: str, value: object) -> None:
    if not rule:
        raise Unreadable(_sentence(name, text, value))


def _sentence(name: str, text: str, value: object) -> str:
    return f"`{name}` must be {text}, got {reprlib.repr(value)}."
