"""In the place of a text tower, where only its outputs are known: texts, and the embedding of each.

Flows in: the folder `backbone/` of a store of finished embeddings, in the layout of a model: a
config, the texts as its vocabulary, their embeddings as its weights. Flows out: a table with the
interface of a tokenizer and of a tower, which knows its own texts and no others.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor, nn

from trainables.data.batches import Tokens
from trainables.data.store import MANIFEST, read_manifest
from trainables.errors import ConfigError, DataError
from trainables.files import read_json, write_bytes, write_json

KIND = "embeddings"  # the model type of such a folder
END = 0  # the token behind every text; that of row r of the table is r + 1
ALL = "{}"  # the template of a class in all templates together, as an ensemble has it


class GivenTexts(nn.Module):
    """The table as a tower: a text is one token, the number of its row."""

    embeds: Tensor  # (T, e)

    def __init__(self, embeds: Tensor) -> None:
        super().__init__()
        self.register_buffer("embeds", embeds.float())

    def forward(self, tokens: Tokens) -> Tensor:
        """The rows of texts: (N, e). Texts that the table does not hold are a `DataError`."""
        rows = tokens.ids[tokens.offsets[:-1]].long() - 1
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self.embeds):
            raise DataError(
                "the store has no embeddings of these texts: encode it with text embeddings, or "
                "with `--backbone`, whose text tower makes them."
            )
        return self.embeds[rows.to(self.embeds.device)]


class GivenWords:
    """The table as a tokenizer. A text that differs in case or punctuation alone is also found."""

    def __init__(self, rows: Mapping[str, int]) -> None:
        self.rows = rows
        self.folded = {_fold(text): row for text, row in reversed(list(rows.items()))}

    def __len__(self) -> int:
        return len(self.rows) + 1

    def __call__(self, texts: Sequence[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.row(text) + 1] if text else [] for text in texts]}

    def row(self, text: str) -> int:
        found = self.rows.get(text, self.folded.get(_fold(text)))
        if not self.rows:
            raise DataError(
                f"`{text}` has no embedding: the store was made without texts of classes "
                "(`text_emb/` beside `text_metadata/`) and without a text tower (`--backbone`)."
            )
        if found is None:
            near = difflib.get_close_matches(text, list(self.rows), n=1, cutoff=0.0)
            hint = f", the nearest is `{near[0]}`" if near else ""
            raise DataError(
                f"`{text}` must be one of the {len(self.rows):,} texts that embeddings were given "
                f"of{hint}: without a text tower no other text has one."
            )
        return found


def _fold(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())


def check_texts(folder: Path, task: str) -> None:
    """Raise `ConfigError` where retrieval is asked of finished embeddings without embeddings of
    captions."""
    there = (folder / MANIFEST).is_file()  # or it is refused where it is opened
    texts = read_manifest(folder).get("texts") if there else None
    if task != "retrieval" or texts not in ("classes", "none"):
        return
    other = "its texts are of classes, which need a `--draw`"
    if texts == "none":
        other = "without any there is `--adapter prefix_captioner`"
    raise ConfigError(
        f"`{folder}` has no embeddings of captions, which retrieval ranks images by: {other}. "
        "`encode --embeddings` takes them from `text_emb/`, a text for each image, or makes them "
        "with `--backbone`."
    )


def write_given(folder: Path, texts: Sequence[str], embeds: Tensor, scale: float) -> None:
    """Write the table: `embeds` (T, e) of `texts`, as `load_given` reads them."""
    write_bytes(folder / "model.safetensors", save({"embeds": embeds.float().contiguous()}))
    rows = {text: row for row, text in reversed(list(enumerate(texts)))}
    write_bytes(folder / "vocab.json", json.dumps(rows, ensure_ascii=False).encode())
    about = {"model_type": KIND, "embed_dim": embeds.shape[1], "logit_scale": scale}
    write_json(folder / "config.json", about)


def is_given(folder: Path) -> bool:
    path = folder / "config.json"
    config = read_json(path) if path.is_file() else None
    return isinstance(config, dict) and config.get("model_type") == KIND


def load_given(folder: Path) -> tuple[GivenTexts, GivenWords, float]:
    """The table as a tower and as a tokenizer, and the factor of similarities."""
    embeds = load_file(folder / "model.safetensors")["embeds"]
    words = GivenWords(read_json(folder / "vocab.json"))
    return GivenTexts(embeds).eval(), words, float(read_json(folder / "config.json")["logit_scale"])
