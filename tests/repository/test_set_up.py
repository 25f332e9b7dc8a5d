"""What a fresh machine gets: all that is imported is declared, and what is pinned is all of it."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests import ROOT
from tests.repository.test_architecture import imports, sources

OURS = ("cliptune", "pipelines", "trainables", "search_spaces", "benchmarks", "docs", "tests")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Whose a package is that may not be installed.
OWNERS = {
    **{"lance": ["pylance"], "open_clip": ["open-clip-torch"]},
    **{"mlflow": ["mlflow-skinny"], "wandb": ["wandb"], "usearch": ["usearch"]},
}


def named(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(one).name) for one in requirements}


def pinned() -> dict[str, str]:
    """The versions of `requirements.lock`, by name."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = (line.split("==") for line in lines if line and line[0] != "#")
    return {canonicalize_name(name): version for name, version in pairs}


def undeclared(folders: Iterable[str], declared: set[str]) -> dict[str, str]:
    """Top-level packages that are imported there and belong to nothing declared: one place each."""
    owners = OWNERS | dict(packages_distributions())
    return {
        top: path
        for path, tree in sources(*folders).items()
        for name in imports(tree)
        if (top := name.split(".")[0]) not in {*OURS, *sys.stdlib_module_names}
        and not declared & set(map(canonicalize_name, owners.get(top, [])))
    }


def test_every_package_that_is_imported_is_declared() -> None:
    own = named(PROJECT["dependencies"])
    extra = named(
        EXTRAS["approximate"]
        + EXTRAS["cmaes"]
        + EXTRAS["umap"]
        + EXTRAS["spice"]
        + EXTRAS["lance"]
        + EXTRAS["onnx"]
        + EXTRAS["open-clip"]
        + EXTRAS["mlflow"]
        + EXTRAS["wandb"]
        + EXTRAS["serve"]
    )
    assert undeclared(("pipelines", "trainables", "search_spaces", "benchmarks"), own | extra) == {}
    assert undeclared(("docs", "tests"), own | named(EXTRAS["dev"])) == {}
    assert undeclared(("trainables",), own - {"torch"}).keys() == {"torch"}


def test_the_pinned_versions_are_allowed() -> None:
    versions = pinned()
    for text in [*PROJECT["dependencies"], *EXTRAS["dev"]]:
        one = Requirement(text)
        assert one.specifier.contains(versions[canonicalize_name(one.name)]), text


def test_the_pinned_packages_need_nothing_else() -> None:
    """As `pip check` says it, of the file."""
    versions, lacking = pinned(), []
    for name in versions:
        try:
            needs = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:  # installed otherwise than by the file
            continue
        for one in needs:
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                version = versions.get(canonicalize_name(one.name))
                if version is None or not one.specifier.contains(version, prereleases=True):
                    lacking.append(f"{name} needs {one}, got {version}")
    assert lacking == []


def test_ci_checks_what_a_developer_checks() -> None:
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert re.findall(r"- run: (.*)", workflow) == [".ci/run"]
    assert re.findall(r"^make .*$", (ROOT / ".ci/run").read_text(), re.MULTILINE) == ["make test"]
    assert "\nmake test " in (ROOT / "CONTRIBUTING.md").read_text()
    assert PROJECT["requires-python"] == ">=3.11"
    assert 'python-version: "3.11"' in workflow


def test_what_contributors_are_told_of_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`([\w.]+/[\w./]*)`", text)
    assert len(paths) > 10
    base = {ROOT / "trainables", ROOT}
    named = [path for path in paths if not path.endswith("/x.py")]
    assert [path for path in named if not any((room / path).exists() for room in base)] == []
    rules = (ROOT / "Makefile").read_text()
    assert all(f"\n{name}" in rules for name in re.findall(r"make (test[\w-]*|bench)", text))
    assert "(CONTRIBUTING.md)" in (ROOT / "README.md").read_text()
