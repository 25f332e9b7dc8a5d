"""`cliptune encode --embeddings`: vectors that were made elsewhere become a feature store.

Flows in: a folder of embeddings. Flows out: a store like any other, half precision kept, with the
records of its rows beside it, test sealed among them. In the place of a model it has the backbone
that `--backbone` names, or the table of the texts that came along.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pipelines import console
from pipelines.encode.args import Args
from pipelines.encode.class_texts import ClassTexts, Numbers, check_classes
from pipelines.encode.finished import complete, write_manifest
from pipelines.encode.layout import Given, read_layout
from pipelines.encode.scan import NAMES, Scan, records, scan
from pipelines.encode.split_file import SplitFile
from pipelines.encode.writer import tell_captions
from pipelines.hold import hold
from pipelines.sources.vectors import Vectors
from trainables.data.shards import FORMAT as SHARDS
from trainables.data.shards import RECORDS
from trainables.data.store import FORMAT, MANIFEST
from trainables.errors import ConfigError
from trainables.files import now, sha256_file, sha256_json, write_hashed
from trainables.media.preprocess import decoder_versions
from trainables.models.backbone import Backbone
from trainables.models.cleaning import repairs, versions
from trainables.models.given_texts import write_given
from trainables.models.load import load_backbone


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
        check_classes(given, texts, found.labels)
        kept.enter_context(hold(folder))
        _write(args, given, folder, found, backbone, texts, key)
    return folder, True


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def _tokenizer(backbone: Backbone | None, texts: ClassTexts | None) -> Any:
    if texts is not None:
        return Numbers(texts)
    assert backbone is not None
    return lambda some, _: (*backbone.tokenize(some), repairs(some, backbone.cleaning))


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
    files = {name: SplitFile(folder, name, found, given, bool(pairs)) for name in found.splits}
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
    """Where the embeddings of texts come from."""
    if texts is None:
        return "tower"
    return "pairs" if pairs is not None else "classes" if texts.names else "none"
