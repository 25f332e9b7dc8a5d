"""Commands that a stage runs for its user: each in its own process, shown as it would be typed.

Flows in: a stage and its flags. Flows out: the command's exit code.
"""

from __future__ import annotations

import shlex
import subprocess
import sys

from pipelines.console import say


def typed(*words: object) -> str:
    """The line as the user would type it."""
    return f"cliptune {shlex.join(map(str, words))}"


def command(*words: object) -> int:
    """Run `words`, a stage and its flags; its exit code."""
    say(f"\n$ {typed(*words)}")
    stage, *flags = map(str, words)
    return subprocess.run(
        [sys.executable, "-m", f"pipelines.{stage}", *flags], check=False
    ).returncode


def run_stage(*words: object) -> None:
    """Run a stage; if it fails, this process ends with the same exit code."""
    if code := command(*words):
        sys.exit(code)
