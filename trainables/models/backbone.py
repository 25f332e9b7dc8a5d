"""The frozen CLIP or SigLIP that everything adapts.

Flows in: a local directory in Hugging Face's or open_clip's layout, or a Hub id pinned to a commit.
Flows out: a `Backbone`: both towers frozen and in eval mode, tokenizer and preprocessing, and a
fingerprint of every file that can change a number. No pickle is ever read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import CLIPModel, SiglipModel, VisionTextDualEncoderModel

from trainables.data.batches import Tokens
from trainables.errors import ConfigError, unknown
from trainables.files import read_json
from trainables.hardware import Resolved, autocast
from trainables.media.preprocess import Preprocess, read_preprocess
from trainables.models import dual
from trainables.models.cleaning import Cleaning, clean
from trainables.models.given_texts import END, is_given, load_given
from trainables.models.image_tower import lower, upper
from trainables.models.model_folder import existing, fingerprint, isolated, load_model, locate
from trainables.models.open_clip import (
    cleaning_of,
    is_open_clip,
    load_open_clip,
    read_open_clip_preprocess,
)
from trainables.models.tokenizer import check_fits, load_tokenizer

MODELS = {
    "clip": CLIPModel,
    "siglip": SiglipModel,
    "vision-text-dual-encoder": VisionTextDualEncoderModel,
}


@dataclass(frozen=True)
class Backbone:
    """A frozen two-tower model.

    CLIP (Radford et al. 2021): causal text tower, captions end at their EOT. SigLIP (Zhai et al.
    2023): the text tower sees all of its L positions, and scores have a bias. Dual: any two towers
    (`dual.py`).
    """

    name: str
    revision: str | None
    fingerprint: str  # of its folder's files
    kind: Literal["clip", "siglip", "dual", "embeddings"]  # the last: texts as given
    model: Any  # transformers' own, or `GivenTexts`
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
    precision: Resolved = "fp32"  # what its frozen outputs are computed in: that of the store
    pads_left: bool = False  # SigLIP: which end of its L positions the padding stands at
    cleaning: Cleaning = "none"  # of texts, before they are tokenised
    # What else a process loaded to work with it.
    beside: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """uint8 (B, 3, R, R) to the joint space, not normalised: (B, e). Differentiable in what an
        adapter injected into an `isolated` copy; the frozen weights themselves have no gradient.
        """
        if self.kind == "dual":
            return dual.embed_images(self, pixels)
        return upper(self, lower(self, pixels, 0), 0)

    @property
    def word_matrix(self) -> Tensor:
        """What the text tower makes of its tokens: (V, d)."""
        text = self.model.text_model
        own = self.kind != "dual"
        table = text.embeddings.token_embedding if own else text.get_input_embeddings()
        weight: Tensor = table.weight.detach()
        return weight

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """In `precision` without gradients, whatever the trial that asks computes in: what is made
        here is shared by all trials, and val and test come from the same arithmetic."""
        with torch.no_grad(), autocast(self.precision, self.device):
            yield

    def frozen_embeds(self, pixels: Tensor) -> Tensor:
        """`embed_images` as a feature store holds it: (B, e) fp32 on the CPU."""
        with self.frozen():
            return self.embed_images(pixels).float().cpu()

    def tokenize(self, texts: Sequence[str]) -> tuple[Tokens, int]:
        """Texts as ragged ids with SOT and EOT, and how many had to be cut to L (EOT is kept).

        A special token's name inside a text, such as `<|endoftext|>`, is text like any other.
        """
        start = [] if self.start_token is None else [self.start_token]
        room = self.context_length - len(start) - 1
        words: list[list[int]] = []
        if texts:  # the tokenizer refuses an empty list
            words = self.tokenizer(
                [clean(text, self.cleaning) for text in texts],
                add_special_tokens=False,
                split_special_tokens=True,
                verbose=False,
            )["input_ids"]
        rows = [torch.tensor([*start, *ids[:room], self.end_token]) for ids in words]
        lengths = torch.tensor([0, *map(len, rows)])
        ids = torch.cat([torch.zeros(0, dtype=torch.int64), *rows])
        return Tokens(ids, lengths.cumsum(0)), sum(len(ids) > room for ids in words)

    def isolated(self) -> Backbone:
        """The same weights under other module objects: what PEFT injects there stays there."""
        return replace(self, model=isolated(self.model))


def load_backbone(
    name: str,
    revision: str | None = None,
    device: torch.device | str = "cpu",
    precision: Resolved = "fp32",
    clean_text: bool = True,
) -> Backbone:
    """The model in directory `name`, or on the Hub under that id at commit `revision`.

    `clean_text`: texts are mended as the model's own tokenizer does (`cleaning.py`).
    """
    folder = locate(name, revision)
    if is_given(folder):
        return _given(folder, device)
    kind, preprocess, model = _load(folder, name)
    model = model.to(device)
    tokenizer = load_tokenizer(folder, kind)
    text, vision = model.config.text_config, model.config.vision_config
    if preprocess.size != vision.image_size:
        raise ConfigError(
            f"`{folder}`: the preprocessor must make images of {vision.image_size} pixels, "
            f"as the tower takes them, got {preprocess.size}."
        )
    check_fits(tokenizer, text.vocab_size, folder)
    clip = kind == "clip"
    own_cleaning: Cleaning = "openai" if clip else cleaning_of(folder)
    if kind == "dual":
        start, end = dual.ends(tokenizer, name)
        length = dual.positions(model, tokenizer)
    else:
        start, end = tokenizer.bos_token_id if clip else None, tokenizer.eos_token_id
        length = text.max_position_embeddings
    return Backbone(
        name=str(folder.resolve()) if revision is None else name,
        revision=revision,
        fingerprint=fingerprint(folder),
        kind=kind,
        model=model,
        tokenizer=tokenizer,
        preprocess=preprocess,
        embed_dim=text.projection_size if kind == "siglip" else model.config.projection_dim,
        text_width=text.hidden_size,
        context_length=length,
        start_token=start,
        end_token=end,
        pad_token=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        scale=float(model.logit_scale.detach().exp()),
        bias=float(model.logit_bias.detach()) if kind == "siglip" else 0.0,
        device=torch.device(device),
        precision=precision,
        pads_left=kind == "siglip" and tokenizer.padding_side == "left",
        cleaning=own_cleaning if clean_text else "none",
    )


def _load(folder: Path, name: str) -> tuple[Any, Preprocess, Any]:
    """Kind, preprocessing and model of a folder of either layout."""
    if is_open_clip(folder):
        kind, model = load_open_clip(folder)
        return kind, read_open_clip_preprocess(folder), model
    config = read_json(existing(folder, "config.json"))
    found = config.get("model_type") if isinstance(config, dict) else None
    if found not in MODELS:
        raise ConfigError(f"`{name}`: " + unknown("model type", str(found), MODELS))
    other: Any = found if found in ("clip", "siglip") else "dual"
    return other, read_preprocess(folder, other), load_model(folder, MODELS[found])


def _given(folder: Path, device: torch.device | str) -> Backbone:
    """What a store of finished embeddings has instead."""
    model, words, scale = load_given(folder)
    return Backbone(
        name=str(folder.resolve()),
        revision=None,
        fingerprint=fingerprint(folder),
        kind="embeddings",
        model=model.to(device),
        tokenizer=words,
        preprocess=Preprocess("crop", 0, 0, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        embed_dim=model.embeds.shape[1],
        text_width=0,
        context_length=2,  # a text, and its end
        start_token=None,
        end_token=END,
        pad_token=END,
        scale=scale,
        bias=0.0,
        device=torch.device(device),
    )
