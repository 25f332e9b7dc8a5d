"""Opening a feature store, and embedding a split that has none.

Flows in: a feature store's folder (written by `cliptune encode`), or shards to embed right here.
Flows out: `SplitFeatures`. A store is mapped, not read: all trials of a search share its pages.

A store holds `train.safetensors` and `val.safetensors`, the images' ids as JSON, and a manifest,
written last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainables.data.batches import Tokens
from trainables.data.shards import POOL, Seal, ShardSet, captions_of, chunks
from trainables.data.store import again, check_file, hashes, read_manifest
from trainables.errors import DataError, unknown
from trainables.features.frames import STILLS, Frames, embed_frames
from trainables.features.lazy_parts import LazyParts
from trainables.features.manifest import precision_of
from trainables.features.split import SplitFeatures
from trainables.features.texts import TEXT_COLUMNS, read_texts
from trainables.files import read_json
from trainables.models.backbone import Backbone
from trainables.models.image_tower import frozen_embeds
from trainables.models.load import load_backbone

Row = Mapping[str, Any]


def backbone_of(
    folder: Path, device: str = "cpu", load: Callable[..., Backbone] = load_backbone
) -> Backbone:
    """The backbone that a store was made with, in the store's precision; texts are mended where the
    store's were. Raises where its weights have changed since. `load` is for who has it maybe
    already.

    >>> backbone_of(features).embed_dim
    16
    """
    manifest = read_manifest(folder)
    for name in hashes(manifest):
        if name.startswith("backbone/"):  # of a store that has its own
            check_file(folder, manifest, name)
    made_with, cleaned = manifest["backbone"], "cleaning" in manifest
    how = (device, precision_of(folder), cleaned)
    backbone = load(made_with["name"], made_with["revision"], *how)
    if backbone.fingerprint != made_with["fingerprint"]:
        raise DataError(
            f"`{made_with['name']}` has other weights than those of `{folder}`: fingerprint "
            f"{backbone.fingerprint[:12]}, expected {made_with['fingerprint'][:12]}. Restore them, "
            "or run `cliptune encode` again."
        )
    return backbone


def open_features(
    folder: Path | str, split: str, backbone: Backbone | None = None
) -> SplitFeatures:
    """A split of a finished store, mapped: pages are read on first use and shared by processes.

    `backbone`, the store's own, is needed for what is made on first use: texts, views, hidden
    states.

    >>> val = open_features(features, "val")
    >>> val.image_embeds.shape  # (N, e)
    torch.Size([12, 16])
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    name = POOL if POOL in manifest["splits"] and split in ("train", "val") else split
    if name not in manifest["splits"]:
        raise DataError(f"`{folder}`: " + unknown("split", split, manifest["splits"]))
    if backbone is not None:
        _check_own(folder, manifest, backbone)
    lazy = None if backbone is None else LazyParts(backbone, name, folder / "lazy", manifest)
    views = manifest["views"] if split == "train" else 0
    truncated = manifest["splits"][name]["truncated_captions"]
    return _read(folder, manifest, name, truncated, views, lazy)


def _read(
    folder: Path,
    manifest: Mapping[str, Any],
    name: str,
    truncated: int,
    views: int,
    lazy: LazyParts | None,
) -> SplitFeatures:
    """The tensors and ids called `name` of a store, each checked against its hash."""
    path = check_file(folder, manifest, f"{name}.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        ids = read_json(check_file(folder, manifest, f"{name}.ids.json"))
        if not isinstance(ids, list) or len(ids) != len(tensors["image_embeds"]):
            raise DataError(f"`{folder / name}.ids.json` must have an id for each image.")
        return SplitFeatures(
            ids=ids,
            image_embeds=tensors["image_embeds"],
            pixels=tensors.get("pixels"),
            frame_embeds=tensors.get("frame_embeds"),
            tokens=Tokens(tensors["token_ids"], tensors["token_offsets"]),
            caption_rows=tensors["caption_rows"],
            groups=tensors["groups"],
            truncated=truncated,
            views=views,
            lazy=lazy,
            given_texts=tensors.get("text_embeds"),
        )
    except (SafetensorError, KeyError) as error:
        raise DataError(f"`{path}` is damaged ({error}); run {again(manifest)}.") from error


def _check_own(folder: Path, manifest: Mapping[str, Any], backbone: Backbone) -> None:
    """Raise unless `backbone` is the store's own: all that read the store share what is made with
    it."""
    fingerprint, precision = manifest["backbone"]["fingerprint"], manifest.get("precision", "fp32")
    if backbone.fingerprint != fingerprint:
        raise DataError(
            f"`{folder}` was made with the backbone {fingerprint[:12]}, got "
            f"{backbone.fingerprint[:12]}."
        )
    if backbone.precision != precision:
        raise DataError(
            f"`{folder}` was computed in {precision}, the backbone given is in "
            f"{backbone.precision}."
        )
    for name, parameter in backbone.model.named_parameters():
        if parameter.requires_grad:
            raise DataError(
                f"`{folder}` needs its backbone as it was, frozen; in the one given, `{name}` is "
                "trained."
            )


def embed_split(
    backbone: Backbone,
    shards: ShardSet,
    split: str,
    *,
    seal: Seal | None = None,
    pixels: bool = False,
    batch_size: int = 64,
    seen: Frames = STILLS,
    done: Callable[[int], object] = int,
) -> SplitFeatures:
    """The clean view of a split, embedded in this process and kept in memory, in the precision of
    `backbone`: `evaluate` opens test in this way. Finished embeddings are read, not made. `done` is
    called with the number of images of each batch."""
    if shards.embedded:
        rows = shards.rows(split, TEXT_COLUMNS, seal)
        kept = {"texts": [text for row in rows for text in captions_of(row)]}
        store, path = shards.folder.parent, shards.embeddings(split, seal)
        name = path.relative_to(store).with_suffix("").as_posix()
        lazy = LazyParts(backbone, split, kept=kept)
        return _read(store, read_manifest(store), name, 0, 0, lazy)
    texts = read_texts(backbone, shards.rows(split, TEXT_COLUMNS, seal))
    embeds, of_frames, squares = [], [torch.zeros(0, seen.count, backbone.embed_dim)], []
    rows = shards.rows(split, ["id", "image"], seal)
    for square in _squares(backbone, rows, max(1, batch_size // max(1, seen.count)), seen):
        if seen.count:
            means, each = embed_frames(backbone, square)
            embeds.append(means)
            of_frames.append(each)
        else:
            embeds.append(frozen_embeds(backbone, square))
        if pixels:
            squares.append(square)
        done(len(square))
    size = backbone.preprocess.size
    return SplitFeatures(
        ids=texts.ids,
        image_embeds=torch.cat([torch.zeros(0, backbone.embed_dim), *embeds]),
        pixels=torch.cat([torch.zeros(0, 3, size, size, dtype=torch.uint8), *squares])
        if pixels
        else None,
        frame_embeds=torch.cat(of_frames) if seen.count else None,
        tokens=texts.tokens,
        caption_rows=texts.caption_rows,
        groups=texts.groups,
        truncated=texts.truncated,
        lazy=LazyParts(backbone, split, kept={"texts": texts.texts}),
    )


def _squares(
    backbone: Backbone, rows: Iterable[Row], batch_size: int, frames: Frames
) -> Iterator[Tensor]:
    for chunk in chunks(rows, batch_size):
        yield torch.stack([frames.squares(backbone.preprocess, row["image"]) for row in chunk])
