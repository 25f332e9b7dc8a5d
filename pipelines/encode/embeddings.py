"""`cliptune encode --embeddings`: vectors that were made elsewhere become a feature store.

Flows in: a folder of embeddings. Flows out: a store like any other, half precision kept, with the
records of its rows beside it, test sealed among them, and in the place of a model either the one
that was named or the table of the texts that came along.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from pipelines import console
from pipelines.encode.args import Args
from pipelines.encode.finished import complete, write_manifest
from pipelines.encode.layout import Given, read_layout
from pipelines.encode.scan import NAMES, Scan, captions, digest, numbered, record, records, scan
from pipelines.encode.writer import tell_captions
from pipelines.hold import hold
from pipelines.sources.vectors import Vectors
from trainables.data.batches import Tokens
from trainables.data.shards import FORMAT as SHARDS
from trainables.data.shards import RECORDS, SCHEMA
from trainables.data.store import FORMAT, MANIFEST
from trainables.data.tensor_file import Array, Layout, TensorFile
from trainables.data.verified import noted
from trainables.errors import ConfigError, DataError
from trainables.files import now, sha256_file, sha256_json, write_hashed
from trainables.media.preprocess import decoder_versions
from trainables.models.backbone import Backbone
from trainables.models.cleaning import repairs, versions
from trainables.models.given_texts import ALL, END, GivenWords, write_given
from trainables.models.load import load_backbone

BLOCK = 2**20  # token ids copied at a time


def encode_given(args: Args) -> tuple[Path, bool]:
    """The store's folder, and whether this call had to write it."""
    assert args.embeddings is not None
    given = read_layout(args.embeddings.absolute(), args.captions)
    backbone = (
        load_backbone(args.backbone, args.revision, clean_text=args.clean_text)
        if args.backbone
        else None
    )
    if backbone is not None and backbone.embed_dim != given.images.width:
        raise ConfigError(
            f"`--backbone {args.backbone}` makes vectors of width {backbone.embed_dim}, those of "
            f"`{given.folder}` have {given.images.width}: they are of another model."
        )
    made_with: Any = args.logit_scale
    if backbone:
        made_with = [backbone.fingerprint, versions(backbone.cleaning)]
    files = {str(p.relative_to(given.folder)): sha256_file(p) for p in given.paths}
    said = [] if args.captions is None else [sha256_file(p) for p in _below(args.captions)]
    key = sha256_json([FORMAT, "given", files, args.split, made_with, said])[:16]
    folder = args.out.absolute() / key
    if complete(folder):
        return folder, False
    texts = None if backbone else ClassTexts(given)
    if backbone is not None and (given.class_texts is not None or given.pairs is not None):
        console.say("`--backbone` makes the embeddings of texts; those given are left alone.")
        given = replace(given, class_texts=None, pairs=None)
    with ExitStack() as kept:
        found = scan(given, args.split, _tokenizer(backbone, texts), kept)
        _check_classes(given, texts, found)
        kept.enter_context(hold(folder))
        _write(args, given, folder, found, backbone, texts, key)
    return folder, True


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


class ClassTexts:
    """The texts of classes, in each template and in all together."""

    def __init__(self, given: Given) -> None:
        self.texts: list[str] = []
        self.templates: list[str] = []
        self.embeds = torch.zeros(0, given.images.width)
        self.names: list[str] = []
        if given.class_texts is None:
            return
        given.class_texts.check()
        self.texts = [r["template"].replace("{}", r["class_name"]) for r in given.class_rows]
        self.templates = list(dict.fromkeys(r["template"] for r in given.class_rows))
        self.names = list(dict.fromkeys(r["class_name"] for r in given.class_rows))
        self.embeds = torch.from_numpy(np.concatenate(list(given.class_texts.chunks()))).float()
        self._check_whole(given)
        if ALL not in self.templates:
            self.embeds = torch.cat([self.embeds, self._together(given)])
            self.texts += self.names

    def _check_whole(self, given: Given) -> None:
        have = {(row["template"], row["class_name"]) for row in given.class_rows}
        for template in self.templates:
            for name in self.names:
                if (template, name) not in have:
                    raise DataError(
                        f"`{given.folder / 'text_metadata'}` must have each class in each "
                        f"template, got no `{name}` in `{template}`."
                    )

    def _together(self, given: Given) -> Tensor:
        """The mean of a class's templates, each of unit length before: (C, e)."""
        place = {name: n for n, name in enumerate(self.names)}
        rows = torch.tensor([place[row["class_name"]] for row in given.class_rows])
        sums = torch.zeros(len(place), self.embeds.shape[1])
        sums.index_add_(0, rows, F.normalize(self.embeds, dim=-1))
        return F.normalize(sums, dim=-1)


class _Numbers:
    """Captions without a text tower: the class text that they name, or a number of their own."""

    def __init__(self, texts: ClassTexts) -> None:
        self.known = GivenWords({text: row for row, text in enumerate(texts.texts)})
        self.first = len(texts.texts) + 1

    def __call__(self, texts: list[str], first: int) -> tuple[Tokens, int, int]:
        ids = torch.full((len(texts), 2), END, dtype=torch.int64)
        ids[:, 0] = torch.arange(len(texts)) + self.first + first
        return Tokens(ids.flatten(), torch.arange(len(texts) + 1) * 2), 0, 0


def _tokenizer(backbone: Backbone | None, texts: ClassTexts | None) -> Any:
    if texts is not None:
        return _Numbers(texts)
    assert backbone is not None
    return lambda some, _: (*backbone.tokenize(some), repairs(some, backbone.cleaning))


def _check_classes(given: Given, texts: ClassTexts | None, found: Scan) -> None:
    """Texts of other classes would score every image wrong."""
    if texts is None or not texts.names:
        return
    known = GivenWords({name: n for n, name in enumerate(texts.names)})
    for name in found.labels:
        try:
            known.row(name)
        except DataError:
            where = given.folder / "text_metadata"
            raise DataError(
                f"`{where}` has texts of other classes: none of `{name}`, which images have, but "
                f"of {', '.join(f'`{one}`' for one in sorted(texts.names)[:3])}, ..."
            ) from None


def _write(
    args: Args,
    given: Given,
    folder: Path,
    found: Scan,
    backbone: Backbone | None,
    texts: ClassTexts | None,
    key: str,
) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder / RECORDS, ignore_errors=True)
    (folder / RECORDS).mkdir(parents=True)
    if texts is not None:
        write_given(folder / "backbone", texts.texts, texts.embeds, args.logit_scale)
        backbone = load_backbone(str(folder / "backbone"))
    assert backbone is not None
    pairs = given.pairs
    files = {name: _SplitFile(folder, name, found, given, bool(pairs)) for name in found.splits}
    every = pairs.chunks() if pairs else iter(())
    number = 0
    bar = tqdm(total=len(found.split), unit="row", desc="write")
    for vectors, rows in zip(given.images.chunks(), records(given), strict=True):
        beside = next(every) if pairs else None
        split = found.split[number : number + len(rows)]
        for name, file in files.items():
            mine = np.flatnonzero(split == NAMES.index(name))
            if len(mine):
                file.put(vectors[mine], None if beside is None else beside[mine])
                file.note([(number + n, rows[n], vectors[n]) for n in mine.tolist()])
        number += len(rows)
        bar.update(len(rows))
    bar.close()
    entries = {name: file.close() for name, file in files.items()}
    shards = [file.shard() for file in files.values()]
    counts = {n: {"images": e["images"], "captions": e["captions"]} for n, e in entries.items()}
    write_hashed(
        folder / RECORDS / "manifest.json",
        {
            **{"format": SHARDS, "source": {"embeddings": str(given.folder)}, "splits": counts},
            **{"shards": shards, "classes": found.labels, "quarantined": {}, "notes": {}},
            **{"embedded": True, "name": given.folder.name, "created": now()},
            "templates": texts.templates if texts is not None else [],
            "vectors": {
                **{"rows": given.images.rows, "width": given.images.width},
                **{"half": given.images.half, "parts": len(given.images.parts)},
            },
        },
    )
    made_with = {"name": backbone.name, "revision": backbone.revision}
    opened = {name: entry for name, entry in entries.items() if name != "test"}
    truncated = sum(entry["truncated_captions"] for entry in entries.values())
    write_manifest(
        folder,
        args,
        {
            **{"format": FORMAT, "key": key, "embeddings": str(given.folder)},
            **{"shards": str(folder / RECORDS), "shards_sha256": sha256_json(shards)},
            **{"text_tower": texts is None, "texts": _kind(pairs, texts)},
            "backbone": made_with | {"fingerprint": backbone.fingerprint},
            **{"preprocess": asdict(backbone.preprocess), "decoder": decoder_versions()},
            **({"cleaning": cleaning} if (cleaning := versions(backbone.cleaning)) else {}),
            **{"views": 0, "data_seed": 0, "pixels": False, "activations_bytes": 0},
            **{"splits": opened, "truncated_captions": truncated, "created": now()},
        },
    )
    tell_captions(entries, backbone.context_length)


def _kind(pairs: Vectors | None, texts: ClassTexts | None) -> str:
    """Where the embeddings of texts are from."""
    if texts is None:
        return "tower"
    return "pairs" if pairs is not None else "classes" if texts.names else "none"


class _SplitFile:
    """One split: its tensors, its ids and its records, written as the rows come."""

    def __init__(self, folder: Path, name: str, found: Scan, given: Given, paired: bool) -> None:
        self.name, self.words, self.labels = name, found.words[name], found.labels
        self.paired = given.pairs is not None
        inside = folder / RECORDS if name == "test" else folder
        self.path = inside / f"{name}.safetensors"
        rows, width = found.rows(name), given.images.width
        dtype = np.float16 if given.images.half else np.float32
        offsets = self.words.offsets()
        layout: Layout = {
            "token_offsets": (np.int64, offsets.shape),
            "caption_rows": (np.int64, (self.words.captions,)),
            "groups": (np.int64, rows.shape),
            "token_ids": (np.int32, (int(offsets[-1]),)),
            "image_embeds": (dtype, (len(rows), width)),
        }
        if paired:
            assert given.pairs is not None
            kind = np.float16 if given.pairs.half else np.float32
            layout = {**layout, "text_embeds": (kind, (self.words.captions, width))}
        self.path.unlink(missing_ok=True)
        self.file = TensorFile(self.path, layout)
        self.file.allocate()
        self.file.put("token_offsets", 0, offsets)
        counts = found.captions[rows]
        self.file.put("caption_rows", 0, np.repeat(np.arange(len(rows)), counts))
        self.file.put("groups", 0, numbered(found.groups[rows]).astype(np.int64))
        for start, ids in self._ids():
            self.file.put("token_ids", start, ids)
        self.images, self.done = len(rows), 0
        self.ids = self.path.with_suffix(".ids.json").open("w", encoding="utf-8")
        self.table = folder / RECORDS / f"{name}-00000.parquet"
        self.writer = pq.ParquetWriter(self.table, SCHEMA, write_statistics=False)

    def _ids(self) -> Iterator[tuple[int, Array]]:
        self.words.ids.seek(0)
        start = 0
        while block := self.words.ids.read(BLOCK * 4):
            ids = np.frombuffer(block, np.int32)
            yield start, ids
            start += len(ids)

    def put(self, vectors: Array, texts: Array | None) -> None:
        self.file.put("image_embeds", self.done, vectors)
        if texts is not None:
            self.file.put("text_embeds", self.done, texts)

    def note(self, rows: list[tuple[int, dict[str, Any], Array]]) -> None:
        """What stands beside the vectors."""
        made = []
        for number, row, vector in rows:
            one = record(row, number, self.labels)
            if one["captions"] or self.paired:
                one["captions"] = captions(one, number, self.paired)
            made.append(
                {
                    **one,
                    **{"image": b"", "width": 0, "height": 0},
                    **{"split": self.name, "sha256": digest(vector)},
                }
            )
        self.writer.write_table(pa.Table.from_pylist(made, SCHEMA))
        names = ",\n".join(_quoted(one["id"]) for one in made)
        self.ids.write((",\n" if self.done else "[\n") + names)
        self.done += len(made)

    def close(self) -> dict[str, Any]:
        self.file.sync()
        self.ids.write("\n]\n")
        self.ids.close()
        self.writer.close()
        return {
            "images": self.images,
            "captions": self.words.captions,
            "truncated_captions": self.words.truncated,
            "repaired_captions": self.words.repaired,
            "bytes": self.path.stat().st_size,
            "sha256": noted(self.path),
        }

    def shard(self) -> dict[str, Any]:
        about = {"file": self.table.name, "split": self.name, "rows": self.images}
        return about | {"captions": self.words.captions, "sha256": sha256_file(self.table)}


def _quoted(text: str) -> str:
    import json

    return json.dumps(text, ensure_ascii=False)
