"""open_clip's folders: the numbers of the same weights in the other layout, and open_clip's."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.tiny import caption, tiny_clip, tiny_siglip
from trainables.adapters.registry import build, make_config
from trainables.errors import CliptuneError
from trainables.files import read_json, write_json
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images
from trainables.models.load import load_backbone
from trainables.models.text_tower import embed_text

TEXTS = [*(caption(i, i % 2) for i in range(5)), "", "a dog " * 60]
BLOCK = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj"}
BLOCK |= {"mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "in": "attn.in_proj_"}
TIMM = {"layer_norm1": "norm1", "layer_norm2": "norm2", "self_attn.out_proj": "attn.proj"}
TIMM |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2", "in": "attn.qkv."}
Tensors = dict[str, Tensor]


def blocks(of: Tensors, tower: str, to: str, names: Mapping[str, str]) -> Tensors:
    found = {}
    for n in (0, 1):
        at = f"{tower}.encoder.layers.{n}"
        for end in ("weight", "bias"):
            qkv = [of[f"{at}.self_attn.{letter}_proj.{end}"] for letter in "qkv"]
            found[f"{to}.{n}.{names['in']}{end}"] = torch.cat(qkv)
            for ours, theirs in names.items():
                if ours != "in":
                    found[f"{to}.{n}.{theirs}.{end}"] = of[f"{at}.{ours}.{end}"]
    return found


def both(of: Tensors, **names: str) -> Tensors:
    """A layer's weight and bias under its other name, dots written as `__`."""
    return {
        f"{to.replace('__', '.')}.{end}": of[f"{at}.{end}"]
        for to, at in names.items()
        for end in ("weight", "bias")
    }


def text_tensors(of: Tensors, prefix: str) -> Tensors:
    tower = "text_model"
    return {
        f"{prefix}token_embedding.weight": of[f"{tower}.embeddings.token_embedding.weight"],
        f"{prefix}positional_embedding": of[f"{tower}.embeddings.position_embedding.weight"],
        **blocks(of, tower, f"{prefix}transformer.resblocks", BLOCK),
        **both(of, **{f"{prefix}ln_final": f"{tower}.final_layer_norm"}),
    }


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "context_length": config["max_position_embeddings"],
        **{"vocab_size": config["vocab_size"], "width": config["hidden_size"]},
        **{"heads": config["num_attention_heads"], "layers": config["num_hidden_layers"]},
    }


def pair(base: Path, act: str, custom: bool = False) -> tuple[Path, Path]:
    """A tiny CLIP in both layouts."""
    plain, open_ = tiny_clip(base / "plain"), base / "open"
    config = read_json(plain / "config.json")
    for tower in ("text_config", "vision_config"):
        config[tower]["hidden_act"] = act
    write_json(plain / "config.json", config)
    of, prefix = load_file(plain / "model.safetensors"), "text." if custom else ""
    tensors = {
        **text_tensors(of, prefix),
        f"{prefix}text_projection": of["text_projection.weight"].T,
        "visual.class_embedding": of["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": of["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": of["vision_model.embeddings.position_embedding.weight"],
        **both(of, visual__ln_pre="vision_model.pre_layrnorm"),
        **blocks(of, "vision_model", "visual.transformer.resblocks", BLOCK),
        **both(of, visual__ln_post="vision_model.post_layernorm"),
        "visual.proj": of["visual_projection.weight"].T,
        "logit_scale": of["logit_scale"],
    }
    about = {"embed_dim": 16, "quick_gelu": act == "quick_gelu", "custom_text": custom}
    about["vision_cfg"] = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8}
    about["vision_cfg"] |= {"head_width": 8}
    about["text_cfg"] = text_config(config["text_config"])
    return plain, write(open_, plain, about, tensors)


def siglips(base: Path, act: str, _: bool = False) -> tuple[Path, Path]:
    """A tiny SigLIP in both layouts; its image tower is one of timm's."""
    plain, open_ = tiny_siglip(base / "plain", width=48), base / "open"
    config = read_json(plain / "config.json")
    config["text_config"] |= {"hidden_act": act}
    config["vision_config"] |= {"hidden_act": "gelu", "num_attention_heads": 12}
    write_json(plain / "config.json", config)
    of = load_file(plain / "model.safetensors")
    trunk, head = "visual.trunk", "vision_model.head"
    tensors = {
        **text_tensors(of, "text."),
        **both(of, text__text_projection="text_model.head"),
        **both(of, visual__trunk__patch_embed__proj="vision_model.embeddings.patch_embedding"),
        f"{trunk}.pos_embed": of["vision_model.embeddings.position_embedding.weight"][None],
        **blocks(of, "vision_model", f"{trunk}.blocks", TIMM),
        **both(of, visual__trunk__norm="vision_model.post_layernorm"),
        f"{trunk}.attn_pool.latent": of[f"{head}.probe"],
        **both(of, visual__trunk__attn_pool__proj=f"{head}.attention.out_proj"),
        **both(of, visual__trunk__attn_pool__norm=f"{head}.layernorm"),
        **both(of, visual__trunk__attn_pool__mlp__fc1=f"{head}.mlp.fc1"),
        **both(of, visual__trunk__attn_pool__mlp__fc2=f"{head}.mlp.fc2"),
        **{name: of[name].reshape(()) for name in ("logit_scale", "logit_bias")},
    }
    for end in ("weight", "bias"):
        fused = of[f"{head}.attention.in_proj_{end}"]
        tensors[f"{trunk}.attn_pool.q.{end}"] = fused[:48]
        tensors[f"{trunk}.attn_pool.kv.{end}"] = fused[48:]
    about: dict[str, Any] = {"embed_dim": 48, "init_logit_bias": -10, "custom_text": True}
    about["vision_cfg"] = {"image_size": 32, "timm_model_name": "vit_base_patch16_siglip_224"}
    about["vision_cfg"] |= {"timm_pool": "map", "timm_proj": "none"}
    about["text_cfg"] = text_config(config["text_config"]) | {
        **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        **{"norm_kwargs": {"eps": 1e-6}, "tokenizer_kwargs": {"clean": "canonicalize"}},
        **({"act_kwargs": {"approximate": "tanh"}} if act != "gelu" else {}),
    }
    return plain, write(open_, plain, about, tensors)


def write(folder: Path, plain: Path, about: Mapping[str, Any], tensors: Tensors) -> Path:
    folder.mkdir()
    for path in plain.glob("*token*.json"):
        shutil.copyfile(path, folder / path.name)
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "open_clip_model.safetensors")
    how = read_json(plain / "preprocessor_config.json")
    squash = about["vision_cfg"].get("timm_model_name")
    preprocess = {"mean": how["image_mean"], "std": how["image_std"], "interpolation": "bicubic"}
    preprocess |= {"resize_mode": "squash" if squash else "shortest"}
    config = {"model_cfg": dict(about), "preprocess_cfg": preprocess}
    write_json(folder / "open_clip_config.json", config)
    return folder


KINDS: dict[str, tuple[Callable[..., tuple[Path, Path]], str, bool]] = {
    "quick_gelu": (pair, "quick_gelu", False),
    "gelu": (pair, "gelu", False),
    "text apart": (pair, "gelu", True),
    "SigLIP": (siglips, "gelu", False),
    "SigLIP 2": (siglips, "gelu_pytorch_tanh", False),
}


@pytest.fixture(scope="module", params=KINDS)
def folders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    make, act, custom = KINDS[request.param]
    return make(tmp_path_factory.mktemp("clip"), act, custom)


def numbers(backbone: Backbone) -> tuple[Tensor, Tensor]:
    pixels = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        texts = embed_text(backbone, backbone.tokenize(TEXTS)[0])
        return embed_images(backbone, pixels.byte()), texts


def assert_close(ours: Tensor, reference: Tensor) -> None:
    assert ours.shape == reference.shape
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


def test_it_equals_the_same_weights_in_the_other_layout(folders: tuple[Path, Path]) -> None:
    plain, open_ = map(load_backbone, map(str, folders))
    for name in ("kind", "preprocess", "embed_dim", "text_width", "context_length", "end_token"):
        assert getattr(open_, name) == getattr(plain, name)
    assert (open_.scale, open_.bias) == (plain.scale, plain.bias)
    for ours, reference in zip(numbers(open_), numbers(plain), strict=True):
        assert_close(ours, reference)


def test_it_equals_open_clips_own_forward(folders: tuple[Path, Path]) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    backbone = load_backbone(str(folders[1]))
    about = dict(read_json(folders[1] / "open_clip_config.json")["model_cfg"])
    custom = about.pop("custom_text")
    vision, text = about["vision_cfg"], about["text_cfg"]
    if backbone.kind == "siglip":
        timm = pytest.importorskip("timm.models.vision_transformer")
        about["vision_cfg"] = {"layers": 1, "width": 48, "head_width": 12, "image_size": 32}
        model = open_clip.CustomTextCLIP(**about)
        model.visual = torch.nn.ModuleDict()
        model.visual["trunk"] = timm.VisionTransformer(
            **{"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 12},
            **{"class_token": False, "global_pool": "map", "num_classes": 0},
        )
    else:
        cls = open_clip.CustomTextCLIP if custom else open_clip.CLIP
        parts = open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text)
        model = cls(about["embed_dim"], *parts, quick_gelu=about["quick_gelu"])
    model.load_state_dict(load_file(folders[1] / "open_clip_model.safetensors"))
    model.eval()
    pixels = torch.randint(256, (3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    visual = model.visual if backbone.kind == "clip" else model.visual["trunk"]
    tokens = backbone.tokenize(TEXTS)[0]
    ids = tokens.pad(0 if backbone.kind == "clip" else backbone.pad_token, backbone.context_length)
    with torch.no_grad():
        reference = visual(backbone.preprocess.normalise(pixels)), model.encode_text(ids.long())
    for ours, theirs in zip(numbers(backbone), reference, strict=True):
        assert_close(ours, theirs)


def test_low_rank_updates_find_q_k_and_v_apart(folders: tuple[Path, Path]) -> None:
    backbone = load_backbone(str(folders[1]))
    adapter = build(make_config("lora", {"adapter.targets": "qkv", "adapter.layers": 1}), backbone)
    names = {name.split(".")[1].split("-")[-1] for name, _ in adapter.named_parameters()}
    assert names == {"q_proj", "k_proj", "v_proj"}


def test_siglip_texts_are_cleaned_as_the_config_says(tmp_path: Path) -> None:
    folder = str(siglips(tmp_path, "gelu")[1])
    for cleans in (True, False):
        backbone = load_backbone(folder, clean_text=cleans)
        ids = [
            backbone.tokenize([text])[0].ids.tolist() for text in ("A  red_dog's!", "a red dogs")
        ]
        assert (ids[0] == ids[1]) is cleans


def test_hugging_faces_layout_goes_first(tmp_path: Path) -> None:
    plain, open_ = pair(tmp_path, "gelu")
    before = load_backbone(str(plain)).fingerprint
    for path in open_.glob("open_clip*"):
        shutil.copyfile(path, plain / path.name)
    assert load_backbone(str(plain)).fingerprint == before


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_the_fingerprint_sees_its_files(tmp_path: Path, name: str) -> None:
    path = pair(tmp_path, "gelu")[1] / name
    before = load_backbone(str(path.parent)).fingerprint
    data = path.read_bytes()
    changed = data[:-1] + bytes([data[-1] ^ 1]) if "model" in name else data + b" "
    path.write_bytes(changed)
    assert load_backbone(str(path.parent)).fingerprint != before


@pytest.mark.parametrize(
    ("tower", "field", "value", "message"),
    [
        ("vision_cfg", "layers", [3, 4, 6, 3], r"vision_cfg.layers` .* must be a number"),
        ("vision_cfg", "attentional_pool", True, "vision_cfg.attentional_pool` .* not supported"),
        ("vision_cfg", "timm_model_name", "convnext_base", "timm_model_name` .* SigLIP"),
        ("text_cfg", "hf_model_name", "roberta-base", "text_cfg.hf_model_name` .* not supported"),
        ("text_cfg", "pool_type", "first", "pool_type` .* argmax or eos, got 'first'"),
        ("text_cfg", "width", 64, "do not fit"),
        ("text_cfg", "layers", 3, "got none for `transformer.resblocks.2"),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused(
    tmp_path: Path, tower: str, field: str, value: Any, message: str
) -> None:
    folder = pair(tmp_path, "gelu")[1]
    config = read_json(folder / "open_clip_config.json")
    config["model_cfg"][tower][field] = value
    write_json(folder / "open_clip_config.json", config)
    with pytest.raises(CliptuneError, match=message):
        load_backbone(str(folder))
