"""Serve adapters over HTTP: a page to search and compare, and REST for programs.

Several runs on one frozen model stand beside each other and beside zero-shot, chosen by each
request; `POST /v1/adapters/reload` swaps in what was tuned since. `/openapi.json` describes all of
it.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pipelines.console import say, word
from pipelines.ranges import Range, check_ranges
from pipelines.serve.guard import LOCAL
from pipelines.signals import heard
from trainables.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.serve.deploy import Plan

GONE_IN = 10.0  # seconds


@dataclass(frozen=True)
class Args:
    run: tuple[Path, ...]
    """Folders of runs, or a folder that holds some; the best adapter of each is served under the
    folder's name."""
    images: Path | None = None
    """Folder of images to search, at any depth. metadata.csv, .jsonl or .parquet in it, with a
    column `file_name`, gives fields to filter by."""
    store: Path | None = None
    """Instead: the feature store of the images to search; those of train and val."""
    index: Path | None = None
    """Folder that keeps the images' embeddings. Default: index in the first run's folder."""
    host: str = "127.0.0.1"
    """The address to listen at. Another machine reaches only another one, which needs `--token`."""
    port: Annotated[int, Range(1, 65_535)] = 8000
    """The port to listen at."""
    token: str = ""
    """What every request must show: `Authorization: Bearer TOKEN`; the page asks for it. Out of the
    shell's history: `--token=$(cat FILE)`."""
    approximate: bool = False
    """Search large indexes without filters by a graph, which may miss images; how many is measured
    and printed."""

    def __post_init__(self) -> None:
        check_ranges(self)


def run(args: Args) -> None:
    _check(args)
    from pipelines.cluster import connect
    from pipelines.serve.deploy import start, stop

    plan = _plan(args)
    _prepare(plan)
    connect()
    try:
        start(plan)
        shown = f"[{args.host}]" if ":" in args.host else args.host
        say(f"serving at http://{shown}:{args.port}")
        say("next: open it in a browser; /openapi.json is for programs; Ctrl-C ends it")
        with heard(_end):
            while True:
                time.sleep(3600)
    except KeyboardInterrupt:
        say("stopped; the index is kept, and the same command serves again.")
    finally:
        stop()


def _end(*_: object) -> None:
    raise KeyboardInterrupt


def _check(args: Args) -> None:
    if not args.run:
        raise ConfigError("`--run` must name folders of runs, got none.")
    if (args.images is None) == (args.store is None):
        got = "neither" if args.images is None else "both"
        raise ConfigError(f"`--images` or `--store` must say what is searched, got {got}.")
    if args.host not in LOCAL and not args.token:
        raise ConfigError(
            f"`--host {args.host}` lets other machines ask: give a `--token` that they must show."
        )
    if args.token and not re.fullmatch(r"[\w.~+/=-]{16,}", args.token, re.ASCII):
        raise ConfigError("`--token` must be 16 or more of letters, digits and -._~+/=.")
    _check_extra(args.approximate)
    _check_free(args.host, args.port)


def _check_extra(approximate: bool) -> None:
    from importlib.util import find_spec

    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        raise ConfigError("`cliptune serve` needs Ray Serve: pip install 'cliptune[serve]'.")
    if approximate and find_spec("usearch") is None:
        raise ConfigError("`--approximate` needs usearch: pip install 'cliptune[approximate]'.")


def _check_free(host: str, port: int) -> None:
    """Raise where the address is not this machine's, or something listens there. A server that was
    killed is given a few seconds to be gone."""
    end = time.monotonic() + GONE_IN
    while (wrong := _taken(host, port)) is not None:
        if wrong.errno != errno.EADDRINUSE or time.monotonic() > end:
            raise ConfigError(
                f"`--host {host} --port {port}` must be free on this machine, got: "
                f"{wrong.strerror}."
            )
        time.sleep(0.2)


def _taken(host: str, port: int) -> OSError | None:
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError as error:
        return error
    return None


def _plan(args: Args) -> Plan:
    """The server's own processes have other working directories: all paths are whole."""
    from pipelines.serve.deploy import Plan

    def whole(path: Path) -> Path:
        return Path(os.path.abspath(path))  # noqa: PTH100  # keeps links

    runs = tuple(map(whole, args.run))
    images, store = args.images and whole(args.images), args.store and whole(args.store)
    home = whole(args.index or args.run[0] / "index")
    return Plan(runs, images, store, home, args.host, args.port, args.token, args.approximate)


def _prepare(plan: Plan) -> None:
    """Everything that can be wrong is found here, and the index is made, with its progress."""
    from pipelines.search.graph import LEAST
    from pipelines.serve.shelf import load_shelf, loads_once

    gallery = plan.gallery()
    shelf = load_shelf(plan.runs, gallery, plan.home, loads_once(), plan.approximate)
    for one in shelf.adapters.values():
        found = "" if one.index is None else f", {len(one.index.paths):,} images"
        if one.index is not None and plan.approximate:
            graph = one.index.graph
            few = f"exact: under {LEAST:,} rows, or no place to keep a graph"
            found += f"; approximate: {graph.told()}" if graph else f"; {few}"
        say(f"{word(one.name)}: {one.model.name}, {one.task}{found}")


if __name__ == "__main__":
    from pipelines.cli import stage_main

    stage_main("serve")
