"""A folder of a model in, a `Backbone` out.

Flows in: a local directory in Hugging Face's or open_clip's layout, or a Hub id pinned to a commit.
Flows out: the frozen model that everything adapts. No pickle is ever read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CLIPModel, SiglipModel, VisionTextDualEncoderModel

from trainables.errors import ConfigError, unknown
from trainables.files import read_json
from trainables.hardware import Resolved
from trainables.media.preprocess import Preprocess, read_preprocess
from trainables.models import dual
from trainables.models.backbone import Backbone
from trainables.models.cleaning import Cleaning
from trainables.models.given_texts import END, is_given, load_given
from trainables.models.model_folder import existing, fingerprint, load_model, locate
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
    """The model of a store of finished embeddings: a table of texts."""
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
