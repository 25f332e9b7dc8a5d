"""The rules of the layout, read from the syntax trees: who imports whom, who opens test."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache

import pytest

from pipelines.cli import STAGES
from search_spaces.registry import SPACES
from tests import ROOT
from trainables.adapters.registry import ADAPTERS

PACKAGES = ("trainables", "search_spaces", "pipelines", "cliptune")
# As data flows: a room imports itself, those before it, and what lies beside the rooms.
ROOMS = (
    *("search_spaces", "trainables", "trainables.data", "trainables.media", "trainables.models"),
    *("trainables.losses", "trainables.statistics", "trainables.metrics", "trainables.features"),
    *("trainables.adapters", "trainables.training", "trainables.trials"),
    *("pipelines", "pipelines.sources", "pipelines.pages", "pipelines.shards", "pipelines.draw"),
    *("pipelines.encode", "pipelines.runs", "pipelines.records"),
    *("pipelines.tune.study", "pipelines.tune.workers", "pipelines.tune.samplers"),
    *("pipelines.tune.schedulers", "pipelines.tune", "pipelines.space", "pipelines.train"),
    *("pipelines.arena", "pipelines.evaluate", "pipelines.report", "pipelines.sweep"),
    *(
        "pipelines.explain",
        "pipelines.reproduce",
        "pipelines.relink",
        "pipelines.push",
        "pipelines.export",
        "pipelines.use",
    ),
    *("pipelines.search", "pipelines.classify", "pipelines.caption", "pipelines.serve"),
    *("pipelines.demo", "cliptune"),
)
HEAVY = ("torch", "ray", "transformers", "pyarrow", "peft", "optuna", "datasets", "matplotlib")
PICKLES = ("pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "ray.cloudpickle")


@cache
def sources(*folders: str) -> dict[str, ast.Module]:
    """Every module of the packages `folders` by its path; all but the tests where none is given."""
    paths = [p for f in folders or (*PACKAGES, "benchmarks") for p in (ROOT / f).rglob("*.py")]
    return {p.relative_to(ROOT).as_posix(): ast.parse(p.read_text()) for p in sorted(paths)}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(tree: ast.Module) -> Iterator[str]:
    """Dotted names of all that is imported, inside functions too; `from a import b` gives `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)


def of_package(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def modules_imported(path: str) -> set[str]:
    """The modules of ours that a module imports, for its types too."""
    known = {module_of(one) for one in sources(*PACKAGES)}
    names = set(imports(sources(*PACKAGES)[path]))
    return {
        next(m for m in (n, n.rpartition(".")[0]) if m in known)
        for n in names
        if n.split(".")[0] in PACKAGES
    } - {module_of(path)}


def room_of(path: str) -> str:
    return path.rpartition("/")[0].replace("/", ".")


def called(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its callee as written: `torch.load`, `eval`, `archive.extractall`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def forbidden_imports(folder: str, packages: tuple[str, ...], but: str = "") -> list[str]:
    return [
        f"{path} imports {name}"
        for path, tree in sources(folder).items()
        for name in imports(tree)
        if path != but and of_package(name, packages)
    ]


def test_imports_are_absolute() -> None:
    """The rules below compare names; a relative import would hide from them."""
    assert [p for p, tree in sources().items() if any(n[0] == "." for n in imports(tree))] == []


def test_a_room_imports_those_before_it() -> None:
    places = {path: ROOMS.index(room_of(path)) for path in sources(*PACKAGES)}
    by_module = {module_of(path): place for path, place in places.items()}
    found = [
        f"{path} imports {name}"
        for path, place in places.items()
        for name in modules_imported(path)
        if by_module[name] > place
    ]
    assert found == []


def test_the_map_of_the_rooms_has_all_of_them() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    drawn = set(re.findall(r"(\w+)/", text.partition("## The rooms")[2].split("```")[1]))
    assert sorted({room.rpartition(".")[2] for room in ROOMS} - drawn) == []
    for package in PACKAGES:
        assert f"| `{package}/` |" in (ROOT / "CONTRIBUTING.md").read_text()


def test_no_imports_in_circles() -> None:
    """Not for types either: what needs the other for its types is one with it."""
    left = {module_of(path): modules_imported(path) for path in sources(*PACKAGES)}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}


def test_trainables_know_no_ray_but_in_trial() -> None:
    assert forbidden_imports("trainables", ("ray",), but="trainables/trials/trial.py") == []
    assert any(
        of_package(n, ("ray",))
        for n in imports(sources("trainables")["trainables/trials/trial.py"])
    )


def test_trainables_import_neither_pipelines_nor_search_spaces() -> None:
    assert forbidden_imports("trainables", ("pipelines", "search_spaces", "optuna")) == []


def test_trainables_read_no_command_line_and_no_environment() -> None:
    """But where the user's cache is, on which no outcome depends."""
    found = [
        f"{path} reads {ast.unparse(node)}"
        for path, tree in sources("trainables").items()
        for node in ast.walk(tree)
        if path != "trainables/data/verified.py"
        and isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("sys.argv", "os.environ", "os.getenv")
    ]
    assert found == []


def test_search_spaces_are_pure_data() -> None:
    """Optuna's domains, the standard library, and each other; nothing that runs a model."""
    allowed = (*sys.stdlib_module_names, "optuna", "search_spaces")
    found = [
        f"{path} imports {name}"
        for path, tree in sources("search_spaces").items()
        for name in imports(tree)
        if not of_package(name, allowed)
    ]
    assert found == []


def test_stages_never_import_each_other() -> None:
    """Nor through a helper: what a stage reaches by imports holds no other stage."""
    trees = {module_of(path): set(imports(tree)) for path, tree in sources("pipelines").items()}
    reaches = {
        name: {other for other in trees for n in names if of_package(n, (other,))}
        for name, names in trees.items()
    }
    assert "pipelines.evaluate.protocol" in reaches["pipelines.evaluate.__main__"]
    found = []
    for stage in (f"pipelines.{name}.__main__" for name in STAGES):
        seen, new = set[str](), {stage}
        while new:
            seen |= new
            new = {n for name in new for n in reaches[name] if n != "pipelines"} - seen
        others = {f"pipelines.{other}.__main__" for other in STAGES} - {stage}
        found += [f"{stage} reaches {name}" for name in seen & others]
    assert found == []


def test_adapters_never_import_each_other() -> None:
    found = []
    for name in ADAPTERS:
        others = tuple(f"trainables.adapters.{other}" for other in ADAPTERS if other != name)
        tree = sources("trainables/adapters")[f"trainables/adapters/{name}.py"]
        found += [f"{name} imports {n}" for n in imports(tree) if of_package(n, others)]
    assert found == []


def test_concrete_adapters_are_not_subclassed() -> None:
    kinds = tuple(ADAPTERS.values())
    assert [(a, b) for a in kinds for b in kinds if a is not b and issubclass(a, b)] == []


def test_only_evaluate_breaks_the_seal() -> None:
    """`Seal` is made in one place, under its own name, and in no indirect way."""
    makers = [
        path
        for path, tree in sources().items()
        for name, _ in called(tree)
        if name.split(".")[-1] == "Seal"
    ]
    recorder = "benchmarks/searchers/record.py"  # no searcher sees what it finds
    assert set(makers) == {"pipelines/evaluate/__main__.py", recorder}
    renamed = [
        path
        for path, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.alias) and node.name.endswith("Seal") and node.asname
    ]
    assert renamed == []


def test_nothing_that_runs_code_from_a_file() -> None:
    """safetensors, JSON and Parquet are loaded; what could execute an input never is."""
    banned = ("eval", "exec", "torch.load", "yaml.load", "numpy.load", "np.load", "os.system")
    found = [
        f"{path} imports {name}"
        for path, tree in sources().items()
        for name in imports(tree)
        if of_package(name, PICKLES)
    ]
    for path, tree in sources().items():
        for name, call in called(tree):
            flags = {
                keyword.arg
                for keyword in call.keywords
                if isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            }
            method = name.split(".")[-1]
            if name in banned or method == "extractall" or flags & {"shell", "trust_remote_code"}:
                found.append(f"{path}:{call.lineno} calls {name}")
    assert found == []


def test_the_walkers_see_what_they_look_for() -> None:
    tree = ast.parse("def f():\n from torch import load as l\n import ray.tune\n x.extractall(y)")
    assert list(imports(tree)) == ["torch.load", "ray.tune"]
    assert [name for name, _ in called(tree)] == ["x.extractall"]
    assert of_package("ray.tune", ("ray",))
    assert not of_package("rayon", ("ray",))


def test_an_adapters_name_is_its_file_its_module_and_its_space() -> None:
    shared = {"__init__", "base", "crossfit", "registry", "shared"}
    files = {path.stem for path in (ROOT / "trainables/adapters").glob("*.py")} - shared
    assert files == set(ADAPTERS)
    for name, kind in ADAPTERS.items():
        assert kind.__module__ == f"trainables.adapters.{name}"
    shared = {"__init__", "registry", "common", "notation", "portfolio"}
    files = {path.stem for path in (ROOT / "search_spaces").glob("*.py")} - shared
    assert files == set(SPACES)
    assert set(SPACES) <= set(ADAPTERS)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_flags_with_help_and_a_run(stage: str) -> None:
    module = importlib.import_module(f"pipelines.{stage}.__main__")
    assert module.__doc__
    assert callable(module.run)
    assert len(module.Args.__dataclass_fields__) <= 32


def test_stages_import_nothing_heavy_so_that_help_is_quick() -> None:
    modules = ", ".join(f"pipelines.{stage}.__main__" for stage in STAGES)
    code = f"import sys, {modules}; print([n for n in {HEAVY} if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True) == "[]\n"
