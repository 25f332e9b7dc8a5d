"""The index of a search: embeddings of image files, kept so that each file is embedded once.

Flows in: a model and the files of a folder. Flows out: their embeddings (N, e). The index of one
model holds files of any number of folders; a file whose size or time of change is another one is
embedded again. `files.json`, written last, names the file of embeddings and its hash, so a killed
run leaves the index before it or the one after it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pipelines.search.exact import Top, top
from pipelines.use.embedding import embed_files
from pipelines.use.files import Faults
from pipelines.use.model import Model
from trainables.data.made_once import alone
from trainables.errors import DataError
from trainables.files import read_json, sha256_bytes, sha256_file, sha256_json, write_bytes
from trainables.training.predict import embed_images

FORMAT = "cliptune-index-1"
PART = 256  # images embedded between two looks at the clock
SAVE_EVERY = 30.0  # seconds; the whole index is written each time
Stamp: TypeAlias = tuple[int, int]  # size in bytes, mtime in ns: what tells that a file changed


@dataclass
class Entries:
    """What the index knows, by absolute path."""

    embeds: dict[str, tuple[Stamp, Tensor]] = field(default_factory=dict)  # (e,) each, unit length
    bad: dict[str, tuple[Stamp, str]] = field(default_factory=dict)  # why they have no embedding

    def has(self, name: str, stamp: Stamp) -> bool:
        """Whether the file is known as it is now."""
        known = self.embeds.get(name) or self.bad.get(name)
        return known is not None and known[0] == stamp


@dataclass(frozen=True)
class Indexed:
    """The images of one folder."""

    paths: list[Path]  # N
    embeds: Tensor  # (N, e) float32, of unit length
    new: int  # files embedded just now
    bad: dict[Path, str]  # files without an embedding, and why
    kept: Path | None  # where the embeddings are for the next time

    def top(self, asked: Tensor, k: int, mask: Tensor | None = None) -> Top:
        """The `k` images nearest to each query, exactly: cosines (Q, k) float32, greatest first,
        and their rows (Q, k) int64, which number `paths`. Of equal cosines the lower row is first.

        `asked` (Q, e) is float32, of unit length; `mask` (N,) bool leaves only the rows that it is
        true for. Where fewer than `k` are left, the answer is as narrow as they are many. Nothing
        is changed, so threads may ask at once.
        """
        return top(self.embeds, asked, k, mask)


def index_files(model: Model, paths: Sequence[Path], home: Path | None, faults: Faults) -> Indexed:
    """The embeddings of `paths`; what is new is embedded, and kept in `home` if there is one. To
    `faults`, of which there are none yet, goes what is new and bad."""
    if home is None:
        return _fill(model, paths, Entries(), None, faults)
    folder = home / model.sees
    with alone(folder / "index.lock") as locked:
        if not locked:
            print(f"warning: `{folder}` cannot be written: nothing is kept", file=sys.stderr)
        return _fill(model, paths, _load(folder), folder if locked else None, faults)


def _fill(
    model: Model, paths: Sequence[Path], known: Entries, folder: Path | None, faults: Faults
) -> Indexed:
    stamps = {path: _stamp(path) for path in paths}
    fresh = [path for path, stamp in stamps.items() if not known.has(_key(path), stamp)]
    new, saved = 0, time.monotonic()
    for names, data in embed_files(model.adapter, fresh, faults, "index", PART):
        embeds = embed_images(model.adapter, data).cpu()
        for path, embed in zip(names, embeds, strict=True):
            known.bad.pop(_key(path), None)
            known.embeds[_key(path)] = stamps[path], embed
        new += len(names)
        if time.monotonic() - saved > SAVE_EVERY:
            _save(folder, known)
            saved = time.monotonic()
    for path, reason in faults.reasons.items():
        known.embeds.pop(_key(path), None)
        known.bad[_key(path)] = stamps[path], reason
    if fresh:
        _save(folder, known)
    good = [path for path in paths if _key(path) in known.embeds]
    found = [known.embeds[_key(path)][1] for path in good]
    return Indexed(
        paths=good,
        embeds=torch.stack(found) if found else torch.zeros(0, model.backbone.embed_dim),
        new=new,
        bad={path: known.bad[_key(path)][1] for path in paths if _key(path) in known.bad},
        kept=folder,
    )


def _key(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100  # `Path.absolute` keeps `..`


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:  # gone since the folder was listed: reading it will say so
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _load(folder: Path) -> Entries:
    """What is kept in `folder`; nothing where a byte is not as it was written."""
    if not (folder / "files.json").is_file():
        return Entries()
    try:
        value = read_json(folder / "files.json")
        own = value.pop("sha256", None) if isinstance(value, dict) else None
    except DataError:
        own = None
    if own is None or own != sha256_json(value) or value.get("format") != FORMAT:
        return _start_anew(folder)
    path = folder / f"embeds-{value['embeds']}.safetensors"
    if not path.is_file() or sha256_file(path) != value["embeds"]:
        return _start_anew(folder)
    rows = load_file(path)["embeds"].unbind()
    good = zip(value["files"], rows, strict=True)
    return Entries(
        {name: ((size, changed), row) for (name, size, changed), row in good},
        {name: ((size, changed), reason) for name, size, changed, reason in value["bad"]},
    )


def _start_anew(folder: Path) -> Entries:
    print(f"warning: the index in `{folder}` is damaged: it is made anew", file=sys.stderr)
    return Entries()


def _save(folder: Path | None, known: Entries) -> None:
    if folder is None:
        return
    rows = [row for _, row in known.embeds.values()]
    data = save({"embeds": torch.stack(rows) if rows else torch.zeros(0, 0)})
    value = {
        "format": FORMAT,
        "embeds": sha256_bytes(data),
        "files": [[name, *stamp] for name, (stamp, _) in known.embeds.items()],
        "bad": [[name, *stamp, reason] for name, (stamp, reason) in known.bad.items()],
    }
    path = folder / f"embeds-{value['embeds']}.safetensors"
    write_bytes(path, data, durable=False)
    text = json.dumps(value | {"sha256": sha256_json(value)})
    write_bytes(folder / "files.json", text.encode(), durable=False)
    for old in folder.glob("embeds-*.safetensors"):
        if old != path:
            old.unlink()
