"""Commands as their user starts them, with a Ray of their own, and the end of its processes.

Flows in: a work, a room, and which process is to be killed. Flows out: the command as a process of
its own. What a life leaves behind falls to this process, which ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import re
import sys
import time
from pathlib import Path

import psutil

from tests.soak.life import Life
from tests.soak.works import ENCODE, LORA, WITHOUT_STOPS, WORKS, Work, search

PR_SET_CHILD_SUBREAPER = 36  # of Linux's prctl: orphans become children of this process
CPUS = 4  # that Ray is told of: four trials at once
LASTS = 30.0  # seconds, a command before one has been seen to its end
WAITS = 30.0  # seconds in which what a command leaves behind should end by itself
VICTIMS = {  # how often, and the first word of their command lines
    "worker": (5, r"ray::(?!IDLE|\w*Agent)"),  # that trains, encodes, or looks after those who do
    "agent": (1, r"ray::\w*Agent"),
    "raylet": (2, r".*/raylet$"),
    "gcs": (2, r".*/gcs_server$"),
    "driver": (3, ""),
    "all": (2, ""),
}
WORKS_OF_RAY = (
    *(work for work in WORKS if work.ray is not None),
    search("a group", "group", 3, *WITHOUT_STOPS, "--workers-per-trial", "2", here=False),
    Work(  # with more threads than one process, it rounds otherwise
        "encode",
        (*ENCODE, "--workers", "1"),
        *(("encoded",), ("encoded",)),
        reads=("shards", "clip", "encoded"),
        ray=(),
        here=False,
    ),
    Work(
        "train together",
        (*LORA, "--workers", "2", "--out", "ROOM/pair"),
        *(("pair/best", "pair/last"), ("pair",)),
        reads=("features", "clip", "pair"),
        ray=(),
        here=False,
    ),
)


def start(work: Work, room: Path, temporary: Path) -> None:
    """Become the command. Ray's sockets want a short path."""
    own = {"RAY_TMPDIR": str(temporary), "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": CPUS})}
    stage, *flags = work.line(room)
    words = (sys.executable, "-m", f"pipelines.{stage}", *flags, *(work.ray or ()))
    os.execve(sys.executable, words, os.environ | {"OMP_NUM_THREADS": "1"} | own)


def strike(victim: str, lots: random.Random, command: int) -> bool:
    """Kill the process `command`, all it started, or one of those, once there is one; whether it
    came to that."""
    driver = psutil.Process(command)
    while driver.status() != psutil.STATUS_ZOMBIE:
        found = [driver, *driver.children(recursive=True)]
        if victim == "driver":
            found = found[:1]
        elif victim != "all":
            found = [one for one in found if re.match(VICTIMS[victim][1], _name(one))]
            found = lots.sample(found, min(1, len(found)))
        for one in found:
            _kill(one)
        if found:
            return True
        time.sleep(0.02)
    return False


def _name(process: psutil.Process) -> str:
    try:
        return next(iter(process.cmdline()), "")
    except psutil.Error:  # it has just ended
        return ""


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


def last_words(life: Life) -> bool:
    """Whether Ray's own C++ ended the command and said why: no Python came to say more."""
    said = re.search(r"\.(cc|h):\d+: ", life.said)
    return life.code == 1 and said is not None and "error: " not in life.said


def adopt() -> None:
    """From here on, whoever loses its parent among those that this process started is its own."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def sweep(seconds: float = WAITS) -> list[str]:
    """Wait for all that is left of a life, end what does not by itself, and say what that was."""
    left = psutil.wait_procs(psutil.Process().children(recursive=True), seconds)[1]
    names = [_name(one) for one in left]
    while left:
        for one in left:
            _kill(one)
        left = psutil.wait_procs(psutil.Process().children(recursive=True), 5)[1]
    return names
