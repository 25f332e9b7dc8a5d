"""open_clip's towers as those of transformers: the same weights under other names.

Flows in: the fields of an `open_clip_config.json` and the tensors beside it. Flows out: a model
with random weights, and the tensors by its names. open_clip's fused `in_proj` becomes three
matrices q, k and v, each of which PEFT finds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from trainables.errors import ConfigError

# timm's names of SigLIP's image towers, and their heads.
HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
TIMM = re.compile(r"vit_(base|large|so400m|giantopt)_patch\d+_siglip_\d+")


def side_of(size: Any) -> int:
    """The side of a square image."""
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    if height != width:
        raise ConfigError(f"`image_size` in open_clip_config.json must be a square, got {size}.")
    return int(height)


def clip(about: Mapping[str, Any], of: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """A ViT beside CLIP's text tower."""
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
            "image_size": side_of(vision.get("image_size", 224)),
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


def siglip(about: Mapping[str, Any], of: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """timm's image tower beside a text tower that sees all of a text."""
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
            "image_size": side_of(vision.get("image_size", 224)),
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


def _act(config: Mapping[str, Any], quick: bool = False) -> str:
    if quick:
        return "quick_gelu"
    tanh = (config.get("act_kwargs") or {}).get("approximate") == "tanh"
    return "gelu_pytorch_tanh" if tanh else "gelu"


def _eps(config: Mapping[str, Any]) -> float:
    return float((config.get("norm_kwargs") or {}).get("eps", 1e-5))


def _text(about: Mapping[str, Any]) -> dict[str, Any]:
    """The text tower's config, without the fields that CLIP and SigLIP name differently."""
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


def _prefix(of: Mapping[str, Tensor]) -> str:
    """The prefix of the text tower's tensors: a text tower of its own class has one."""
    return "text." if "text.positional_embedding" in of else ""


def _text_tensors(layers: int, of: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    embeddings = "text_model.embeddings"
    return {
        f"{embeddings}.token_embedding.weight": of[f"{prefix}token_embedding.weight"],
        f"{embeddings}.position_embedding.weight": of[f"{prefix}positional_embedding"],
        **_blocks("text_model", layers, of, f"{prefix}transformer.resblocks"),
        **_pair("text_model.final_layer_norm", f"{prefix}ln_final", of),
    }


OWN_BLOCK = {
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
    names: Mapping[str, str] = OWN_BLOCK,
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
