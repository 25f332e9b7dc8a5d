"""`cliptune <stage>`: typed flags from each stage's `Args`, errors in one sentence.

Flows in: the command line. Flows out: the stage's run, and an exit code. The same stages answer to
`python -m pipelines.<stage>`, the form that `ray job submit` runs.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, Literal, TextIO, cast, get_args, get_origin, get_type_hints

from pipelines.console import Patient, complain
from pipelines.door import expected, keep, leave, leave_interrupted, sentence
from pipelines.signals import own_process
from pipelines.workspace import none_left_empty
from trainables.config import LARGEST
from trainables.errors import unknown

STAGES = {
    "demo": "the whole line on a drawn data set: see it work first",
    "shards": "check a source of images and words, write Parquet shards",
    "draw": "choose a few labelled images a class: one classification task",
    "encode": "run the frozen towers once, write the feature store",
    "space": "the ranges that a search draws from, as YAML to edit",
    "tune": "search adapters and hyperparameters on train and val",
    "train": "train one adapter with given hyperparameters",
    "arena": "every few-shot adapter on your labelled data: one budget, several seeds, one table",
    "sweep": "turn what was learned down or up, and see what CLIP retains; val only",
    "evaluate": "open the sealed test split: the best adapters beside their baseline",
    "report": "one page: report.html and report.md",
    "reproduce": "published numbers, run again: pass or fail for each",
    "explain": "what prompts learned and what adapting moved: explain.html, from train and val",
    "search": "images in a folder of yours, found by words: found.html",
    "classify": "put images of yours into classes",
    "caption": "write captions for images and short videos of yours",
    "serve": "search, classify and caption over HTTP, and a page to compare adapters",
    "relink": "tell a run where its features lie now, after they were moved",
    "push": "the best adapter on the Hugging Face Hub, with a model card",
    "export": "the best adapter as PEFT or transformers load it, or merged into a plain CLIPModel",
}


def main() -> None:
    """The console command."""
    words = sys.argv[1:]
    if not words or words[0] in {"-h", "--help"}:
        width = max(map(len, STAGES))
        print("usage: cliptune <stage> [flags]     (cliptune <stage> --help lists them)\n")
        print("\n".join(f"  {name:<{width}}  {text}" for name, text in STAGES.items()))
        return
    if words[0] not in STAGES:
        sys.exit("error: " + unknown("stage", words[0], STAGES))
    stage_main(words[0], words[1:])


def stage_main(stage: str, words: Sequence[str] | None = None) -> None:
    """Parse `words` (default: the command line) and run `stage`. The exit code is 2 for errors that
    the user can mend, 1 for a fault of ours. `--debug`, anywhere, shows the traceback."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with own_process(), redirect_stderr(cast("TextIO", Patient(sys.stderr))):  # bars write there
        _to_its_end(stage, words, debug)


def _to_its_end(stage: str, words: list[str], debug: bool) -> None:
    try:
        _run(stage, words)
    except KeyboardInterrupt as stop:
        complain(f"interrupted: {str(stop) or 'run the same command again to go on.'}")
        leave_interrupted()
    except Exception as error:
        if debug:
            raise
        complain(f"error: {sentence(error)}")
        if expected(error):
            leave(error)
        complain(f"The traceback is in {keep(error)}; `--debug` shows it.")
        sys.exit(1)


def _run(stage: str, words: list[str]) -> None:
    args = parsed(stage, words)
    with none_left_empty(getattr(args, "out", None) or Path()):
        importlib.import_module(f"pipelines.{stage}.__main__").run(args)


def parsed(stage: str, words: list[str]) -> Any:
    """The stage's `Args`, which check their own values; exit code 2 for words that they cannot
    have."""
    import tyro

    module = importlib.import_module(f"pipelines.{stage}.__main__")
    flags = words[: words.index("--")] if "--" in words else words  # behind it there are none
    _refuse_dashes(flags)
    _refuse_unknown_flags(module.Args, flags, getattr(module, "NO_FLAGS", {}))
    _refuse_lists_given_twice(module.Args, flags)
    _refuse_wrong_values(module.Args, flags)
    return tyro.cli(module.Args, args=words, prog=f"cliptune {stage}", description=module.__doc__)


def _refuse_dashes(words: Sequence[str]) -> None:
    """Raise for a text or a path that begins with a dash: it would be read as flags of one
    letter."""
    for word in words:
        if word[:1] == "-" and word[:2] != "--" and word != "-h" and not _reads(float, word):
            complain(
                f"error: {word} begins with a dash, as flags do: put it at the end, behind `--`, "
                f"as in `-- {shlex.quote(word)}`; a flag's value behind `=`."
            )
            sys.exit(2)


def _refuse_unknown_flags(args: type, words: Sequence[str], why: Mapping[str, str]) -> None:
    """Say why a stage cannot have the flag, or name the nearest one; tyro's own message lists only
    what it could not parse."""
    known = {"help"}
    for item in dataclasses.fields(args):
        name = item.name.replace("_", "-")
        known |= {name, f"no-{name}"} if item.type in (bool, "bool") else {name}
    for word in words:
        flag = word[2:].split("=", 1)[0].replace("_", "-")
        if word.startswith("--") and flag not in known:
            choices = sorted("--" + name for name in known - {"help"} if not name.startswith("no-"))
            said = unknown("flag", "--" + flag, choices)
            if "--" + flag in why:
                said = f"`--{flag}` cannot be given here: {why['--' + flag]}"
            complain(f"error: {said}")
            sys.exit(2)


def _refuse_lists_given_twice(args: type, words: Sequence[str]) -> None:
    """Raise for a list flag given twice: of `--set a=1 --set b=2`, tyro would take the second
    alone."""
    given = [word.split("=", 1)[0].replace("_", "-") for word in words if word[:2] == "--"]
    for item in dataclasses.fields(args):
        flag = "--" + item.name.replace("_", "-")
        if "tuple[" in str(item.type) and given.count(flag) > 1:
            complain(f"error: `{flag}` takes all its values at once: give it once.")
            sys.exit(2)


def _refuse_wrong_values(args: type, words: Sequence[str]) -> None:
    """Raise for a value that is not a number, or not a choice, where it must be; tyro's own message
    is about Python's types."""
    kinds = {"--" + name.replace("_", "-"): kind for name, kind in get_type_hints(args).items()}
    flag, first = "", False
    for word in words:
        value: str = word
        if word.startswith("--"):
            name, given, value = word.partition("=")
            flag, first = name.replace("_", "-"), True
            if not given:
                continue
        kind = kinds.get(flag, str)
        if (first or get_origin(kind) is tuple) and (rule := _broken_rule(kind, value)):
            complain(f"error: `{flag}` must be {rule}, got {value}.")
            sys.exit(2)
        first = False  # what follows is a value of a list, or belongs to no flag


def _broken_rule(kind: Any, value: str) -> str:
    """The rule for values of this type that the value breaks; empty where it breaks none."""
    small = f" of at most {LARGEST:,}" if value.lstrip("+-").isdecimal() else ""
    names = {int: f"a whole number{small}", float: "a number"}
    rules: list[str] = []
    for one in _parts(kind):
        choices = [str(choice) for choice in get_args(one)]
        if value in choices or (one in names and _reads(one, value)):
            return ""
        if not choices and one not in names:
            return ""
        rules += choices or [names[one]]
    return " or ".join(filter(None, [", ".join(rules[:-1]), rules[-1]]))


def _parts(kind: Any) -> Iterator[Any]:
    """The types and choices that a union or a list is made of."""
    if get_origin(kind) is Literal or not get_args(kind):
        yield from [kind] if kind not in (type(None), ...) else []
    else:
        for one in get_args(kind):
            yield from _parts(one)


def _reads(number: Any, value: str) -> bool:
    try:
        found = number(value)
    except ValueError:
        return False
    return math.isfinite(found) if number is float else abs(found) <= LARGEST
