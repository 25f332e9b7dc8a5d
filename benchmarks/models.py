"""CLIP in its real shapes with random weights, made in memory.

Flows in: the name of a shape. Flows out: a `Backbone` without a tokenizer: captions come as ids.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModel, CLIPConfig
from transformers.utils import logging

from benchmarks.captions import EOT, SOT
from pipelines.demo.tokenizer import build_tokenizer
from trainables.files import write_json
from trainables.media.preprocess import CLIP_MEAN, CLIP_STD, Preprocess
from trainables.models.backbone import Backbone

# Width, depth and heads of each tower; those of openai/clip-vit-base-patch32,
# -base-patch16 and -large-patch14.
SHAPES: dict[str, dict[str, Any]] = {
    "B/32": {"joint": 512, "text": (512, 12, 8), "vision": (768, 12, 12), "patch": 32},
    "B/16": {"joint": 512, "text": (512, 12, 8), "vision": (768, 12, 12), "patch": 16},
    "L/14": {"joint": 768, "text": (768, 12, 12), "vision": (1024, 24, 16), "patch": 14},
    "tiny": {"joint": 32, "text": (64, 2, 2), "vision": (64, 2, 2), "patch": 32},
}
PREPROCESS = Preprocess("crop", 224, 224, "bicubic", CLIP_MEAN, CLIP_STD)
PROCESSOR = {
    "size": {"shortest_edge": PREPROCESS.resize},
    "crop_size": {"height": PREPROCESS.size, "width": PREPROCESS.size},
    **{"image_mean": list(PREPROCESS.mean), "image_std": list(PREPROCESS.std)},
}


def clip(
    shape: str,
    *,
    text_layers: int | None = None,
    vision_layers: int | None = None,
    sharpness: float = 8,
    **vocabulary: int,
) -> Any:
    """A frozen `CLIPModel` of that shape; towers that a row does not need can be cut short.

    As drawn, attention is even and all inputs come out alike: queries and keys are multiplied by
    `sharpness`. `vocabulary` overrides the size and the ids of CLIP's own.
    """
    of = SHAPES[shape]
    config = CLIPConfig(
        projection_dim=of["joint"],
        text_config={
            **_tower(of["text"], text_layers),
            **{"eos_token_id": EOT, "bos_token_id": SOT, "pad_token_id": EOT, **vocabulary},
        },
        vision_config={**_tower(of["vision"], vision_layers), "patch_size": of["patch"]},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config, attn_implementation="sdpa")
        factors = {"q_proj": sharpness, "k_proj": sharpness, "v_proj": 4, "out_proj": 4}
        with torch.no_grad():
            for tower in (model.text_model, model.vision_model):
                for layer in tower.encoder.layers:
                    for name, factor in factors.items():
                        layer.self_attn.get_parameter(f"{name}.weight").mul_(factor)
    return model.requires_grad_(False).eval()


def _tower(shape: tuple[int, int, int], layers: int | None) -> dict[str, int]:
    width, depth, heads = shape
    return {
        **{"hidden_size": width, "intermediate_size": 4 * width},
        **{"num_hidden_layers": layers or depth, "num_attention_heads": heads},
    }


def backbone(shape: str, **layers: int) -> Backbone:
    """`clip` as what the engine works on."""
    model = clip(shape, **layers)
    text = model.config.text_config
    return Backbone(
        name=shape,
        revision=None,
        fingerprint="random",
        kind="clip",
        model=model,
        tokenizer=None,
        preprocess=PREPROCESS,
        embed_dim=model.config.projection_dim,
        text_width=text.hidden_size,
        context_length=text.max_position_embeddings,
        start_token=SOT,
        end_token=EOT,
        pad_token=EOT,
        scale=100.0,
        bias=0.0,
        device=torch.device("cpu"),
    )


def injected(clip: Backbone, modules: str) -> tuple[Any, dict[str, Tensor]]:
    """PEFT's LoRA (r = 8, no dropout) in the matrices that fit the expression `modules`.

    B starts away from 0: else A would have no gradient to compare.
    """
    peft = get_peft_model(clip.model, LoraConfig(r=8, lora_alpha=16, target_modules=modules))
    trained = {n: p for n, p in peft.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for number, parameter in enumerate(trained.values()):
            parameter.copy_(normal(*parameter.shape, seed=number, scale=0.02))
    return peft.eval(), trained


def normal(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    """Numbers of a fixed stream, float32."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(count: int, seed: int = 0) -> Tensor:
    """uint8 (count, 3, 224, 224), smooth enough to differ after the patch embedding."""
    coarse = normal(count, 3, 14, 14, seed=seed)
    smooth = torch.nn.functional.interpolate(coarse, size=(224, 224), mode="bicubic")
    return (128 + 60 * smooth).clamp(0, 255).to(torch.uint8)


def save(folder: Path, shape: str, captions: list[str], layers: int | None = None) -> Path:
    """That shape, cut to `layers` blocks a tower, in Hugging Face layout, and a tokenizer.

    Learnt on `captions`, it makes them about as long as CLIP's own.
    """
    tokenizer = build_tokenizer(captions * 2)
    model = clip(
        shape,
        text_layers=layers,
        vision_layers=layers,
        sharpness=4,  # at 8, training magnifies the last bit of a sum
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()
    tokenizer.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", PROCESSOR)
    return folder
