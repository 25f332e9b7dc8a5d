"""What the site has beside the pages of this folder: the README and its like, and the adapters.

Flows in: files of the checkout, and the registries of adapters and search spaces. Flows out: pages
that exist in the built site alone, so that nothing can be stale. MkDocs calls the `on_` functions.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import cliptune
from cliptune import images, tuned, values
from pipelines.records import kinds as keepers
from pipelines.tune.study import kinds
from search_spaces.notation import text_of
from search_spaces.registry import SPACES
from trainables.adapters.registry import ADAPTERS, BASELINES, make_config

ROOT = Path(__file__).parents[1]
# Files of the checkout that are pages of the site, and a picture of one.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "results.md",
    "recipes/README.md": "recipes.md",
    "CHANGELOG.md": "changelog.md",
}
NOTEBOOKS = {"docs/example.ipynb": "example.md"}
PICTURES = {"benchmarks/searchers.svg": "searchers.svg"}
TASKS: dict[str, str] = {
    "retrieval": "images and captions",
    "classification": "classes",
    "captioning": "captions in new words",
}
LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Behind the page of all adapters stands one for each."""
    assert config.nav is not None
    (section,) = [entry["Adapters"] for entry in config.nav if "Adapters" in entry]
    section.extend({name: f"adapters/{name}.md"} for name in ADAPTERS)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    texts = {page: (ROOT / path).read_text() for path, page in PAGES.items()}
    texts |= {f"adapters/{name}.md": adapter_page(name) for name in ADAPTERS}
    texts |= {page: notebook_page(ROOT / path) for path, page in NOTEBOOKS.items()}
    texts["api.md"] = api_page()
    for page, text in texts.items():
        files.append(File.generated(config, page, content=text))
    for path, place in PICTURES.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links lead to pages of the site; of what has none the words stay. No badge is fetched."""
    del config, files
    place = {page: path for path, page in PAGES.items()}.get(
        page.file.src_uri, f"docs/{page.file.src_uri}"
    )
    if place == "docs/adapters.md":
        markdown = re.sub(r"^\| `(\w+)` \|", r"| [`\1`](adapters/\1.md) |", markdown, flags=re.M)
    if place == "README.md":
        markdown = re.sub(r"^\[!\[.*\n", "", markdown, flags=re.M)
    return LINK.sub(lambda found: _link(found, Path(place).parent, page.file.src_uri), markdown)


def _link(found: re.Match[str], folder: Path, here: str) -> str:
    picture, words, target = found.groups()
    path, _, anchor = target.partition("#")
    if "://" in target or not path:
        return found[0]
    at = Path(os.path.normpath(folder / path)).as_posix()
    inside = PAGES | PICTURES | NOTEBOOKS
    if at in inside or at.startswith("docs/"):
        place = inside.get(at, at.removeprefix("docs/"))
        path = Path(os.path.relpath(place, Path(here).parent)).as_posix()
        return f"{picture}[{words}]({path}{'#' if anchor else ''}{anchor})"
    return words if (ROOT / at).exists() else found[0]


def notebook_page(path: Path) -> str:
    """The words, code and outputs of an executed notebook, as Markdown."""
    lines: list[str] = []
    for cell in json.loads(path.read_text())["cells"]:
        text = "".join(cell["source"])
        lines += [text, ""] if cell["cell_type"] == "markdown" else ["```python", text, "```", ""]
        for output in cell.get("outputs", ()):
            lines += [*_shown(output), ""]
    return "\n".join(lines)


def _shown(output: dict[str, Any]) -> Iterator[str]:
    """A cell's output: a table or a picture as it is, else its text."""
    data = output.get("data", {})
    if "text/html" in data:
        html = "".join(data["text/html"])
        yield re.sub(r"<style.*?</style>| border=\"1\" class=\"dataframe\"", "", html, flags=re.S)
    elif "image/png" in data:
        yield f'<img alt="" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    else:
        said = output["text"] if output["output_type"] == "stream" else data["text/plain"]
        yield f"```text\n{''.join(said).rstrip()}\n```"


def api_page() -> str:
    """Every name that `cliptune` has, with the flags of what is a stage."""
    lines = ["# Reference", "", inspect.getdoc(cliptune) or "", ""]
    for name in sorted(cliptune.__all__, key=_place):
        one = getattr(cliptune, name)
        lines += [f"## cliptune.{name}", ""]
        if inspect.isclass(one):
            lines += [_said(one), ""]
            if not issubclass(one, Exception):
                lines += _members(one)
        else:
            lines += [_signature(name, one), "", _said(one), "", *_flags(name)]
    return "\n".join([*lines, *_types()])


def _types() -> Iterator[str]:
    """What the types have that signatures only name."""
    yield from ("## Types", "", "| name | stands for | |", "|---|---|---|")
    for module in (values, images, tuned, kinds, keepers):
        for line in inspect.getsource(module).splitlines():
            if found := re.match(r" *(\w+)(?:: TypeAlias)? = (.*?)(?:  # (.*))?$", line):
                name, kind, note = found.groups()
                if ": TypeAlias" in line or kind.startswith("Literal["):
                    yield f"| `{name}` | {_cell(f'`{kind}`')} | {_cell(note or '')} |"


def _place(name: str) -> tuple[bool, bool]:
    """Functions first, errors last."""
    one = getattr(cliptune, name)
    return inspect.isclass(one), inspect.isclass(one) and issubclass(one, Exception)


def _members(kind: type[Any]) -> Iterator[str]:
    """The fields of a dataclass, its properties and its methods."""
    said = _comments(kind)
    for field in dataclasses.fields(kind):
        yield f"- `{field.name}: {field.type}` {said.get(field.name, '')}"
    for name, one in vars(kind).items():
        if isinstance(one, property):
            yield f"- `{name}` {' '.join((inspect.getdoc(one) or '').split())}"
    yield ""
    for name, one in vars(kind).items():
        if name[0] != "_" and inspect.isfunction(one):
            yield from (f"### {kind.__name__}.{name}", "", _signature(name, one), "", _said(one))
            yield ""


def _signature(name: str, function: Any) -> str:
    """As it stands in the source, a parameter a line."""
    shape = inspect.signature(function)
    lines: list[str] = []
    for one in shape.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and "    *," not in lines:
            lines.append("    *,")
        default = "" if one.default is one.empty else f" = {one.default!r}"
        lines.append(f"    {one.name}: {one.annotation}{default},")
    given = "\n".join(lines)
    return f"```python\n{name}(\n{given}\n) -> {shape.return_annotation}\n```"


def _flags(stage: str) -> Iterator[str]:
    """What the command says of each of its flags."""
    if importlib.util.find_spec(f"pipelines.{stage}") is None:
        return
    args = importlib.import_module(f"pipelines.{stage}.__main__").Args
    body = ast.parse(inspect.getsource(args)).body[0].body  # type: ignore[attr-defined]
    yield from ("| keyword | |", "|---|---|")
    for field, words in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(words, ast.Expr):
            text = " ".join(ast.literal_eval(words.value).split())
            yield f"| `{ast.unparse(field.target)}` | {_cell(text)} |"
    yield ""


def adapter_page(name: str) -> str:
    """All that the code says of an adapter, as Markdown."""
    kind = ADAPTERS[name]
    lines = [f"# {name}", "", _said(kind), ""]
    for task in kind.RECIPES:
        needs = kind.needs(make_config(name, {"task": task}))
        what = {"embeddings": "embeddings alone", "both towers": "both towers, and so pixels"}
        lines += [f"- For {TASKS[task]}; its recipe needs {what.get(needs, needs)}."]
    lines += [f"- The baseline of {TASKS[of]}." for of in BASELINES if BASELINES[of] == name]
    lines += ["- Trials of one shape are trained as one." * kind.FUSES, ""]
    lines += ["## Fields", "", _said(kind.Config), "", *_fields(kind.Config), ""]
    for task, recipe in kind.RECIPES.items():
        lines += [f"## Recipe for {TASKS[task]}", ""]
        lines += ["Fields that it sets; all others have their defaults.", ""] if recipe else []
        lines += [*_table("field | value", recipe.items()), ""]
        for more in kind.VARIANTS.get(task, ()):
            lines += ["A search starts from this, too:", "", *_table("field | value", more.items())]
            lines += [""]
    for goal, space in SPACES[name].items():
        lines += [f"## What a search for {TASKS[goal]} draws from", ""]
        spoken = ((field, text_of(one)) for field, one in space.items())
        lines += [*_table("field | values", spoken), ""]
    lines += [f"The code: `trainables/adapters/{name}.py`, `search_spaces/{name}.py`.", ""]
    return "\n".join(lines)


def _said(kind: Any) -> str:
    """The docstring of a class or a function, its examples as code."""
    words, mark, examples = (inspect.getdoc(kind) or "").partition("\n>>> ")
    return f"{words}\n```pycon{mark}{examples}\n```" if mark else words


def _fields(config: type[Any]) -> Iterator[str]:
    """A table of a configuration's fields, with the comments that stand behind them."""
    fields = dataclasses.fields(config)
    if not fields:
        return
    yield from ("| field | type | default | |", "|---|---|---|---|")
    said = _comments(config)
    for field in fields:
        default = "" if field.default is dataclasses.MISSING else f"`{field.default!r}`"
        kind = re.sub(r"Literal\[(.*?)\]", r"\1", str(field.type))
        note = _cell(said.get(field.name, ""))
        yield f"| `adapter.{field.name}` | {_cell(f'`{kind}`')} | {default} | {note} |"


def _comments(config: type[Any]) -> dict[str, str]:
    """What stands behind each field, or on the lines before it."""
    source = inspect.getsource(config)
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            before: list[str] = []
            at = node.lineno - 2
            while lines[at].strip().startswith("#"):
                before.insert(0, lines[at].strip().lstrip("# "))
                at -= 1
            behind = lines[(node.end_lineno or 0) - 1][node.end_col_offset or 0 :]
            found[node.target.id] = " ".join([*before, behind.strip().lstrip("# ")]).strip()
    return found


def _table(head: str, rows: Any) -> Iterator[str]:
    every = list(rows)
    if not every:
        yield "None: all are the defaults." if "value" in head else "Nothing."
        return
    yield from (f"| {head} |", "|---|---|")
    for field, value in every:
        shown = value if isinstance(value, str) else repr(value)
        yield f"| `{field}` | {_cell(f'`{shown}`')} |"


def _cell(text: str) -> str:
    """In code a bar ends no cell, and what would escape it is shown."""
    return re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or "\\|", text)
