"""`CITATION.cff` names the paper of every adapter; `CHANGELOG.md` has the version's entry."""

from __future__ import annotations

import ast
import re
import tomllib
import unicodedata
from typing import Any

import jsonschema
import pytest
import yaml

from tests import ROOT
from tests.repository.test_architecture import sources
from tests.repository.test_deploy import TEXT, each, record
from trainables.adapters.registry import ADAPTERS

NAMED = re.compile(r"([A-Z][\w-]+)(?: et al\.| and [A-Z][\w ]+?)? ((?:19|20)\d\d)\b")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")
PERSON = {
    "anyOf": [
        record(("given-names", "family-names"), **{"given-names": TEXT, "family-names": TEXT}),
        record(("name",), name=TEXT),
    ]
}
# What the file has of the Citation File Format's schema 1.2.0, whose own validator needs a
# `jsonschema` of before 4.
CFF = record(
    ("cff-version", "message", "title", "authors"),
    **{
        **dict.fromkeys(("title", "abstract", "message", "version"), TEXT),
        "cff-version": {"const": "1.2.0"},
        "type": {"const": "software"},
        "license": {"const": "Apache-2.0"},
        "authors": each(PERSON),
        "keywords": each(TEXT),
        "references": each(
            record(
                ("type", "title", "authors"),
                type={"enum": ["article", "report"]},
                title=TEXT,
                authors=each(PERSON),
                year={"type": "integer"},
                url={"type": "string", "pattern": "^https://arxiv.org/abs/"},
                institution=record(("name",), name=TEXT),
                notes=TEXT,
            )
        ),
    },
)


def plain(text: str) -> str:
    """Without accents, on one line."""
    letters = unicodedata.normalize("NFKD", text)
    return " ".join("".join(one for one in letters if not unicodedata.combining(one)).split())


@pytest.fixture(scope="module")
def cff() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "CITATION.cff").read_text()))


@pytest.fixture(scope="module")
def told() -> dict[str, str]:
    """The docstrings of each adapter's file."""
    return {
        path.rpartition("/")[2].removesuffix(".py"): plain(
            " ".join(
                ast.get_docstring(node) or ""
                for node in ast.walk(tree)
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            )
        )
        for path, tree in sources("trainables/adapters").items()
    }


def test_it_keeps_the_formats_schema(cff: dict[str, Any]) -> None:
    jsonschema.validate(cff, CFF)
    with pytest.raises(jsonschema.ValidationError, match="'authors' is a required property"):
        jsonschema.validate(cff | {"references": [{"type": "article", "title": "x"}]}, CFF)


def test_every_paper_of_an_adapter_is_in_it(cff: dict[str, Any], told: dict[str, str]) -> None:
    by_author = {
        (plain(one["authors"][0].get("family-names", "")), one.get("year"))
        for one in cff["references"]
    }
    addresses = {one.get("url") for one in cff["references"]}
    papers = {(name, found) for name, text in told.items() for found in NAMED.findall(text)}
    assert len(papers) > 20
    assert [
        (adapter, name, year)
        for adapter, (name, year) in sorted(papers)
        if (name, int(year)) not in by_author
    ] == []
    numbers = {(name, found) for name, text in told.items() for found in ARXIV.findall(text)}
    assert len(numbers) > 15
    assert [
        one for one in sorted(numbers) if f"https://arxiv.org/abs/{one[1]}" not in addresses
    ] == []


def test_every_adapter_is_named_and_nothing_else(cff: dict[str, Any]) -> None:
    used = {
        name
        for one in cff["references"]
        for name in re.split(r", ", re.split(r"[:;]", one["notes"])[0])
    }
    assert used == set(ADAPTERS)


def test_the_version_is_the_packages(cff: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (cff["version"], cff["license"]) == (project["version"], project["license"])
    assert cff["abstract"] == project["description"]
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(project['version'])}\] - ", changes, re.MULTILINE)
