"""What README and docs tell their reader to type, in the order of the site's pages.

Flows in: Markdown. Flows out: the commands of its code blocks, and what stands in words of code in
the text. A block of commands is `sh`, or `console` where `$` stands before them and what they print
behind. One that the tests cannot run has a line above it that says so to its readers.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from docs.pages import PAGES

ROOT = Path(__file__).parents[2]
LANGUAGES = {"sh", "console", "text", "python"}
OURS = ("-m pipelines", "-m benchmarks", "-m tests")
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UNRUN = re.compile(r"\*Not run by the tests: [^*]+\.\*\n\n$")
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


class Block(NamedTuple):
    """A code block; `run`: whether the tests run what stands in it."""

    language: str
    text: str
    run: bool


class Command(NamedTuple):
    """`words`: a stage or a module with its flags, or a target of make."""

    kind: str  # cliptune, python or make
    words: tuple[str, ...]
    run: bool


def pages() -> list[str]:
    """Those of the site that are written by hand, as it shows them; paths of the checkout."""
    written = {page: path for path, page in PAGES.items()}
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    places = [one for entry in nav for one in _places(next(iter(entry.values())))]
    return [written.get(place, f"docs/{place}") for place in places]


def _places(entry: str | list[str | dict[str, str]]) -> list[str]:
    """The pages of an entry; those that it names are made when the site is built."""
    return [one for one in ([entry] if isinstance(entry, str) else entry) if isinstance(one, str)]


def blocks(text: str) -> list[Block]:
    return [
        Block(found[1], found[2], UNRUN.search(text[: found.start()]) is None)
        for found in FENCE.finditer(text)
    ]


def commands(text: str) -> list[Command]:
    """Those of all blocks, in order."""
    return [one for block in blocks(text) for one in _of_block(block)]


def _of_block(block: Block) -> Iterator[Command]:
    for line in block.text.replace("\\\n", " ").splitlines():
        if block.language == "console" and not line.startswith("$ "):
            continue
        if block.language in ("sh", "console"):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            yield from (Command(*one, block.run) for one in command_of(words))


def command_of(words: list[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Of another program's words, the command that it is told to run."""
    for at, word in enumerate(words):
        name = Path(word).name
        if name in ("cliptune", "make") and at == 0:
            yield name, tuple(words[1:])
            return
        ours = " ".join(words[at + 1 : at + 3]).startswith(OURS)
        if name == "python" and ours:
            yield "python", tuple(words[at + 2 :])
            return


def spans(text: str) -> list[str]:
    """Words of code in the text, outside blocks."""
    return [" ".join(found.split()) for found in SPAN.findall(FENCE.sub("", text))]
