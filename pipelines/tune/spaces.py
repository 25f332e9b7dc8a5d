"""The spaces of a search: the adapters' own, a file's instead, and flags for single fields.

Flows in: adapters, their task, a YAML file as `cliptune space` prints it, and `field=range` words.
Flows out: `{adapter: {dotted field: distribution}}`, all of whose values the config accepts, also
in combination; or an error in one sentence, before any work.
"""

from __future__ import annotations

import itertools
import math
import reprlib
import typing
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, Literal

import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution

from pipelines.console import say
from search_spaces.common import Space
from search_spaces.notation import Unreadable, contains, edges, plain, read, split, words
from search_spaces.registry import SPACES
from trainables.adapters.base import Needs
from trainables.adapters.registry import check_towers, has_all, make_config
from trainables.config import Task, TrainConfig, Value, convert, flatten, hint_of, read_fields
from trainables.errors import ConfigError, DataError, unknown
from trainables.features.manifest import towers_of

# What a search is given by flags of its own.
FLAGS = {"name": "--adapter", "task": "--draw", "epochs": "--epochs", "seed": "--seed"}
HEAD = """\
# What `cliptune tune --space` searches for {task}: 1e-5..1e-2:log is a range that is drawn by
# its logarithm, 1..32 and 0..0.5 are ranges, [a, b] are choices. Behind each field stands its value
# in the published recipe: a field whose line is taken out is not searched and stays at that. Any
# other field of the configuration may be added.
"""


def as_yaml(adapters: Iterable[str], task: Task) -> str:
    """The adapters' own spaces, to edit."""
    lines = [HEAD.format(task=task)]
    for adapter in adapters:
        recipe = flatten(make_config(adapter, {"task": task}))
        lines.append(f"{adapter}:\n")
        for field, distribution in SPACES[adapter][task].items():
            lines.append(f"  {field}: {_flow(words(distribution))}  # {plain(recipe[field])}\n")
    return "".join(lines)


def _flow(written: str | list[Value]) -> str:
    if isinstance(written, str):  # a range: nothing in it means anything to YAML
        return written
    return yaml.safe_dump(written, default_flow_style=True, width=math.inf, allow_unicode=True)[:-1]


def read_file(path: Path) -> dict[str, dict[str, Any]]:
    """The text or values that the file has for each field of its adapters."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, yaml.SafeLoader)
        read_back = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())
        raise DataError(f"`{path}` must be a YAML file in UTF-8, got: {said}.") from None
    rule = "must name adapters, each with fields and their ranges, as `cliptune space` prints them"
    if not isinstance(read_back, dict) or not read_back:
        raise DataError(f"`{path}` {rule}, got {reprlib.repr(read_back)}.")
    _check_once(path, root)
    for adapter, fields in read_back.items():
        make_config(str(adapter))
        if not (fields is None or isinstance(fields, dict)):
            raise DataError(f"`{path}` {rule}, got {reprlib.repr(fields)} for `{adapter}`.")
    return {adapter: fields or {} for adapter, fields in read_back.items()}


def _check_once(path: Path, root: yaml.Node | None) -> None:
    """Raise for a key that stands twice: YAML's reader takes the last one in silence."""
    assert isinstance(root, yaml.MappingNode)
    for node in [root, *(value for _, value in root.value)]:
        keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
        for key in keys:
            if keys.count(key) > 1:
                line = max(one.start_mark.line for one, _ in node.value if one.value == key) + 1
                raise DataError(f"`{path}` must name `{key}` once, got it again in line {line}.")


def searched(
    adapters: Sequence[str],
    base: Mapping[str, Any],
    file: Mapping[str, Mapping[str, Any]],
    flags: Sequence[str],
) -> dict[str, Space]:
    """The space of each adapter that is not searched in its own. `file` replaces an adapter's
    space, `flags` (`optim.lr=1e-5..1e-2:log`) add or replace a field of every adapter that has it.
    `base` is the same for all trials: the task and the fields that `--set` fixes."""
    spaces: dict[str, Space] = {}
    for adapter, given in file.items():
        if adapter not in adapters:
            say(f"`{adapter}` of `--space` is not searched: `--adapter` does not name it.")
            continue
        for field in given:
            _check_field(str(field), "--space", _recipe(adapter, base).keys())
        spaces[adapter] = {field: _read(adapter, base, field, given[field]) for field in given}
    for adapter in [name for name in adapters if file and name not in file]:
        say(f"`{adapter}` is searched in its own space: `--space` does not name it.")
    for field, text in read_fields(flags, "--search").items():
        for adapter in _having(field, adapters, base):
            space = spaces.setdefault(adapter, dict(SPACES[adapter][base["task"]]))
            space[field] = _read(adapter, base, field, text, word=True)
    for adapter, space in spaces.items():
        _check_values(adapter, base, space)
        varied = [field for field in space.keys() - base.keys() if not space[field].single()]
        if not varied and len(adapters) == 1:
            raise ConfigError(
                f"`{adapter}` must have a field of several values to be searched, got none: "
                "`cliptune train` trains it once."
            )
    return spaces


def on_store(
    features: Path, spaces: Mapping[str, Space], base: Mapping[str, Any]
) -> dict[str, Space]:
    """The spaces that a store of features narrows: without values that need a tower which the store
    lacks, and for finished embeddings without words other than theirs. Raises `ConfigError` where
    an adapter or a field has no values left."""
    have, found = towers_of(features), {}
    for name, space in spaces.items():
        if not possible(have, name, space, base):
            check_towers(features, [make_config(name, base)])
        own = {}
        for field, values in space.items():
            choices = _choices(name, base, field, values)
            fit = [one for one, config in choices if has_all(have, config)]
            if choices and not fit and has_all(have, make_config(name, base)):
                check_towers(features, [choices[0][1]])
            own[field] = CategoricalDistribution(fit) if fit else values
        if have == "embeddings":
            own.pop("adapter.template", None)
        if own != space:
            found[name] = own
    return found


def possible(have: Needs, adapter: str, space: Space, base: Mapping[str, Any]) -> bool:
    """Whether the adapter's recipe, or the recipe with another choice of one field, needs no more
    of CLIP than `have`."""
    return any(
        has_all(have, config)
        for field, values in space.items()
        for _, config in _choices(adapter, base, field, values)
    ) or has_all(have, make_config(adapter, base))


def _choices(
    adapter: str, base: Mapping[str, Any], field: str, values: BaseDistribution
) -> list[tuple[Any, TrainConfig]]:
    """Each choice of a field, and the recipe with it."""
    if not isinstance(values, CategoricalDistribution) or field in base:
        return []
    return [(one, make_config(adapter, {**base, field: one})) for one in values.choices]


def _having(field: str, adapters: Sequence[str], base: Mapping[str, Any]) -> list[str]:
    """The adapters that have the field of a flag."""
    known = {adapter: _recipe(adapter, base).keys() for adapter in adapters}
    _check_field(field, "--search", set().union(*known.values()))
    if field in base:
        raise ConfigError(
            f"`{field}` must be in `--search` or in `--set`, got {base[field]!r} in `--set` too."
        )
    having = [adapter for adapter in adapters if field in known[adapter]]
    if lacking := [f"`{adapter}`" for adapter in adapters if adapter not in having]:
        verb = "has" if len(lacking) == 1 else "have"
        whose = ", ".join(f"`{adapter}`" for adapter in having)
        say(f"`{field}` is searched of {whose}: {', '.join(lacking)} {verb} no such field.")
    return having


def _recipe(adapter: str, base: Mapping[str, Any]) -> dict[str, Value]:
    return flatten(make_config(adapter, {"task": base["task"]}))


def _check_field(field: str, flag: str, known: Set[str]) -> None:
    if field in FLAGS:
        raise ConfigError(f"`{flag}` takes no `{field}`: use `{FLAGS[field]}`.")
    if field not in known:
        raise ConfigError(f"`{flag}`: " + unknown("field", field, known - FLAGS.keys()))


def _read(
    adapter: str, base: Mapping[str, Any], field: str, given: Any, word: bool = False
) -> BaseDistribution:
    """The distribution that was written for a field, with choices in the field's type. Commas
    separate choices, except in a file's text for a field of words; a `word` of a command line may
    be a YAML list there."""
    hint = hint_of(make_config(adapter, {"task": base["task"]}), field)
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    kind = hint if typing.get_origin(hint) is Literal or not kinds else kinds[0]
    number = kind if kind in (int, float) else None

    def choice(value: object) -> Value:
        own = _typed(field, value, kind, hint)
        if kind is not str:
            return own
        return flatten(make_config(adapter, {**base, field: own}))[field]  # a folder by its path

    try:
        if word and given.startswith("["):
            given = yaml.safe_load(given)
        elif isinstance(given, str) and not number and (word or kind is not str):
            given = split(field, given)
        return read(field, given, number, choice)
    except Unreadable as error:
        raise ConfigError(str(error)) from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"`{field}` must be a list such as [32, 64], got {given!r}.") from None


def _typed(field: str, value: object, kind: Any, hint: Any) -> Value:
    """`value` in the field's type, if it has that type already or is text of it: to YAML, `on` is a
    truth, and to Python, True is 1."""
    if isinstance(value, bool) and kind is not bool:
        raise ConfigError(f"`{field}` must be no truth value, got {value}: quote a word like `on`.")
    if kind is str and not (isinstance(value, str) or (value is None and hint is not str)):
        raise ConfigError(f"`{field}` must be text, got {reprlib.repr(value)}: put it in quotes.")
    if not isinstance(value, str | int | float | None):
        raise ConfigError(f"`{field}` must be one value a choice, got {reprlib.repr(value)}.")
    return typing.cast(Value, convert(field, value, hint))


def _check_values(adapter: str, base: Mapping[str, Any], space: Space) -> None:
    """Raise for any end or choice that the config refuses, also beside every other one, as it would
    refuse a trial. Fields that are not varied stand at the recipe, or at an end where the recipe is
    outside."""
    recipe = _recipe(adapter, base)
    tried = {field: edges(space[field]) for field in space if field not in base}
    start = {
        field: recipe[field] if contains(space[field], recipe[field]) else values[0]
        for field, values in tried.items()
    }
    for some in itertools.chain(*(itertools.combinations(tried, n) for n in (1, 2))):
        for values in itertools.product(*(tried[field] for field in some)):
            varied = dict(zip(some, values, strict=True))
            make_config(adapter, {**base, **start, **varied})


def values_of(
    field: str, spaces: Mapping[str, Space], fixed: Mapping[str, Value]
) -> Iterable[Value]:
    """The values that trials may have for `field`, where it is fixed or the user's to search."""
    if field in fixed:
        return [fixed[field]]
    return itertools.chain(*(edges(space[field]) for space in spaces.values() if field in space))
