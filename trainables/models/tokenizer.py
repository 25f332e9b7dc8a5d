"""The tokenizer of a folder, as transformers' own class for it makes ids.

Flows in: a folder in Hugging Face layout, and the kind of its model. Flows out: a tokenizer of the
class that tokenizer_config.json names. (The class matters: some make text lower case or strip
punctuation, and the model was trained on such texts alone.) Only JSON, text and SentencePiece's own
format are read; none of them holds code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

from trainables.errors import CliptuneError, ConfigError, DataError
from trainables.files import read_json
from trainables.models.model_folder import existing, quiet

PIECES = "spiece.model"  # SentencePiece's


def load_tokenizer(folder: Path, kind: str) -> Any:
    """CLIP's from tokenizer.json or vocab.json + merges.txt, SigLIP's from tokenizer.json or
    spiece.model, another's as its class reads it."""
    try:
        return _load(folder, kind)
    except CliptuneError:
        raise
    except Exception as error:  # `tokenizers` raises nothing narrower
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if (folder / name).is_file():
                read_json(folder / name)  # one that is damaged is named
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the tokenizer in `{folder}` could not be loaded: {reason}") from error


def _load(folder: Path, kind: str) -> Any:
    if kind == "clip":
        if not (folder / "tokenizer.json").is_file():
            existing(folder, "vocab.json")
            existing(folder, "merges.txt")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    named = None
    if (folder / "tokenizer_config.json").is_file():
        named = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    if kind == "siglip" and not (folder / PIECES).is_file():
        if named == "SiglipTokenizer":
            raise ConfigError(
                f"`{folder}` must hold {PIECES}, which the `SiglipTokenizer` named in its "
                "tokenizer_config.json reads; it has none."
            )
        existing(folder, "tokenizer.json")
    how = {"local_files_only": True}
    bare = named is None or not (folder / "config.json").is_file()  # open_clip has no such file
    if kind == "siglip" and bare and (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder, **how)
    with quiet():  # about fields of the model that no tokenizer reads
        return AutoTokenizer.from_pretrained(folder, **how, trust_remote_code=False)


def check_fits(tokenizer: Any, vocabulary: int, name: str | Path) -> None:
    """Every id that a text can become, and every one put around it, must have a row in the model's
    matrix of `vocabulary` rows. Special tokens beyond it, such as a picture's, are never asked for.
    """
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
    if len(tokenizer) <= vocabulary and max(ends, default=0) < vocabulary:
        return
    beyond = {i for i in tokenizer.get_vocab().values() if i >= vocabulary}
    if ends & beyond or beyond - special:
        raise ConfigError(
            f"`{name}`: the tokenizer must fit the model's {vocabulary} token embeddings, "
            f"got {len(tokenizer)} tokens."
        )
