"""What is disturbed: the commands themselves, on tiny models, in a room of their own.

Flows in: a folder. Flows out: a room with shards, stores, draws and runs in it, and what can be
done there. Searches and arenas train in one process, and images are encoded in one, as their
commands do in many: all but Ray is the command's own. (With Ray: `with_ray.py`.)
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pipelines.arena.__main__
import pipelines.encode.store
import pipelines.tune.__main__
import pipelines.typed
from pipelines.arena.plan import cell_folder
from pipelines.arena.tuning import Arena, CellSearch
from pipelines.cli import stage_main
from pipelines.tune.samplers.from_disk import pausing
from pipelines.tune.schedulers.population import rules
from tests.one_process import Driver
from tests.pipelines.encode.test_encode import InProcess
from tests.tiny import picture, tiny_clip, tiny_features, tiny_shards
from trainables.files import read_json, write_hashed


@dataclass(frozen=True)
class Work:
    """Words of a command, where its result lies, and what is cleared away for it to do its work
    anew. All is relative to the room."""

    name: str
    words: tuple[str, ...]
    results: tuple[str, ...]
    clears: tuple[str, ...]
    workers: int = 1  # of a search in one process
    reads: tuple[str, ...] = ()  # folders and files that it depends on
    given: tuple[str, ...] = ()  # of them, what is the user's: another one has another result
    ray: tuple[str, ...] | None = None  # words more where Ray does it; None: it has none to do
    here: bool = True  # whether it can be done in one process

    def line(self, room: Path) -> list[str]:
        """The stage, and its flags."""
        return [word.replace("ROOM", str(room)) for word in self.words]

    def __call__(self, room: Path) -> None:
        pipelines.tune.__main__._tune = partial(search_here, self.workers)
        pipelines.arena.__main__._tune = compete_here
        pipelines.typed.command = command_here
        pipelines.encode.store.embed_units = InProcess()
        stage, *flags = self.line(room)
        stage_main(stage, flags)

    def clear(self, room: Path) -> None:
        for pattern in self.clears:
            for path in room.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


SET = ("--set", "batch_size=16", "loss.captions_per_image=1")
STORE = ("--features", "ROOM/features", "--metric", "val/t2i_mrr")
PROJECTION = ("tune", *STORE, "--no-portfolio", "--adapter", "projection", *SET)
LORA = ("train", *STORE, "--adapter", "lora", *SET, "epochs=3")
MEASURED = ("result.json", "report.*", "test*", "images", "gallery*")


def search(
    name: str, out: str, trials: int, *more: str, workers: int = 1, here: bool = True
) -> Work:
    words = (*PROJECTION, "--out", f"ROOM/{out}", "--epochs", "3", "--trials", str(trials), *more)
    results = tuple(f"{out}/{one}" for one in ("best.json", "schedule.json", "trials"))
    reads = ("features", "clip", out)
    ray = ("--concurrent", str(workers), "--fuse", "1")
    return Work(name, words, results, (out,), workers, reads, ray=ray, here=here)


def measured(name: str, run: str) -> tuple[Work, ...]:
    """What is done with a run or a search that ended."""
    reads = ("features", "shards", "clip", run)
    clears = tuple(f"{run}/{one}" for one in MEASURED)
    evaluate, report = ("evaluate", "--run", f"ROOM/{run}"), ("report", "--run", f"ROOM/{run}")
    export = ("export", "--run", f"ROOM/{run}", "--out", f"ROOM/{run}-exported")
    return (
        Work(f"evaluate {name}", evaluate, (f"{run}/result.json",), clears, reads=reads),
        Work(f"report {name}", report, (f"{run}/report.md",), (f"{run}/report.*",), reads=reads),
        Work(f"export {name}", export, (f"{run}-exported",), (f"{run}-exported",), reads=reads),
    )


WITHOUT_STOPS = ("--scheduler", "none", "--sampler", "random", "--no-stop")
ARENA = (
    *("arena", "--data", "nouns=ROOM/classes", "--backbone", "ROOM/clip", "--out", "ROOM/arena"),
    *("--shots", "2", "--seed", "1", "--protocol", "all", "--trials", "2", "--epochs", "2"),
    *("--adapter", "zero_shot", "linear_probe", "tip_adapter"),
)
ENCODE = ("encode", "--shards", "ROOM/shards", "--backbone", "ROOM/clip", "--out", "ROOM/encoded")
# In an order in which each finds what it reads.
WORKS = (
    search("a search", "search", 5),
    *measured("a search", "search")[:2],  # a projection has no format of another library
    *(search(f"{n} at once", f"many-{n}", 7, *WITHOUT_STOPS, workers=n) for n in (2, 3, 4)),
    search("a population", "population", 4, "--scheduler", "pbt", workers=2),
    Work(
        "train",
        (*LORA, "--out", "ROOM/run"),
        *(("run/best", "run/last"), ("run",)),
        reads=("features", "clip", "run"),
        ray=("--gpus", "0"),  # a group of one worker
    ),
    *measured("a run", "run"),
    Work(
        "shards",
        ("shards", "--source", "ROOM/pictures", "--format", "folder", "--out", "ROOM/written"),
        *(("written",), ("written",)),
        reads=("pictures", "written"),
    ),
    Work(
        "draw",
        ("draw", "--shards", "ROOM/classes", "--shots", "2", "--out", "ROOM/drawn.json"),
        *(("drawn.json",), ("drawn.json",)),
        reads=("classes", "drawn.json"),
    ),
    Work(
        "encode",
        ENCODE,
        *(("encoded",), ("encoded",)),
        reads=("shards", "clip", "encoded"),
        given=("clip",),
    ),
    Work(
        "an arena",
        ARENA,
        ("arena/arena.json",),
        tuple(f"arena/{one}" for one in ("cells", "arena.*", "tests", "test_openings.jsonl")),
        reads=("classes", "clip", "arena"),
        ray=("--concurrent", "4"),  # with a thread each, as in one process
    ),
)


def search_here(
    workers: int, args: Any, search: Any, folder: Path, study: Any, mirrors: Any
) -> bool:
    """`tune._tune` without Ray, and without callbacks: `mirrors` are told at the end."""
    del mirrors
    settings = replace(pipelines.tune.__main__._settings(args, search, folder), threads=1)
    settings.stop_file.unlink(missing_ok=True)
    driver = Driver(search, settings, 1, workers, study)
    driver.searcher, driver.scheduler = rules(study, search, folder)
    driver.losses.searcher = driver.searcher
    with pausing(driver.searcher):
        driver.fit()
    settings.stop_file.unlink(missing_ok=True)
    return False


def compete_here(args: Any, plan: Any, folder: Path, todo: Sequence[Any]) -> bool:
    """`arena._tune` without Ray."""
    del args
    for cell in todo:
        cell_folder(folder, cell).mkdir(parents=True, exist_ok=True)
        search = CellSearch(Arena(plan, folder, threads=1), cell)
        while search.advance(lambda: False):
            pass
        search.close()
    return False


def command_here(*words: object) -> int:
    """`typed.command` without a process of its own."""
    stage, *flags = map(str, words)
    stage_main(stage, flags)
    return 0


def make_room(room: Path) -> None:
    """All that the works begin with."""
    clip = tiny_clip(room / "clip")
    counts = {"train": 48, "val": 16, "test": 16}
    shards = tiny_shards(room / "shards", counts)
    tiny_features(room / "features", images=48, val=16, pixels=True, clip=clip, shards=shards)
    tiny_shards(room / "classes", dict.fromkeys(counts, 48), classes=True)  # 6 of each
    for name in ("shards", "classes", "features"):  # as the commands write it
        path = room / name / "manifest.json"
        write_hashed(path, read_json(path))
    for number in range(24):
        place = room / "pictures" / ("train", "val", "test")[number % 3] / f"class {number % 4}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.jpg").write_bytes(picture(number))
