"""One self-contained page: what was found, how surely, and how it was searched.

Reads a run folder's study and its result.json, nothing else; writes report.html and report.md
beside them. Before `cliptune evaluate`, and while a search is running, it reports val alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines import console
from trainables.errors import DataError


@dataclass(frozen=True)
class Args:
    """What `cliptune report` needs."""

    run: Path
    """the folder of a search, e.g. runs/flickr8k"""


def run(args: Args) -> Path:
    """Write the report of `args.run`, unless the one that is there says the same; the page."""
    if not any((args.run / name).exists() for name in ("study.json", "result.json")):
        raise DataError(
            f"`{args.run}` must hold a study.json (from `cliptune tune`) or a result.json "
            "(from `cliptune evaluate`); neither is there."
        )
    from pipelines.report.report_page import write_report

    paths, changed = write_report(args.run)
    then = f"open {paths[0]} in a browser"
    if not (args.run / "result.json").exists():
        then += f"; to measure on test: cliptune evaluate --run {args.run}"
    if changed:
        console.done(wrote=paths, then=then)
    else:
        console.nothing_to_do(paths[0], then)
    return paths[0]


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("report")
