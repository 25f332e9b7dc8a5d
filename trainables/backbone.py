"""The frozen CLIP or SigLIP that everything adapts.

Flows in: a local directory in Hugging Face layout, or a Hub id pinned to a commit. Flows out: a
`Backbone`: both towers frozen and in eval mode, tokenizer and preprocessing, and a fingerprint of
every file that can change a number. Only safetensors and JSON are read, never a pickle.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer, PreTrainedTokenizerFast, SiglipModel
from transformers.utils import logging

from trainables.data import Tokens
from trainables.errors import ConfigError, DataError, unknown
from trainables.files import read_json, sha256_file, sha256_json
from trainables.image_tower import lower, upper
from trainables.preprocess import Preprocess, read_preprocess

MODELS = {"clip": CLIPModel, "siglip": SiglipModel}
WEIGHTS = "model*.safetensors"
FILES = (  # what a model's outputs depend on, and all that is fetched from the Hub
    *(WEIGHTS, "model.safetensors.index.json", "config.json"),
    *("preprocessor_config.json", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
)
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class Backbone:
    """A frozen two-tower model.

    CLIP (Radford et al. 2021): causal text tower, captions end at their EOT. SigLIP (Zhai et al.
    2023): the text tower sees all of its L positions, and scores have a bias.
    """

    name: str
    revision: str | None
    fingerprint: str  # SHA-256 over the names and hashes of the files in `FILES`
    kind: Literal["clip", "siglip"]
    model: Any  # transformers' CLIPModel or SiglipModel
    tokenizer: Any
    preprocess: Preprocess
    embed_dim: int  # e, of the joint space
    text_width: int  # d, of the text tower
    context_length: int  # L, positions of the text tower
    start_token: int | None  # SOT; SigLIP has none
    end_token: int  # EOT
    pad_token: int
    scale: float  # exp(logit_scale): similarities are multiplied by it
    bias: float  # SigLIP's logit_bias, else 0
    device: torch.device

    def embed_images(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) to the joint space, not normalised: (B, e). Differentiable in what an
        adapter injected into an `isolated` copy; the frozen weights themselves have no gradient.
        """
        return upper(self, lower(self, pixels, 0), 0)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tokens, int]:
        """Texts as ragged ids with SOT and EOT, and how many had to be cut to L (EOT is kept).

        A special token's name inside a text, such as `<|endoftext|>`, is text like any other.
        """
        start = [] if self.start_token is None else [self.start_token]
        room = self.context_length - len(start) - 1
        words: list[list[int]] = []
        if texts:  # the tokenizer refuses an empty list
            words = self.tokenizer(
                list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False
            )["input_ids"]
        rows = [torch.tensor([*start, *ids[:room], self.end_token]) for ids in words]
        lengths = torch.tensor([0, *map(len, rows)])
        ids = torch.cat([torch.zeros(0, dtype=torch.int64), *rows])
        return Tokens(ids, lengths.cumsum(0)), sum(len(ids) > room for ids in words)

    def isolated(self) -> Backbone:
        """The same weights under other module objects: what PEFT injects there stays there."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        shared = {id(tensor): tensor for tensor in tensors}
        return replace(self, model=copy.deepcopy(self.model, shared))


def load_backbone(
    name: str, revision: str | None = None, device: torch.device | str = "cpu"
) -> Backbone:
    """The model in directory `name`, or on the Hub under that id at commit `revision`."""
    folder = locate(name, revision)
    config = read_json(_existing(folder, "config.json"))
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in MODELS:
        raise ConfigError(f"`{name}`: " + unknown("model type", str(kind), MODELS))
    preprocess = read_preprocess(folder, kind)
    model = _load_model(folder, MODELS[kind]).to(device)
    tokenizer = _load_tokenizer(folder, kind)
    text, vision = model.config.text_config, model.config.vision_config
    if preprocess.size != vision.image_size:
        raise ConfigError(
            f"`{folder}`: the preprocessor must make images of {vision.image_size} pixels, "
            f"as the tower takes them, got {preprocess.size}."
        )
    if len(tokenizer) > text.vocab_size:
        raise ConfigError(
            f"`{folder}`: the tokenizer must fit the model's {text.vocab_size} token embeddings, "
            f"got {len(tokenizer)} tokens."
        )
    clip = kind == "clip"
    return Backbone(
        name=str(folder.resolve()) if revision is None else name,
        revision=revision,
        fingerprint=fingerprint(folder),
        kind=kind,
        model=model,
        tokenizer=tokenizer,
        preprocess=preprocess,
        embed_dim=model.config.projection_dim if clip else text.projection_size,
        text_width=text.hidden_size,
        context_length=text.max_position_embeddings,
        start_token=tokenizer.bos_token_id if clip else None,
        end_token=tokenizer.eos_token_id,
        pad_token=tokenizer.pad_token_id,
        scale=float(model.logit_scale.detach().exp()),
        bias=0.0 if clip else float(model.logit_bias.detach()),
        device=torch.device(device),
    )


def locate(name: str, revision: str | None) -> Path:
    """The directory that holds the model's files, after a download where `name` is a Hub id."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"`--revision` is for Hub ids, but `{name}` is a local directory.")
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ConfigError(f"`{name}` is neither a directory nor a Hub id such as `owner/model`.")
    if revision is None or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ConfigError(
            f"`{name}` is not a directory here; as a Hub id it needs `--revision` with a commit's "
            "40 hex digits (in the model page's history), because a branch or a tag can move, "
            f"got {revision!r}."
        )
    import huggingface_hub

    try:
        return Path(
            huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(FILES))
        )
    except (OSError, ValueError) as error:  # no network, no such model or commit
        reason = " ".join(str(error).split())
        raise ConfigError(f"could not fetch `{name}` at {revision}: {reason}") from error


def fingerprint(folder: Path) -> str:
    """One hash for every file that the model's outputs depend on."""
    paths = sorted({path for pattern in FILES for path in folder.glob(pattern)})
    return sha256_json({path.name: sha256_file(path) for path in paths})


def _existing(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise ConfigError(f"`{folder}` is not a model in Hugging Face layout: it has no {name}.")
    return path


def _load_model(folder: Path, cls: Any) -> Any:
    """The model in fp32, frozen, in eval mode; every weight must be there and fit."""
    if not list(folder.glob(WEIGHTS)):
        pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
        if pickles:
            raise ConfigError(
                f"`{folder / pickles[0]}` is refused: such a file can run code when it is loaded. "
                "On a machine where you trust it, convert it once: "
                f"`{cls.__name__}.from_pretrained(...).save_pretrained(...)` writes safetensors."
            )
        raise ConfigError(f"`{folder}` has no weights: no file fits {WEIGHTS}.")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, report = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the weights in `{folder}` could not be loaded: {reason}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    wrong = sorted(
        {str(n) for n in report["missing_keys"]} | {str(n[0]) for n in report["mismatched_keys"]}
    )
    if wrong:
        raise DataError(
            f"the weights in `{folder}` must hold every tensor, got none for `{wrong[0]}`."
        )
    return model.requires_grad_(False).eval()


def _load_tokenizer(folder: Path, kind: str) -> Any:
    """CLIP's from tokenizer.json or vocab.json + merges.txt, SigLIP's from tokenizer.json."""
    if kind == "clip":
        if not (folder / "tokenizer.json").is_file():
            _existing(folder, "vocab.json")
            _existing(folder, "merges.txt")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    _existing(folder, "tokenizer.json")
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
