"""A folder as open_clip writes it: `open_clip_config.json` + `open_clip_model.safetensors`.

Flows in: such a folder, a ViT image tower beside a CLIP or SigLIP text tower. Flows out: the same
model as transformers' `CLIPModel` or `SiglipModel`, so that everything else finds modules of one
kind. A config that asks for other computations is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file

from trainables.errors import ConfigError, DataError
from trainables.files import read_json
from trainables.media.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from trainables.models.cleaning import Cleaning
from trainables.models.open_clip_towers import TIMM, clip, side_of, siglip

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
Kind = Literal["clip", "siglip"]
# Fields that a tower here may have; any other one must be off, for it changes what is computed.
VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
VISION |= {"patch_dropout", "output_tokens", "act_kwargs", "norm_kwargs", "timm_model_name"}
VISION |= {"timm_pool", "timm_proj", "timm_drop", "timm_drop_path", "timm_model_pretrained"}
TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id"}
TEXT |= {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "no_causal_mask", "pool_type"}
TEXT |= {"proj_bias", "output_tokens", "act_kwargs", "norm_kwargs"}
PLAIN = {"pos_embed_type": "learnable", "proj_type": "linear", "block_type": "default"}


def is_open_clip(folder: Path) -> bool:
    """Whether a folder is in open_clip's layout alone; where both layouts are in it, Hugging Face's
    is read."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def load_open_clip(folder: Path) -> tuple[Kind, Any]:
    """The kind of model, and the model with fp32 weights, frozen, in eval mode."""
    about = _about(folder)
    vision, text = about["vision_cfg"], about["text_cfg"]
    kind: Kind = "siglip" if vision.get("timm_model_name") else "clip"
    _check(folder, kind, vision, text)
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"`{folder}` has no weights: there is no {WEIGHTS}.")
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS).items()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"the weights in `{folder}` could not be loaded: {error}") from error
    try:
        model, renamed = (clip if kind == "clip" else siglip)(about, tensors)
        model.load_state_dict(renamed)
    except KeyError as error:
        raise DataError(
            f"the weights in `{folder}` must hold every tensor, got none for `{error.args[0]}`."
        ) from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"the weights in `{folder}` do not fit its {CONFIG}: {reason}") from error
    return kind, model.requires_grad_(False).eval()


def cleaning_of(folder: Path) -> Cleaning:
    """How a SigLIP's tokenizer cleans a text first, by `tokenizer_kwargs`."""
    if not is_open_clip(folder):
        return "none"
    named = (_about(folder)["text_cfg"].get("tokenizer_kwargs") or {}).get("clean")
    return "canonicalize" if named == "canonicalize" else "none"


def read_open_clip_preprocess(folder: Path) -> Preprocess:
    """The preprocessing that `preprocess_cfg` asks for; without one OpenAI's, as in open_clip."""
    config = read_json(folder / CONFIG)
    how = config.get("preprocess_cfg", {})
    size = side_of(config["model_cfg"]["vision_cfg"].get("image_size", 224))
    modes = {"shortest": "crop", "squash": "squash"}
    mode, filter_ = how.get("resize_mode", "shortest"), how.get("interpolation", "bicubic")
    if mode not in modes or filter_ not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"`preprocess_cfg` in `{folder / CONFIG}` must resize by shortest or squash, bicubic "
            f"or bilinear, got {mode!r} and {filter_!r}."
        )
    mean, std = (tuple(how.get(k) or d) for k, d in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    kind: Any = modes[mode]
    return Preprocess(kind, side_of(how.get("size", size)), size, filter_, mean, std)


def _about(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    about = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(about, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= about.keys():
        raise ConfigError(
            f"`{folder / CONFIG}` must hold `model_cfg` with embed_dim, vision_cfg and text_cfg."
        )
    return about


def _check(folder: Path, kind: Kind, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Raise for a config whose computations are not done here exactly."""

    def require(rule: bool, field: str, what: str, value: object) -> None:
        if not rule:
            path = folder / CONFIG
            raise ConfigError(f"`{field}` in `{path}` must be {what}, got {value!r}.")

    for name, known, config in (("vision_cfg", VISION, vision), ("text_cfg", TEXT, text)):
        for key in config.keys() - known:
            off = not config[key] or config[key] in (PLAIN.get(key), "tok" if name[0] == "v" else 0)
            require(off, f"{name}.{key}", "left out: such towers are not supported", config[key])
    if kind == "siglip":
        timm = vision["timm_model_name"]
        require(bool(TIMM.fullmatch(timm)), "timm_model_name", "a SigLIP's image tower", timm)
        require(vision.get("timm_pool") == "map", "timm_pool", "map", vision.get("timm_pool"))
        require(vision.get("timm_proj") == "none", "timm_proj", "none", vision.get("timm_proj"))
    else:
        layers = vision.get("layers", 12)
        require(isinstance(layers, int), "vision_cfg.layers", "a number: of a ViT", layers)
    pools = ("last",) if kind == "siglip" else ("argmax", "eos")
    pool = text.get("pool_type", "argmax")
    require(pool in pools, "text_cfg.pool_type", " or ".join(pools), pool)
    causal = not text.get("no_causal_mask", False)
    require(causal == (kind == "clip"), "no_causal_mask", str(not causal), not causal)
