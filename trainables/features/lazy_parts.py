"""Features made of a split on first use, once, for all trials of all searches.

Flows in: a feature store's folder and its backbone. Flows out: the frozen text tower's embeddings
of the captions, the captions in a language model's tokens, augmented views of the images, states of
the image tower's lower blocks. They are kept in the store's sub-folder `lazy/`. The store's own
files never change, and its name is a hash of weights, preprocessing, decoder, data seed and shards,
so no file here can be stale. Without a folder (test, in memory) nothing is kept.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainables.data.batches import Tokens
from trainables.data.made_once import Put, Tensors, alone, made_once, mapped
from trainables.data.shards import CAPTION_COLUMNS, ShardSet, captions_of, chunks
from trainables.data.tensor_file import Layout
from trainables.errors import DataError
from trainables.features.hidden_states import LowerStates, reading_pays
from trainables.hardware import recomputes
from trainables.media.images import decode
from trainables.media.preprocess import decoder_versions, view_of
from trainables.models.backbone import Backbone
from trainables.models.image_tower import frozen_embeds, lower
from trainables.models.text_tower import embed_text

if TYPE_CHECKING:
    from trainables.models.language_model import LanguageModel

WORDS = 1  # raise it when `LanguageModel.tokenize` makes other tokens of a text
CHUNK = 64  # images decoded and embedded at a time


@dataclass(frozen=True)
class LazyParts:
    """What one split can give beyond its store's own files."""

    backbone: Backbone
    split: str
    folder: Path | None = None  # `lazy/`, or None: nothing is kept on disk
    manifest: dict[str, Any] = field(default_factory=dict)  # the store's
    kept: dict[str, Any] = field(default_factory=dict)  # in this process

    def _path(self, name: str) -> Path | None:
        return None if self.folder is None else self.folder / name

    def text_embeds(self, tokens: Tokens) -> Tensor:
        """The frozen text tower's embeddings of all captions, not normalised: (M, e)."""

        def fill(put: Put) -> None:
            put("text_embeds", 0, embed_each_once(self.backbone, tokens).numpy())

        if "text" not in self.kept:
            path = self._path(f"text-{self.split}.safetensors")
            layout = {"text_embeds": (np.float32, (len(tokens), self.backbone.embed_dim))}
            self.kept["text"] = made_once(path, layout, fill)["text_embeds"]
        embeds: Tensor = self.kept["text"]
        return embeds

    def texts(self) -> list[str]:
        """All captions, as the shards have them: M."""
        if "texts" not in self.kept:
            rows = self._shards().rows(self.split, CAPTION_COLUMNS)
            self.kept["texts"] = [text for row in rows for text in captions_of(row)]
        texts: list[str] = self.kept["texts"]
        return texts

    def words(self, lm: LanguageModel) -> Tokens:
        """All captions in a language model's tokens: M."""
        name = f"words-{WORDS}-{lm.fingerprint[:16]}-{self.split}.safetensors"
        if name not in self.kept:
            path = self._path(name)
            found = None if path is None else mapped(path)
            if found is None:
                tokens = lm.tokenize(self.texts())
                layout: Layout = {
                    "ids": (np.int64, (len(tokens.ids),)),
                    "offsets": (np.int64, (len(tokens.offsets),)),
                }

                def fill(put: Put) -> None:
                    put("ids", 0, tokens.ids.numpy())
                    put("offsets", 0, tokens.offsets.numpy())

                found = made_once(path, layout, fill)
            self.kept[name] = Tokens(found["ids"], found["offsets"])
        words: Tokens = self.kept[name]
        return words

    def view(self, number: int) -> Tensors:
        """Augmented view `number` (from 1) of every image: `image_embeds` (N, e) and, where the
        store has them, `pixels` (N, 3, R, R)."""
        name = f"view-{number:04d}-{self.split}.safetensors"
        if self.kept.get("view") != name:  # an epoch needs one: the last is enough
            images = self.manifest["splits"][self.split]["images"]
            size = self.backbone.preprocess.size
            layout: Layout = {"image_embeds": (np.float32, (images, self.backbone.embed_dim))}
            if self.manifest["pixels"]:
                layout = {**layout, "pixels": (np.uint8, (images, 3, size, size))}
            fill = partial(self._encode, number)
            self.kept.update(view=name, tensors=made_once(self._path(name), layout, fill))
        tensors: Tensors = self.kept["tensors"]
        return tensors

    def _encode(self, number: int, put: Put) -> None:
        done = 0
        for squares in self._squares(number):
            put("image_embeds", done, frozen_embeds(self.backbone, squares).numpy())
            if self.manifest["pixels"]:
                put("pixels", done, squares.numpy())
            done += len(squares)

    def _shards(self) -> ShardSet:
        shards = ShardSet.open(self.manifest["shards"])
        if shards.digest != self.manifest["shards_sha256"]:
            raise DataError(f"`{shards.folder}` changed since the features were made of it.")
        return shards

    def _squares(self, number: int) -> Iterator[Tensor]:
        """The view of each image in the store's order, a chunk at a time."""
        shards = self._shards()
        if self.manifest["decoder"] != decoder_versions():
            raise DataError(
                f"the features were made with {self.manifest['decoder']}, here is "
                f"{decoder_versions()}: install those versions, or run `cliptune encode` again."
            )
        total = self.manifest["splits"][self.split]["images"]
        seed, started, said = self.manifest["data_seed"], time.monotonic(), time.monotonic()

        def square(item: tuple[int, dict[str, Any]]) -> Tensor:
            row, record = item
            view = view_of(seed, number - 1, row)
            return self.backbone.preprocess.apply(decode(record["image"]), view)

        done = 0
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders release the GIL
            for chunk in chunks(enumerate(shards.rows(self.split, ["id", "image"])), CHUNK):
                yield torch.stack(list(pool.map(square, chunk)))
                done += len(chunk)
                if time.monotonic() - said > 10:
                    said = time.monotonic()
                    rate = done / (said - started)
                    print(
                        f"view {number} of {self.split}: {done:,} of {total:,} images, "
                        f"{rate:.0f} img/s, about {(total - done) / rate:.0f} s left",
                        file=sys.stderr,
                        flush=True,
                    )

    def hidden(self, pixels: Tensor, rows: Tensor, view: int, block: int) -> Tensor:
        """The image tower's states before block `block`, of `rows` of all `pixels` (N, 3, R, R):
        (B, S, w)."""

        def compute(some: Tensor) -> Tensor:
            with self.backbone.frozen():
                return lower(self.backbone, pixels[some], block)

        if block == 0 or not self._reads(rows, block, compute):
            return compute(rows)
        name = f"block-{block:02d}-view-{view:04d}-{self.split}.states"
        if name not in self.kept:
            shape = compute(rows[:1]).shape[1:]
            self.kept[name] = self._open_states(name, len(pixels), shape)
        states: LowerStates = self.kept[name]
        return states(rows, compute).to(self.backbone.device)

    def _reads(self, rows: Tensor, block: int, compute: Callable[[Tensor], Tensor]) -> bool:
        """Whether states are kept and read. On a CPU, always; on a GPU, which computes them again
        quickly, only where reading was measured to be quicker, once a process and block."""
        if not recomputes(self.backbone.device):
            return True
        name = f"reads-{block}"
        if name not in self.kept:
            self.kept[name] = self.folder is not None and reading_pays(self.folder, rows, compute)
        reads: bool = self.kept[name]
        return reads

    def _open_states(self, name: str, rows: int, shape: tuple[int, ...]) -> LowerStates:
        """A file of states, as large as the other files leave room for."""
        if self.folder is None:
            return LowerStates(None, rows, shape, 0)
        with alone(self.folder / "states.lock"):  # its size counts from here on
            others = 0
            for path in self.folder.glob("*.states"):
                with suppress(FileNotFoundError):
                    others += path.stat().st_size if path.name != name else 0
            budget = max(0, self.manifest.get("activations_bytes", 0) - others)
            return LowerStates(self.folder / name, rows, shape, budget)


def embed_each_once(backbone: Backbone, tokens: Tokens, chunk: int = 4096) -> Tensor:
    """The frozen text tower on each distinct caption once: (M, e) on the CPU."""
    distinct, inverse = tokens.unique()
    parts = torch.arange(len(distinct)).split(chunk)
    with backbone.frozen():
        embeds = [embed_text(backbone, distinct.select(rows)).float().cpu() for rows in parts]
    return torch.cat(embeds)[inverse]
