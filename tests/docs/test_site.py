"""The site: whole, made of the code where it speaks of adapters, and nothing of it is fetched."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

import cliptune
from docs.pages import LINK, PAGES, adapter_page, api_page
from search_spaces.registry import SPACES
from tests.docs.commands import pages
from trainables.adapters.registry import ADAPTERS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it: a link that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    config: Any = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    build(config)
    return folder


def test_every_adapter_has_a_page_with_all_that_can_be_set_and_searched(site: Path) -> None:
    for name, kind in ADAPTERS.items():
        page = (site / "adapters" / f"{name}.html").read_text()
        fields = {f"adapter.{field.name}" for field in dataclasses.fields(kind.Config)}
        searched = {field for space in SPACES[name].values() for field in space}
        assert [one for one in fields | searched if f">{one}<" not in page] == []
        assert f'href="adapters/{name}.html"' in (site / "adapters.html").read_text()


def test_every_page_is_in_the_navigation() -> None:
    shown = {path for path in pages() if path.startswith("docs/")}
    assert shown == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


def test_the_table_of_adapters_is_of_those_that_there_are() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/adapters.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(ADAPTERS)


def test_a_field_is_shown_with_what_is_said_behind_it() -> None:
    assert "| `adapter.n_ctx` | `int` | `16` | M |" in adapter_page("coop")
    assert "| `optim.lr` | `2e-4..0.2:log` |" in adapter_page("coop")


def test_an_example_is_shown_as_code(site: Path) -> None:
    assert "\n\n```pycon\n>>> CoopConfig(" in adapter_page("coop")
    page = (site / "adapters" / "coop.html").read_text()
    assert "<code" in page[: page.index("CoopConfig(n_ctx=4")].rpartition("<p>")[2]


def test_the_reference_says_what_its_types_stand_for() -> None:
    text = api_page()
    given = re.findall(r"^    \w+: (.+?)(?: = .*)?,$", text, re.MULTILINE)
    named = {word for kind in given for word in re.findall(r"(?<!')\b[A-Z]\w+", kind)}
    python = {"Any", "Iterable", "Literal", "None", "Sequence"}
    assert {"Pairs", "Images", "Sampler"} <= named
    told = re.findall(r"^\| `(\w+)` \| `", text, re.MULTILINE)
    assert sorted(named - python - {*told, *cliptune.__all__}) == []


def test_a_bar_in_a_table_stands_as_it_is(site: Path) -> None:
    pages = {path.name: path.read_text() for path in site.rglob("*.html")}
    assert [name for name, text in pages.items() if "\\|" in text] == []
    assert "<code>str | os.PathLike[str]</code>" in pages["api.html"]
    assert "{}|a photo of {}|a picture of {}" in pages["zero_shot.html"]


def test_nothing_is_fetched_when_it_is_read(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(ADAPTERS) + len(PAGES)
    for page in pages:
        text = page.read_text()
        used = re.findall(r"<(?:script|img|iframe)[^>]*\ssrc=[\"']?([^\"'\s>]+)", text)
        used += re.findall(r"<link[^>]*rel=[\"']?(?:stylesheet|icon)[^>]*", text)
        assert used
        fetched = [one for one in used if "//" in one and not one.startswith("data:")]
        assert fetched == [], page.name


def test_links_of_the_pages_lead_to_files_where_they_are_read_in_the_checkout() -> None:
    pages = [*(ROOT / "docs").glob("*.md"), *(ROOT / path for path in PAGES)]
    assert len(pages) > 15
    for page in pages:
        for _, _, target in LINK.findall(page.read_text()):
            path = target.partition("#")[0]
            assert "://" in target or not path or (page.parent / path).exists(), (page, target)


def test_the_readme_is_short_and_its_badges_say_what_the_package_says() -> None:
    text = (ROOT / "README.md").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(text.splitlines()) <= 150
    assert f"[version: {project['version']}]" in text
    assert f"badge/version-{project['version']}-" in text
    assert f"[licence: {project['license']}]" in text
    assert project["requires-python"] == ">=3.11"
    assert "[Python: 3.11 or newer]" in text
