"""A folder in Hugging Face layout: which files of it are read, and the name that it is known by.

Flows in: a local directory, or a Hub id pinned to a commit. Flows out: the folder, a fingerprint of
every file that can change a number, and the frozen model. Only safetensors and JSON are read, never
a pickle.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging

from trainables.errors import ConfigError, DataError
from trainables.files import sha256_file, sha256_json

WEIGHTS = "model*.safetensors"
FILES = (  # what a model's outputs depend on, and all that is fetched from the Hub
    *(WEIGHTS, "model.safetensors.index.json", "config.json"),
    *("preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model"),
)
OPEN_CLIP = ("open_clip_config.json", "open_clip_model.safetensors")  # instead of the first three
COMMIT = re.compile(r"[0-9a-f]{40}")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


def locate(name: str, revision: str | None, flag: str = "--revision") -> Path:
    """The directory that holds the model's files, after a download where `name` is a Hub id."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"`{flag}` is for Hub ids, but `{name}` is a local directory.")
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ConfigError(f"`{name}` is neither a directory nor a Hub id such as `owner/model`.")
    if revision is None or not COMMIT.fullmatch(revision):
        raise ConfigError(
            f"`{name}` is not a directory here; as a Hub id it needs `{flag}` with a commit's "
            "40 hex digits (in the model page's history), because a branch or a tag can move, "
            f"got {revision!r}."
        )
    import huggingface_hub

    def fetched(*patterns: str) -> Path:
        found = huggingface_hub.snapshot_download(
            name, revision=revision, allow_patterns=list(patterns)
        )
        return Path(found)

    try:
        folder = fetched(*FILES)
        return folder if (folder / "config.json").is_file() else fetched(*FILES, *OPEN_CLIP)
    except (OSError, ValueError) as error:  # no network, no such model or commit
        reason = " ".join(str(error).split())
        raise ConfigError(f"could not fetch `{name}` at {revision}: {reason}") from error


def fingerprint(folder: Path) -> str:
    """One hash for every file that the model's outputs depend on."""
    files = FILES if (folder / "config.json").is_file() else (*FILES, *OPEN_CLIP)
    paths = sorted({path for pattern in files for path in folder.glob(pattern)})
    return sha256_json({path.name: sha256_file(path) for path in paths})


def existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"`{folder}` is not a model in Hugging Face layout: it has no {name}.")
    return path


def load_model(
    folder: Path,
    cls: Any,
    attention: str | None = "sdpa",
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The model, its weights as `dtype`, frozen, in eval mode; every weight must be there and fit.
    `attention`: transformers' name of the way to compute it; None: the best that the model has."""
    if not list(folder.glob(WEIGHTS)):
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise ConfigError(
                f"`{folder / pickles[0]}` is refused: such a file can run code when it is loaded. "
                "On a machine where you trust it, convert it once: "
                f"`{cls.__name__}.from_pretrained(...).save_pretrained(...)` writes safetensors."
            )
        raise ConfigError(f"`{folder}` has no weights: no file fits {WEIGHTS}.")
    try:
        with no_bars():
            model, report = cls.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                dtype=dtype,
                attn_implementation=attention,
                trust_remote_code=False,  # else a folder with code in it has the user asked whether
                output_loading_info=True,
            )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the weights in `{folder}` could not be loaded: {reason}") from error
    wrong = sorted(
        {str(n) for n in report["missing_keys"]} | {str(n[0]) for n in report["mismatched_keys"]}
    )
    if wrong:
        raise DataError(
            f"the weights in `{folder}` must hold every tensor, got none for `{wrong[0]}`."
        )
    return model.requires_grad_(False).eval()


@contextmanager
def no_bars() -> Iterator[None]:
    """Without the progress bars of transformers, which last a blink."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of transformers."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def isolated(model: Any) -> Any:
    """The same weights under other module objects."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
