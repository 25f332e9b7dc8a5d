"""Kill, flip, cut and fill, round after round, and count what came of it.

Each round is a function of the seed and its number, and is written down when it ends: the same
command goes on where it stopped, and `--round N` repeats one.
"""

from __future__ import annotations

import errno
import gc
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers.models.clip.modeling_clip  # noqa: F401, what each life would import anew
import tyro

import pipelines
from tests.one_process import watching
from tests.soak.life import Life, live
from tests.soak.results import Result, differences, result_of
from tests.soak.with_ray import (
    LASTS,
    VICTIMS,
    WORKS_OF_RAY,
    adopt,
    last_words,
    start,
    strike,
    sweep,
)
from tests.soak.works import WORKS, Work, make_room

FAULTS = ("silent", "traceback", "hangs")
LISTED = (*FAULTS, "unnamed")  # the last: refused in words that name another file
NEVER = ("pictures", "clip/config.json")  # what a user changes is another input


@dataclass(frozen=True)
class Args:
    minutes: float = 60.0
    """How long to go on."""
    out: Path = Path("soak")
    """Where the rounds are written down, and the room is."""
    seed: int = 0
    """Of all that is left to chance. 0: the day."""
    round: int | None = None
    """Repeat this round alone, and leave the room as it is."""
    ray: bool = False
    """Commands with a Ray of their own instead, of which a process is killed, or all. Such a round
    takes a minute."""


class Soak:
    """The room, the undisturbed results, and the rounds."""

    def __init__(self, out: Path, seed: int, ray: bool = False) -> None:
        self.out, self.seed, self.ray = out.resolve(), seed, ray
        self.works = WORKS_OF_RAY if ray else WORKS
        place = self.out / "ray" if ray else self.out
        self.room, self.finished = place / "room", place / "finished"
        self.log = self.out / "said.txt"
        self.temporary = Path(tempfile.gettempdir(), f"soak-{os.getpid()}")  # of Ray
        self.expected: dict[str, tuple[Result, set[str], float]] = {}

    def prepare(self) -> None:
        """Do each work twice, undisturbed: what differs then differs by itself."""
        if not self.finished.exists():
            shutil.rmtree(self.room, ignore_errors=True)
            self.room.mkdir(parents=True)
            self._must(partial(make_room, self.room))
            for work in self.works:
                self._must(self._way(work))
            shutil.copytree(self.room, self.finished, symlinks=True)
        for work in self.works:
            done, free = result_of(self.finished, work.results), set()
            for _ in range(2 if work.here else 1):
                self.fresh(work)
                life = self._must(self._way(work))
                free |= differences(done, result_of(self.room, work.results))
            seconds = LASTS if self.ray and work.here else life.seconds
            self.expected[work.name] = done, free, seconds

    def _way(self, work: Work) -> Callable[[], None]:
        """How it is done undisturbed: with Ray only where it must be."""
        if work.here:
            return partial(work, self.room)
        return partial(start, work, self.room, self.temporary)

    def _must(self, work: Callable[[], None]) -> Life:
        life = live(work, self.log)
        if life.code != 0:
            raise SystemExit(f"undisturbed, this ends with {life.code}:\n{life.said}")
        return life

    def fresh(self, work: Work, done: bool = False) -> None:
        """What `work` reads, as it is when all is done; what it makes, if that is `done`."""
        shutil.rmtree(self.room, ignore_errors=True)
        self.room.mkdir()
        for name in work.reads:
            found = self.finished / name
            copy = shutil.copytree if found.is_dir() else shutil.copy2
            copy(found, self.room / name)
        if not done:
            work.clear(self.room)

    def compare(self, work: Work, damaged: str = "") -> list[str]:
        """What differs from the undisturbed result; a damaged file itself is for who reads it."""
        expected, free, _ = self.expected[work.name]
        found = differences(result_of(self.room, work.results), expected) - free
        return sorted(name for name in found if not (damaged and name.startswith(damaged)))

    # -- rounds ---------------------------------------------------------------------------------

    def round(self, number: int) -> dict[str, Any]:
        lots = random.Random(f"{self.seed}/{number}")
        if self.ray:
            return {"round": number, **self.with_ray(lots)}
        kind = lots.choices(("kill", "damage", "full", "clock"), (5, 8, 1, 1))[0]
        done: dict[str, Any] = getattr(self, kind)(lots)
        return {"round": number, "kind": kind, **done}

    def kill(self, lots: random.Random, disturb: Callable[[], None] | None = None) -> Any:
        """One to three lives that are killed, and one that is not."""
        work = lots.choice(WORKS)
        self.fresh(work)
        seconds, kills = self.expected[work.name][2], 0
        for _ in range(lots.randint(1, 3)):
            if disturb is not None:
                disturb()
            life = live(partial(work, self.room), self.log, kill=lots.uniform(0, seconds))
            kills += life.code is None
            if life.code is not None:  # it was done before it could be killed
                return {"work": work.name, "kills": kills, **self._judge(work, life)}
        life = live(partial(work, self.room), self.log)
        return {"work": work.name, "kills": kills, **self._judge(work, life)}

    def with_ray(self, lots: random.Random) -> dict[str, Any]:
        """A command, of which a process is killed once or twice; then, unless it went on by itself,
        the same command. It ends as the one in one process, or as one that was left alone."""
        work = lots.choice(self.works)
        victim = lots.choices([*VICTIMS], [often for often, _ in VICTIMS.values()])[0]
        self.fresh(work)
        done, free, seconds = self.expected[work.name]
        about, kills, ends = {"kind": victim, "work": work.name}, 0, Counter[str]()
        do = partial(start, work, self.room, self.temporary)
        killed = -signal.SIGKILL if victim in ("driver", "all") else 2

        def whom(command: int) -> None:
            nonlocal kills
            kills += strike(victim, lots, command)

        for _ in range(lots.randint(1, 2)):
            life = live(do, self.log, kill=lots.uniform(0, seconds), whom=whom)
            if "Traceback" in life.said or not (life.code in (2, killed) or last_words(life)):
                break
            ends[{2: "sentence", 1: "Ray's words"}.get(life.code, "killed")] += 1
        else:
            life = live(do, self.log)
        if life.code == 0 and not kills:
            self.expected[work.name] = done, free, life.seconds
        left = sweep()
        shutil.rmtree(self.temporary, ignore_errors=True)
        about |= {"kills": kills, "ends": ends} | ({"left": left} if left else {})
        return {**about, **self._judge(work, life)}

    def clock(self, lots: random.Random) -> Any:
        """Kills, between which the clock is set a day on or back."""

        def jump() -> None:
            for path in self.room.rglob("*"):
                theirs = str(path.relative_to(self.room)).startswith(NEVER)
                if lots.random() < 0.3 and path.is_file() and not theirs:
                    then = time.time() + lots.uniform(-86400, 86400)
                    os.utime(path, (then, then))

        return self.kill(lots, jump)

    def full(self, lots: random.Random) -> Any:
        """From some write on, the disk is full; then there is room again."""
        work, code = lots.choice(WORKS), lots.choice((errno.ENOSPC, errno.EIO, errno.EROFS))
        self.fresh(work)
        left = lots.randint(0, 60)

        def fill(change: str) -> None:
            nonlocal left
            left -= 1
            if left < 0 and change.startswith(("open", "mkdir", "rename")):
                raise OSError(code, os.strerror(code), change)

        def disturbed() -> None:
            with watching(self.room, fill):
                work(self.room)

        life = live(disturbed, self.log)
        about = {"work": work.name, "error": errno.errorcode[code]}
        if life.code not in (0, 2) or "Traceback" in life.said:
            return {**about, "outcome": "traceback", "said": life.said[-2000:]}
        if life.code:
            life = live(partial(work, self.room), self.log)
        return {**about, **self._judge(work, life)}

    def damage(self, lots: random.Random) -> Any:
        """One file flipped or cut, and a command that reads it, afresh or once more."""
        work = lots.choice(WORKS)
        self.fresh(work, done=lots.random() < 0.4)
        if not (kinds := self._files(work)):
            self.fresh(work, done=True)
            kinds = self._files(work)
        kind = lots.choice(sorted(kinds))
        path = lots.choice(kinds[kind])
        data = bytearray(path.read_bytes())
        at, how = lots.randrange(len(data)), lots.choice(("flip", "cut"))
        if how == "flip":
            data[at] ^= 1 << lots.randrange(8)
        path.write_bytes(data if how == "flip" else data[:at])
        life = live(partial(work, self.room), self.log)
        about = {"work": work.name, "how": how, "at": at, "file": str(path.relative_to(self.room))}
        return {**about, "kind of file": kind, **self._judge(work, life, path)}

    def _files(self, work: Work) -> dict[str, list[Path]]:
        """What there is to damage, by its name without numbers."""
        kinds: dict[str, list[Path]] = {}
        for path in sorted(self.room.rglob("*")):
            name = str(path.relative_to(self.room))
            hidden = "/." in name or "/ray/" in name or name.startswith(NEVER)
            given = name.startswith(work.given)
            if path.is_file() and path.stat().st_size and not hidden and not given:
                kinds.setdefault(re.sub(r"\d+", "N", name), []).append(path)
        return kinds

    def _judge(self, work: Work, life: Life, damaged: Path | None = None) -> dict[str, Any]:
        """What came of it, by its exit code, its words and its result."""
        named = damaged is not None and self._names(life.said, damaged)
        if life.code == -1:
            outcome = "hangs"
        elif "Traceback" in life.said or life.code not in (0, 2):
            outcome = "traceback"
        elif life.code == 2 and not damaged and not self.compare(work):
            outcome = "equal"  # it was killed when all was done, and is not done twice
        elif life.code == 2:
            outcome = "named" if named else "unnamed"
        else:
            own = str(damaged.relative_to(self.room)) if damaged else ""
            differ = self.compare(work, own)
            if not differ:
                return {"outcome": "equal"}
            if named:
                return {"outcome": "said", "differ": differ[:5]}
            return {"outcome": "silent", "differ": differ[:9], "said": life.said[-600:]}
        return {"outcome": outcome, "said": life.said[-2000 if outcome == "traceback" else -600 :]}

    def _names(self, said: str, damaged: Path) -> bool:
        """Whether the file is named, or its folder, be it a checkpoint's or a model's."""
        folder = damaged.parent
        whole = folder.parent != self.room or folder.name == "clip"
        return damaged.name in said or (whole and str(folder) in said)


def table(rounds: Sequence[dict[str, Any]]) -> str:
    """Rounds by kind and outcome; then each fault."""
    columns = ("equal", "named", "said", *LISTED)
    rows = [f"{'':<28}" + "".join(f"{name:>11}" for name in ("rounds", *columns))]
    for kind in ("kill", "clock", "full", "flip", "cut", *VICTIMS):
        own = [one for one in rounds if kind in (one["kind"], one.get("how"))]
        if not own:
            continue
        counts = Counter(one["outcome"] for one in own)
        name = kind
        if "kills" in own[0]:
            name = f"{kind} ({sum(one['kills'] for one in own)} kills)"
        rows.append(f"{name:<28}{len(own):>11}" + "".join(f"{counts[one]:>11}" for one in columns))
    files = {one["kind of file"] for one in rounds if "kind of file" in one}
    rows.append(f"{len(files)} kinds of files were damaged.")
    for one in rounds:
        if one["outcome"] in LISTED:
            rows.append(json.dumps(one))
    return "\n".join(rows)


def settle() -> None:
    """What each life would do anew, once: import all, and look through what stays."""
    torch.set_num_threads(1)
    for found in pkgutil.walk_packages(pipelines.__path__, "pipelines."):
        if "demo" not in found.name:
            importlib.import_module(found.name)
    gc.collect()
    gc.freeze()


def main(args: Args) -> int:
    settle()
    seed = args.seed or int(time.strftime("%Y%m%d"))
    print(f"seed {seed}", flush=True)
    soak = Soak(args.out, seed, args.ray)
    soak.out.mkdir(parents=True, exist_ok=True)
    if args.ray:
        adopt()
    end = time.monotonic() + 60 * args.minutes
    soak.prepare()
    if args.round is not None:
        print(json.dumps(soak.round(args.round), indent=1))
        return 0
    path = soak.out / f"rounds-{seed}.jsonl"
    rounds = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    with path.open("a") as file:
        while time.monotonic() < end:
            rounds.append(soak.round(len(rounds)))
            file.write(json.dumps(rounds[-1]) + "\n")
            file.flush()
            if rounds[-1]["outcome"] in LISTED:
                print(json.dumps(rounds[-1])[:600], flush=True)
    print(table(rounds))
    return int(any(one["outcome"] in FAULTS for one in rounds))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Args)))
