"""Every command of README and docs: the real parser takes it, and it runs, on tiny data."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import itertools
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

import pipelines.arena.__main__
import pipelines.demo.drawings
import pipelines.tune.__main__
import pipelines.typed
from pipelines.cli import STAGES, parsed, stage_main
from pipelines.demo.drawings import draw
from tests.docs.commands import LANGUAGES, ROOT, Command, blocks, command_of, commands, pages, spans
from tests.docs.desk import STANDS_FOR, lay, small
from tests.soak.works import command_here, compete_here, search_here

PROGRAMS = ("benchmarks.searchers.__main__", "benchmarks.__main__", "tests.soak.__main__")
TEXTS = {page: (ROOT / page).read_text() for page in pages() if page != "benchmarks/RESULTS.md"}


def python_of(text: str) -> list[str]:
    """The blocks of Python on a page."""
    return [block.text for block in blocks(text) if block.language == "python"]


class Parsed(Exception):
    """The words are a command's."""


def read(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command's own parser read it; exits 2 where it does not."""
    if command.kind == "make":
        for target in command.words:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        return
    name, *words = command.words
    stage = name.removeprefix("pipelines.") if command.kind == "python" else name
    if stage in STAGES:
        parsed(stage, [word.replace("<commit>", "0" * 40) for word in words])
    else:
        assert main_of(name)
        if words:
            _read_module(name, words, monkeypatch)


def _read_module(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By tyro, or by a parser of the standard library."""
    module = main_of(name)
    kind = getattr(module, "Args", None) or getattr(module, "Options", None)
    if kind is not None:
        tyro.cli(kind, args=words)
        return

    def parse_and_stop(parser: argparse.ArgumentParser, *_: object) -> None:
        parse(parser)
        raise Parsed

    parse = argparse.ArgumentParser.parse_args
    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [name, *words])
        with pytest.raises(Parsed):
            module.main()


def main_of(name: str) -> Any:
    """What `python -m` would run."""
    module = importlib.import_module(name)
    return importlib.import_module(f"{name}.__main__") if hasattr(module, "__path__") else module


@pytest.mark.parametrize("page", TEXTS)
def test_the_parser_takes_every_command(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in commands(TEXTS[page]):
        try:
            read(command, monkeypatch)
        except SystemExit:
            pytest.fail(f"{page}: {' '.join(command.words)}")


def flags() -> dict[str, set[str]]:
    """Of each stage and program."""
    found = {}
    for name in [*(f"pipelines.{stage}.__main__" for stage in STAGES), *PROGRAMS]:
        module = importlib.import_module(name)
        own = module.Args if hasattr(module, "Args") else module.Options
        names = [field.name.replace("_", "-") for field in dataclasses.fields(own)]
        denied = {f"--no-{name}" for name in names} | set(getattr(module, "NO_FLAGS", {}))
        found[name.split(".")[1]] = {f"--{name}" for name in names} | denied
    return found


def test_flags_that_the_text_speaks_of_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    known, spoken = flags(), 0
    for page, text in TEXTS.items():
        for span in spans(text):
            words = re.sub(r"^(cliptune |python -m pipelines\.)", "", span).split()
            given = {word.split("=")[0] for word in words if word[:2] == "--" != word}
            if words[0] in known or words[0] in given:
                spoken += len(given)
                assert given <= known.get(words[0], set().union(*known.values())), (page, span)
            for kind, command in command_of(span.split()):
                if kind == "python" and words[0] not in known:
                    read(Command(kind, command, False), monkeypatch)
    assert spoken > 50


def test_a_block_says_what_it_is() -> None:
    for page, text in TEXTS.items():
        assert {block.language for block in blocks(text)} <= LANGUAGES, page


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    lay(folder)
    return folder


@pytest.fixture(scope="module")
def done() -> list[str]:
    """The pages whose commands have been run."""
    return []


def draw_few(*given: Any, train: int, val: int, test: int, seed: int) -> Path:
    """The demo's scenes, one of 25."""
    return draw(*given, train=train // 25, val=val // 25, test=test // 25, seed=seed)


@pytest.fixture
def at_the_desk(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Searches train in this process, as do the demo's commands."""
    here = functools.partial(search_here, 1)
    monkeypatch.setattr(pipelines.tune.__main__, "_tune", here)
    monkeypatch.setattr(pipelines.arena.__main__, "_tune", compete_here)
    monkeypatch.setattr(pipelines.typed, "command", command_here)
    monkeypatch.setattr(pipelines.demo.drawings, "draw", draw_few)
    monkeypatch.chdir(desk)
    return desk


@pytest.fixture
def read_to(
    at_the_desk: Path, done: list[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Run what is not run yet, to the end of a page, in the order in which they are read."""

    def read_to(page: str) -> None:
        for one in list(TEXTS)[len(done) : list(TEXTS).index(page) + 1]:
            done.append(one)
            for command in commands(TEXTS[one]):
                if command.run and command.kind != "make":
                    run(command, monkeypatch)

    return read_to


@pytest.mark.parametrize("page", TEXTS)
def test_every_command_runs(page: str, read_to: Callable[[str], None]) -> None:
    read_to(page)


def test_the_page_of_files_names_what_lies_there(
    at_the_desk: Path, read_to: Callable[[str], None]
) -> None:
    read_to(list(TEXTS)[-1])
    named = set(re.findall(r"`([\w.-]+)/?`", TEXTS["docs/files.md"]))
    found = {
        re.sub(r"^\d{4}$", "0000", path.name)
        for place in ("shards", "features/*", "heads/*", "runs/*", "runs/arena", "runs/*/trials")
        for path in at_the_desk.glob(f"{place}/*")
        if path.parent.name != "demo" and not path.name.startswith(".")
    }
    known = {re.sub(r"^(train|val|test)-\d+", r"train-00000", name) for name in found}
    assert sorted(known - named) == []
    assert len(known) > 30


def run(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *words = command.words
    words = small(name, words)
    if "NEW_PLACE" in words:
        shutil.copytree("features", "NEW_PLACE")
    if command.kind == "python":
        monkeypatch.setattr(sys, "argv", [name, *words])
        main_of(name).main()
    else:
        try:
            stage_main(name, words)
        except SystemExit as exit_:
            said = f"`cliptune {name} {' '.join(words)}` exits with {exit_.code}"
            raise AssertionError(said) from None
    for flag, value in itertools.pairwise(words):
        if flag == "--out":
            assert Path(value).exists(), command


def small_python(text: str) -> str:
    """With what is here instead of what is not, and a small budget."""
    for there, here in STANDS_FOR.items():
        text = text.replace(f'"{there}"', f'"{here}"')
    text = text.replace(', revision="<commit>"', "")
    return re.sub(r"trials=\d+", "trials=2, epochs=1", text)


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if python_of(text)])
def test_python_of_the_pages_runs(
    page: str, at_the_desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of a page one after the other, at a desk of their own."""
    lay(tmp_path)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for text in python_of(TEXTS[page]):
        exec(compile(small_python(text), page, "exec"), names)
    assert names["result"].standings.loc["zero_shot", "value"] >= 0
    assert "tuned" in names


TEXT = """
```sh
cliptune tune --features a \\
    --out b       # a comment
ray job submit -- python -m pipelines.tune --out c
```

*Not run by the tests: needs a cluster.*

```console
$ make demo
made
```

A `span
of code`.
"""


def test_what_is_read_of_a_page() -> None:
    assert commands(TEXT) == [
        Command("cliptune", ("tune", "--features", "a", "--out", "b"), True),
        Command("python", ("pipelines.tune", "--out", "c"), True),
        Command("make", ("demo",), False),
    ]
    assert spans(TEXT) == ["span of code"]


def test_a_stale_flag_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("tune", "--featurs", "a"), ("tests.soak", "--hours", "1")):
        kind = "python" if "." in words[0] else "cliptune"
        with pytest.raises(SystemExit):
            read(Command(kind, words, True), monkeypatch)
    with pytest.raises(AssertionError):
        read(Command("make", ("tests",), True), monkeypatch)
