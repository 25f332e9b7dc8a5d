"""What `pip wheel .` makes: all that a command reads, and nothing of the checkout is missed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests import ROOT

PACKAGES = ("pipelines", "search_spaces", "trainables")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    words = ("wheel", checkout, "--no-deps", "--no-build-isolation", "--wheel-dir", checkout)
    subprocess.run([*PIP, *map(str, words)], check=True)
    (made,) = checkout.glob("*.whl")
    return made


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with ZipFile(wheel) as inside:
        assert {name for name in inside.namelist() if ".dist-info/" not in name} == files


def test_a_command_runs_from_it_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([*PIP, "install", "--no-deps", "--target", place, wheel], check=True)
    done = subprocess.run(
        [place / "bin" / "cliptune", "draw", "--help"],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(place)},
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "--shots" in done.stdout
    loaded = "import pipelines.pages as p, trainables as t; print(p.__file__, t.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", loaded],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(place)},
        text=True,
        capture_output=True,
        check=True,
    )
    assert [Path(one).is_relative_to(place) for one in where.stdout.split()] == [True, True]
