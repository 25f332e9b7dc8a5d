"""A folder as open_clip writes it: `open_clip_config.json` + `open_clip_model.safetensors`.

Flows in: such a folder, a ViT image tower beside a CLIP or SigLIP text tower. Flows out: the same
weights as transformers' `CLIPModel` or `SiglipModel`, so that everything else, and PEFT, finds
modules of one kind: open_clip's fused `in_proj` becomes three matrices q, k and v.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from trainables.cleaning import Cleaning
from trainables.errors import ConfigError, DataError
from trainables.files import read_json
from trainables.preprocess import CLIP_MEAN, CLIP_STD, Preprocess

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
Kind = Literal["clip", "siglip"]
# timm's names of SigLIP's image towers, and their heads.
HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
TIMM = re.compile(r"vit_(base|large|so400m|giantopt)_patch\d+_siglip_\d+")
# Fields that a tower here may have; any other one must be off, for it changes what is computed.
VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
VISION |= {"patch_dropout", "output_tokens", "act_kwargs", "norm_kwargs", "timm_model_name"}
VISION |= {"timm_pool", "timm_proj", "timm_drop", "timm_drop_path", "timm_model_pretrained"}
TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pad_id", "eos_id"}
TEXT |= {"hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode", "no_causal_mask", "pool_type"}
TEXT |= {"proj_bias", "output_tokens", "act_kwargs", "norm_kwargs"}
PLAIN = {"pos_embed_type": "learnable", "proj_type": "linear", "block_type": "default"}


def is_open_clip(folder: Path) -> bool:
    """Where both layouts are in one folder, Hugging Face's is read."""
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
        model, renamed = (_clip if kind == "clip" else _siglip)(about, tensors)
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
    """What a SigLIP's tokenizer does to a text first, by `tokenizer_kwargs`."""
    if not is_open_clip(folder):
        return "none"
    named = (_about(folder)["text_cfg"].get("tokenizer_kwargs") or {}).get("clean")
    return "canonicalize" if named == "canonicalize" else "none"


def read_open_clip_preprocess(folder: Path) -> Preprocess:
    """What `preprocess_cfg` asks for; without one, what open_clip does then: OpenAI's."""
    config = read_json(folder / CONFIG)
    how = config.get("preprocess_cfg", {})
    size = _side(config["model_cfg"]["vision_cfg"].get("image_size", 224))
    modes = {"shortest": "crop", "squash": "squash"}
    mode, filter_ = how.get("resize_mode", "shortest"), how.get("interpolation", "bicubic")
    if mode not in modes or filter_ not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"`preprocess_cfg` in `{folder / CONFIG}` must resize by shortest or squash, bicubic "
            f"or bilinear, got {mode!r} and {filter_!r}."
        )
    mean, std = (tuple(how.get(k) or d) for k, d in (("mean", CLIP_MEAN), ("std", CLIP_STD)))
    kind: Any = modes[mode]
    return Preprocess(kind, _side(how.get("size", size)), size, filter_, mean, std)


def _side(size: Any) -> int:
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    if height != width:
        raise ConfigError(f"`image_size` in {CONFIG} must be a square, got {size}.")
    return int(height)


def _about(folder: Path) -> dict[str, Any]:
    config = read_json(folder / CONFIG)
    about = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(about, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= about.keys():
        raise ConfigError(
            f"`{folder / CONFIG}` must hold `model_cfg` with embed_dim, vision_cfg and text_cfg."
        )
    return about


def _check(folder: Path, kind: Kind, vision: Mapping[str, Any], text: Mapping[str, Any]) -> None:
    """Only what is computed here exactly."""

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


def _act(config: Mapping[str, Any], quick: bool = False) -> str:
    if quick:
        return "quick_gelu"
    tanh = (config.get("act_kwargs") or {}).get("approximate") == "tanh"
    return "gelu_pytorch_tanh" if tanh else "gelu"


def _eps(config: Mapping[str, Any]) -> float:
    return float((config.get("norm_kwargs") or {}).get("eps", 1e-5))


def _text(about: Mapping[str, Any]) -> dict[str, Any]:
    """The text tower's config, but what the kinds call by other names."""
    text = about["text_cfg"]
    width = text.get("width", 512)
    return {
        "hidden_size": width,
        "intermediate_size": int(width * text.get("mlp_ratio", 4.0)),
        "num_hidden_layers": text.get("layers", 12),
        "num_attention_heads": text.get("heads", 8),
        "max_position_embeddings": text.get("context_length", 77),
        "vocab_size": text.get("vocab_size", 49408),
        "hidden_act": _act(text, about.get("quick_gelu", False)),
        "layer_norm_eps": _eps(text),
        "bos_token_id": None,
        "eos_token_id": text.get("vocab_size", 49408) - 1,  # CLIP's, which is looked for as a max
        "pad_token_id": None,
    }


def _clip(about: Mapping[str, Any], of: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    vision, joint = about["vision_cfg"], about["embed_dim"]
    width = vision.get("width", 768)
    text = _text(about) | {"projection_dim": joint}
    config = CLIPConfig(
        projection_dim=joint,
        text_config=text,
        vision_config={
            "hidden_size": width,
            "intermediate_size": int(width * vision.get("mlp_ratio", 4.0)),
            "num_hidden_layers": vision.get("layers", 12),
            "num_attention_heads": width // vision.get("head_width", 64),
            "image_size": _side(vision.get("image_size", 224)),
            "patch_size": vision.get("patch_size", 16),
            "hidden_act": _act(vision, about.get("quick_gelu", False)),
            "layer_norm_eps": _eps(vision),
            "projection_dim": joint,
        },
    )
    renamed = {
        **_text_tensors(text["num_hidden_layers"], of, _prefix(of)),
        "text_projection.weight": of[f"{_prefix(of)}text_projection"].T,
        "vision_model.embeddings.class_embedding": of["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": of["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": of["visual.positional_embedding"],
        **_pair("vision_model.pre_layrnorm", "visual.ln_pre", of),
        **_blocks("vision_model", vision.get("layers", 12), of, "visual.transformer.resblocks"),
        **_pair("vision_model.post_layernorm", "visual.ln_post", of),
        "visual_projection.weight": of["visual.proj"].T,
        "logit_scale": of["logit_scale"].reshape(()),
    }
    return CLIPModel(config), renamed


def _siglip(about: Mapping[str, Any], of: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    vision, trunk = about["vision_cfg"], "visual.trunk"
    name = TIMM.fullmatch(vision["timm_model_name"])
    assert name is not None
    text = _text(about) | {"projection_size": about["embed_dim"]}
    width, _, patch, _ = of[f"{trunk}.patch_embed.proj.weight"].shape
    depth = 1 + max(int(n.split(".")[3]) for n in of if n.startswith(f"{trunk}.blocks."))
    config = SiglipConfig(
        text_config=text,
        vision_config={
            "hidden_size": width,
            "intermediate_size": of[f"{trunk}.blocks.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": depth,
            "num_attention_heads": HEADS[name[1]],
            "image_size": _side(vision.get("image_size", 224)),
            "patch_size": patch,
            "hidden_act": "gelu",  # timm's, whatever the text tower's is
            "layer_norm_eps": 1e-6,
        },
    )
    pool, head = f"{trunk}.attn_pool", "vision_model.head"
    renamed = {
        **_text_tensors(text["num_hidden_layers"], of, _prefix(of)),
        **_pair("text_model.head", f"{_prefix(of)}text_projection", of),
        **_pair("vision_model.embeddings.patch_embedding", f"{trunk}.patch_embed.proj", of),
        "vision_model.embeddings.position_embedding.weight": of[f"{trunk}.pos_embed"][0],
        **_blocks("vision_model", depth, of, f"{trunk}.blocks", _TIMM_BLOCK),
        **_pair("vision_model.post_layernorm", f"{trunk}.norm", of),
        f"{head}.probe": of[f"{pool}.latent"],
        **{
            f"{head}.attention.in_proj_{end}": torch.cat(
                [of[f"{pool}.{part}.{end}"] for part in ("q", "kv")]
            )
            for end in ("weight", "bias")
        },
        **_pair(f"{head}.attention.out_proj", f"{pool}.proj", of),
        **_pair(f"{head}.layernorm", f"{pool}.norm", of),
        **_pair(f"{head}.mlp.fc1", f"{pool}.mlp.fc1", of),
        **_pair(f"{head}.mlp.fc2", f"{pool}.mlp.fc2", of),
        "logit_scale": of["logit_scale"].reshape(1),
        "logit_bias": of["logit_bias"].reshape(1),
    }
    return SiglipModel(config), renamed


def _prefix(of: Mapping[str, Tensor]) -> str:
    """A text tower of its own class stands under a name of its own."""
    return "text." if "text.positional_embedding" in of else ""


def _text_tensors(layers: int, of: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    embeddings = "text_model.embeddings"
    return {
        f"{embeddings}.token_embedding.weight": of[f"{prefix}token_embedding.weight"],
        f"{embeddings}.position_embedding.weight": of[f"{prefix}positional_embedding"],
        **_blocks("text_model", layers, of, f"{prefix}transformer.resblocks"),
        **_pair("text_model.final_layer_norm", f"{prefix}ln_final", of),
    }


_OWN_BLOCK = {
    "in": "attn.in_proj_",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_TIMM_BLOCK = {
    "in": "attn.qkv.",
    "self_attn.out_proj": "attn.proj",
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def _blocks(
    tower: str,
    layers: int,
    of: Mapping[str, Tensor],
    source: str,
    names: Mapping[str, str] = _OWN_BLOCK,
) -> dict[str, Tensor]:
    """All blocks of a tower, q, k and v apart."""
    found: dict[str, Tensor] = {}
    for n in range(layers):
        to, at = f"{tower}.encoder.layers.{n}", f"{source}.{n}"
        for end in ("weight", "bias"):
            parts = of[f"{at}.{names['in']}{end}"].chunk(3)
            for letter, part in zip("qkv", parts, strict=True):
                found[f"{to}.self_attn.{letter}_proj.{end}"] = part.contiguous()
        for ours, theirs in names.items():
            if ours != "in":
                found |= _pair(f"{to}.{ours}", f"{at}.{theirs}", of)
    return found


def _pair(to: str, at: str, of: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{to}.{end}": of[f"{at}.{end}"] for end in ("weight", "bias")}
