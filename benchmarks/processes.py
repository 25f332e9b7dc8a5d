"""CPU seconds of commands with all that they start, daemons and killed workers too.

Flows in: commands. Flows out: a clock that counts their CPU seconds. Ray's workers are children of
a daemon that does not wait for them, so `RUSAGE_CHILDREN` misses them. Here, what a command leaves
behind becomes this process's child (Linux' subreaper), and every process is read from /proc until
it is gone; one that another process reaps loses what it did since the last look.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

PROC = Path("/proc")
TICKS = os.sysconf("SC_CLK_TCK")
LOOK = 0.05  # seconds between two looks
LINGER = 30.0  # seconds that what a command left behind may take to end
PR_SET_CHILD_SUBREAPER = 36


class ProcessTree:
    """Runs commands; `seconds` is what they used in all."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.used: dict[tuple[int, str], float] = {}  # CPU seconds by pid and start

    def seconds(self) -> float:
        return sum(self.used.values())

    def run(self, command: Sequence[str], env: Mapping[str, str], cwd: Path) -> None:
        """Run `command` to its end, and wait for all that it started. It must succeed."""
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command, env=env, cwd=cwd, stdout=log, stderr=subprocess.STDOUT
            )
            how = os.WEXITED | os.WNOHANG | os.WNOWAIT  # it can be read until `wait`
            while os.waitid(os.P_PID, process.pid, how) is None:
                self._look()
                time.sleep(LOOK)
            self._look()
            if process.wait():
                log.seek(0)
                said = log.read().decode(errors="replace")
                raise RuntimeError(f"{' '.join(command)} failed:\n{said[-4000:]}")
        self._reap()

    def _reap(self) -> None:
        end = time.monotonic() + LINGER
        while time.monotonic() < end:
            self._look()
            try:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    time.sleep(LOOK)
            except ChildProcessError:  # none is left
                return
        raise RuntimeError(f"processes of a command were still there after {LINGER:.0f} s.")

    def _look(self) -> None:
        """Read the CPU time of every offspring of this process."""
        seen: dict[int, tuple[int, str, float]] = {}  # parent, start, CPU seconds
        for entry in PROC.iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rpartition(")")[2].split()
                except OSError:  # gone meanwhile
                    continue
                cpu = (int(fields[11]) + int(fields[12])) / TICKS  # user and system, all threads
                seen[int(entry.name)] = (int(fields[1]), fields[19], cpu)
        family = {os.getpid()}
        while grown := {pid for pid, (parent, *_) in seen.items() if parent in family} - family:
            family |= grown
        for pid in family - {os.getpid()}:
            _, start, cpu = seen[pid]
            self.used[pid, start] = cpu
