"""open_clip's layout: `open_clip_config.json` and `open_clip_model.safetensors`.

Flows in: a trained LoRA of a CLIP, whose updates are added to the weights. Flows out: a folder that
`open_clip.create_model_and_transforms("local-dir:FOLDER")` loads, with the tokenizer that it knows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pipelines.export.parity import normalised
from pipelines.export.refusals import instead
from pipelines.export.sample import Answers, Sample
from trainables.adapters.base import Adapter
from trainables.errors import ConfigError
from trainables.files import write_json
from trainables.models.backbone import Backbone
from trainables.models.open_clip import CONFIG, WEIGHTS
from trainables.models.open_clip_towers import OWN_BLOCK

ACTS = ("quick_gelu", "gelu")


def write(adapter: Adapter[Any], folder: Path, sample: Sample) -> list[Path]:
    del sample
    merged: Any = getattr(adapter, "merged", None)
    if merged is None or adapter.backbone.kind != "clip":
        raise ConfigError(
            f"`--to open_clip` needs a LoRA of a CLIP, got `{adapter.train_config.name}` of a "
            f"{adapter.backbone.kind} model: its tokenizer knows no prompts. " + instead(adapter)
        )
    model = merged()
    write_json(folder / CONFIG, _config(adapter.backbone, model.config))
    tensors = {name: one.detach().contiguous().clone() for name, one in _tensors(model).items()}
    save_file(tensors, folder / WEIGHTS)
    adapter.backbone.tokenizer.save_pretrained(folder)
    return sorted(folder.iterdir())


def _config(backbone: Backbone, config: Any) -> dict[str, Any]:
    vision, text, how = config.vision_config, config.text_config, backbone.preprocess
    act = vision.hidden_act
    if act not in ACTS or text.hidden_act != act:
        raise ConfigError(
            f"`--to open_clip` needs both towers with {' or '.join(ACTS)}, got {act} and "
            f"{text.hidden_act}."
        )
    return {
        "model_cfg": {
            "embed_dim": config.projection_dim,
            "quick_gelu": act == "quick_gelu",
            "vision_cfg": {
                **{"image_size": vision.image_size, "patch_size": vision.patch_size},
                **{"layers": vision.num_hidden_layers, "width": vision.hidden_size},
                "head_width": vision.hidden_size // vision.num_attention_heads,
                "mlp_ratio": vision.intermediate_size / vision.hidden_size,
            },
            "text_cfg": {
                **{"context_length": text.max_position_embeddings, "vocab_size": text.vocab_size},
                **{"layers": text.num_hidden_layers, "width": text.hidden_size},
                "heads": text.num_attention_heads,
                "mlp_ratio": text.intermediate_size / text.hidden_size,
                "hf_tokenizer_name": backbone.name,  # that it was; the files lie beside
            },
        },
        "preprocess_cfg": {
            **{"mean": list(how.mean), "std": list(how.std), "interpolation": how.mode},
            "resize_mode": "shortest" if how.kind == "crop" else "squash",
            "size": how.resize,
        },
    }


def _tensors(model: Any) -> dict[str, Tensor]:
    """The weights under open_clip's names; its `in_proj` is q, k and v in one."""
    of: dict[str, Tensor] = model.state_dict()
    seen, read = "vision_model", "text_model"
    found = {
        "visual.class_embedding": of[f"{seen}.embeddings.class_embedding"],
        "visual.conv1.weight": of[f"{seen}.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": of[f"{seen}.embeddings.position_embedding.weight"],
        "visual.proj": of["visual_projection.weight"].T,
        "token_embedding.weight": of[f"{read}.embeddings.token_embedding.weight"],
        "positional_embedding": of[f"{read}.embeddings.position_embedding.weight"],
        "text_projection": of["text_projection.weight"].T,
        "logit_scale": of["logit_scale"],
    }
    pairs = {
        f"{seen}.pre_layrnorm": "visual.ln_pre",
        f"{seen}.post_layernorm": "visual.ln_post",
        f"{read}.final_layer_norm": "ln_final",
    }
    for tower, blocks in ((seen, "visual.transformer.resblocks"), (read, "transformer.resblocks")):
        for number in range(len(getattr(model, tower).encoder.layers)):
            here, there = f"{tower}.encoder.layers.{number}", f"{blocks}.{number}"
            own = {ours: theirs for ours, theirs in OWN_BLOCK.items() if ours != "in"}
            pairs |= {f"{here}.{ours}": f"{there}.{theirs}" for ours, theirs in own.items()}
            for end in ("weight", "bias"):
                parts = [of[f"{here}.self_attn.{letter}_proj.{end}"] for letter in "qkv"]
                found[f"{there}.attn.in_proj_{end}"] = torch.cat(parts)
    return found | {
        f"{there}.{end}": of[f"{here}.{end}"]
        for here, there in pairs.items()
        for end in ("weight", "bias")
    }


def answer(folder: Path, sample: Sample, about: dict[str, Any]) -> Answers:
    """By open_clip."""
    import open_clip

    name = f"local-dir:{folder}"
    model = open_clip.create_model_and_transforms(name)[0].eval()
    ids = open_clip.get_tokenizer(name)(sample.texts)
    with torch.no_grad():
        images, texts = model.encode_image(normalised(sample, about)), model.encode_text(ids)
    return {"images": F.normalize(images, dim=-1), "texts": F.normalize(texts, dim=-1)}
