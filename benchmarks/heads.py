"""`python -m benchmarks.heads --data whurs19/ViT-B-32 ...`: heads on the features of a real CLIP.

Flows in: folders of embeddings in clip-retrieval's layout, with class names. Flows out: how often
each adapter is right, tuned by `cliptune arena`, and what `tune --adapter auto` ends at, in
`heads.json`; `python -m benchmarks.table` puts them on the page. The same command goes on where it
stopped.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.arena.cells import read_cells
from trainables.data.shards import ShardSet
from trainables.features.features import backbone_of, open_features
from trainables.features.few_shot import read_draw
from trainables.features.split import SplitFeatures
from trainables.files import read_json, write_json
from trainables.metrics.classification import hits
from trainables.statistics.bootstrap import Bootstrap
from trainables.training.checkpoint import load_adapter
from trainables.training.predict import score

HERE, FILE = Path(__file__).parent, "heads.json"
AUTO = "auto"


@dataclass(frozen=True)
class Args:
    data: tuple[Path, ...]
    """Folders of embeddings, one for each backbone, which gives it its name."""
    template: str = "a satellite photo of a {}"
    """What stands around a class's name; its text embeddings are among the data."""
    shots: tuple[int, ...] = (1, 4, 16)
    seed: tuple[int, ...] = (1, 2, 3)
    adapter: tuple[str, ...] = ()
    """Adapters of the arena, and what `auto` chooses among; all that can where not given."""
    out: Path = Path("runs/heads")
    """Folder of the arenas and searches."""


@dataclass(frozen=True)
class Reached:
    """How many of 100 test images were right, in the mean over seeds, with 95 % intervals over
    images, and the seconds that one search took."""

    adapter: str
    shots: int
    accuracy: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    seconds: float


def measure(data: Path, args: Args) -> list[Reached]:
    """Every adapter of the arena and `auto`, on the same draws and test images."""
    folder = (args.out / data.name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    words = folder / "words.json"
    write_json(words, {"template": args.template})
    _run("encode", "--embeddings", data, "--split", "draw", "--out", folder / "features")
    [store] = [found.parent for found in (folder / "features").glob("*/manifest.json")]
    arena, name = folder / "arena", "data"
    adapters = ("--adapter", *args.adapter) if args.adapter else ()
    _run(
        *("arena", "--data", f"{name}={store}", "--words", f"{name}={words}", *adapters),
        *("--shots", *args.shots, "--seed", *args.seed, "--protocol", "all", "--out", arena),
    )
    tests = {
        (shots, seed): _left(store, arena / f"draws/{name}-{shots}-{seed}-all.json")
        for shots, seed in itertools.product(args.shots, args.seed)
    }
    found = []
    for block, cells in read_cells(read_json(arena / "arena.json")).items():
        for adapter in dict.fromkeys(cell.adapter for cell in cells):
            every = [cell for cell in cells if cell.adapter == adapter]
            right = {
                cell.seed: torch.tensor([float(one) for one in cell.correct["all"]])
                for cell in every
            }
            seconds = sum(cell.seconds or 0 for cell in every) / len(every)
            found.append(_reached(adapter, block.shots, tests, right, seconds))
    for shots in args.shots:
        right, spent = {}, 0.0
        for seed in args.seed:
            draw = arena / f"draws/{name}-{shots}-{seed}-all.json"
            run = folder / f"auto-{shots}-{seed}"
            spent += _search(store, draw, seed, run, adapters) / len(args.seed)
            right[seed] = _answers(store, run, tests[shots, seed])
        found.append(_reached(AUTO, shots, tests, right, spent))
    return found


def _run(*words: object) -> None:
    """A stage as a user types it."""
    command, *flags = map(str, words)
    print("$ cliptune", command, *flags, flush=True)
    subprocess.run([sys.executable, "-m", f"pipelines.{command}", *flags], check=True)


def _search(store: Path, draw: Path, seed: int, run: Path, adapters: Iterable[object]) -> float:
    """Seconds of `tune` with what it starts; of the call that ended it where it was killed."""
    kept = run.with_suffix(".json")
    if not kept.exists():
        chosen = list(adapters) or ["--adapter", AUTO]
        start = time.perf_counter()
        flags = ("--features", store, "--draw", draw, "--seed", seed, "--out", run)
        _run("tune", *flags, *chosen)
        write_json(kept, {"seconds": time.perf_counter() - start})
        _run("evaluate", "--run", run)
    return float(read_json(kept)["seconds"])


def _left(store: Path, draw: Path) -> SplitFeatures:
    """The images that a draw leaves: its test."""
    pool = open_features(store, "train", backbone_of(store))
    return read_draw(draw).among(pool, ShardSet.open(store).rows("train", ["id", "label"]))


def _answers(store: Path, run: Path, test: SplitFeatures) -> Tensor:
    """Whether what a search chose is right about each image (n,), as `evaluate` found it."""
    best = read_json(run / "best.json")
    adapter = load_adapter(run / best["path"] / "best", backbone_of(store))
    assert test.labels is not None
    assert test.classes is not None
    right = hits(score(adapter, test, test.classes), test.labels)
    [own] = [row for row in read_json(run / "result.json")["rows"] if row["selected"]]
    said = next(one["value"] for key, one in own["metrics"].items() if key.startswith("accuracy@"))
    if abs(said - float(right.mean())) > 1e-6:
        raise RuntimeError(f"`{run}`: `evaluate` says {said}, its adapter {float(right.mean())}.")
    return right


def _reached(
    adapter: str,
    shots: int,
    tests: dict[tuple[int, int], SplitFeatures],
    right: dict[int, Tensor],
    seconds: float,
) -> Reached:
    """An image that several draws leave is resampled as one."""
    ids = [id_ for seed in right for id_ in tests[shots, seed].ids]
    number = {id_: n for n, id_ in enumerate(dict.fromkeys(ids))}
    clusters, values = torch.tensor([number[id_] for id_ in ids]), torch.cat([*right.values()])
    each = tuple(100 * float(one.mean()) for one in right.values())
    bootstrap = Bootstrap(len(number))
    drawn = 100 * bootstrap.mean(values, clusters)
    found = bootstrap.interval(sum(each) / len(each), drawn)
    return Reached(adapter, shots, found.value, found.low, found.high, each, seconds)


def table(rows: Sequence[Reached]) -> list[str]:
    """Markdown: a row an adapter; seconds are of the most shots."""
    shots = sorted({row.shots for row in rows})
    by = {(row.adapter, row.shots): row for row in rows}
    lines = [
        f"| | {' | '.join(f'{n} shot' + 's' * (n > 1) for n in shots)} | s |",
        f"|{'---|' * (len(shots) + 2)}",
    ]
    for adapter in dict.fromkeys(row.adapter for row in rows):
        own = [by[adapter, n] for n in shots]
        cells = " | ".join(f"{one.accuracy:.1f} [{one.low:.1f}, {one.high:.1f}]" for one in own)
        lines.append(f"| `{adapter}` | {cells} | {own[-1].seconds:.1f} |")
    return lines


def read(folder: Path) -> dict[str, list[Reached]]:
    """What was measured, by backbone; nothing where nothing was."""
    path = folder / FILE
    found = read_json(path) if path.is_file() else {}
    return {
        name: [Reached(**(row | {"by_seed": tuple(row["by_seed"])})) for row in rows]
        for name, rows in found.items()
    }


def section(folder: Path) -> list[str]:
    """The page's part."""
    found = read(folder)
    if not found:
        return []
    folders = " ".join(f"whurs19/{name}" for name in found)
    lines = [
        "## Heads on a real CLIP's features",
        "",
        f"Written by `python -m benchmarks.heads --data {folders}`:",
        "WHU-RS19, 1,005 satellite photos in 19 classes, embedded by OpenAI's own CLIP. Accuracy",
        "on the images that a draw leaves, mean of three draws, in %, with 95 % intervals over",
        "images; val has 1, 4 and 4 images a class. An adapter has 4 trials in the arena; `auto`",
        "is `tune --adapter auto` on the same draws. Seconds: on the clock, one search at the most",
        "shots: in one thread, of `auto` on two cores with Ray's start.",
        "",
    ]
    for name, rows in found.items():
        lines += [f"### {name}", "", *table(rows), ""]
    return lines


def main(args: Args) -> None:
    found: dict[str, list[dict[str, object]]] = {}
    for data in args.data:
        found[data.name] = [asdict(row) for row in measure(data, args)]
        write_json(HERE / FILE, found)
        print("\n".join(table(read(HERE)[data.name])), flush=True)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Args, description=__doc__))
