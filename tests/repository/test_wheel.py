"""What `pip wheel .` makes: all that a command reads, and nothing of the checkout is missed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests import ROOT

TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
PACKAGES = sorted(
    path.name
    for pattern in TOOLS["packages"]["find"]["include"]
    for path in ROOT.glob(pattern)
    if (path / "__init__.py").is_file()
)
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
PLACES = f"""
import importlib, ray

def places():
    return [importlib.import_module(name).__file__ for name in {PACKAGES}]

ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
print(*places(), *ray.get(ray.remote(places).remote()), sep="\\n")
"""


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


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of the wheel alone. What it depends on is looked up in the running one, of
    which no `.pth` file is read, so nothing of an editable cliptune shines through."""
    place = tmp_path_factory.mktemp("installed")
    venv.create(place, symlinks=True)
    pip = (*PIP, "--python", str(place / "bin" / "python"))
    subprocess.run([*pip, "install", "--no-deps", str(wheel)], check=True)
    (own,) = place.glob("lib/python*/site-packages")
    running = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (own / "running.pth").write_text("\n".join(sorted(running)))
    return place


def run(*words: str | Path, folder: Path) -> str:
    """What a command prints there, with nothing said of where to import from."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        words, cwd=folder, env=environment, text=True, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_file_of_the_packages_is_in_it(wheel: Path) -> None:
    files = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    with ZipFile(wheel) as inside:
        assert {name for name in inside.namelist() if ".dist-info/" not in name} == files


def test_a_package_that_carries_types_says_so() -> None:
    typed = {name for name, files in TOOLS["package-data"].items() if "py.typed" in files}
    assert set(PACKAGES) <= typed
    assert all((ROOT / name / "py.typed").is_file() for name in PACKAGES)


@pytest.mark.slow
def test_the_demo_runs_from_it_outside_the_checkout(installed: Path, tmp_path: Path) -> None:
    python, cliptune = (installed / "bin" / name for name in ("python", "cliptune"))
    places = run(python, "-c", PLACES, folder=tmp_path).splitlines()  # the driver's and a worker's
    assert len(places) == 2 * len(PACKAGES)
    assert [place for place in places if not Path(place).is_relative_to(installed)] == []

    small = ("--adapter", "soft_prompt", "--trials", "1", "--epochs", "1")
    said = run(cliptune, "demo", *small, folder=tmp_path)
    assert f"--backbone {installed}/" in said
    assert "t2i_r1@1000 on test, 95 % intervals, difference to zero-shot" in said
    study = tmp_path / "runs" / "demo" / "study"
    assert {path.name for path in study.iterdir()} >= {"best.json", "result.json", "report.md"}
    assert "<svg" in (study / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
