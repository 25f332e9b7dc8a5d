"""Stages run by other stages: each in its own process, as a user would type it."""

from __future__ import annotations

import shlex
import subprocess
import sys

from pipelines.console import say


def run_stage(*words: object) -> None:
    """Run one command and wait; its failure is ours."""
    stage, *flags = map(str, words)
    say(f"\n$ cliptune {stage} {shlex.join(flags)}")
    code = subprocess.run(
        [sys.executable, "-m", f"pipelines.{stage}", *flags], check=False
    ).returncode
    if code:
        sys.exit(code)
