"""Tiny stand-ins that the tests share: a random CLIP, a feature store, a shard folder.

Flows in: an empty folder. Flows out: that folder, filled in the real on-disk format, so that a test
runs the real readers in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteDecoder
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import ByteLevel, Whitespace
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)
from transformers.utils import logging

from trainables.data.shards import SCHEMA, ShardSet
from trainables.files import sha256_bytes, sha256_file, write_json
from trainables.models.load import load_backbone

SOT, EOT = "<|startoftext|>", "<|endoftext|>"
COLOURS = ("red", "green", "blue", "white", "black", "yellow")
NOUNS = ("dog", "cat", "ball", "tree", "boat", "house", "car", "bird")
PLACES = ("in the park", "on a table", "near the sea", "under a bridge")
WORDS = ("a", "photo", "of", *COLOURS, *NOUNS, *" ".join(PLACES).split())


def caption(index: int, variant: int = 0) -> str:
    """The caption of image `index`: 192 different ones, two wordings of each."""
    colour, noun = COLOURS[index % 6], NOUNS[index // 6 % 8]
    start = ("a", "a photo of a")[variant % 2]
    return f"{start} {colour} {noun} {PLACES[index // 48 % 4]}"


def tiny_tokenizer(words: Sequence[str] = WORDS) -> CLIPTokenizer:
    """CLIP's byte-level BPE with a vocabulary of bytes and these words."""
    letters = sorted(ByteLevel.alphabet())
    vocab = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys(words):
        pieces = [*word[:-1], word[-1] + "</w>"]
        for pair in merges:  # what the words before this one make of it
            pieces = _merge(pieces, pair)
        while len(pieces) > 1:  # glue the rest from the left
            merges.append((pieces[0], pieces[1]))
            vocab.append(pieces[0] + pieces[1])
            pieces = _merge(pieces, merges[-1])
    ids = {piece: number for number, piece in enumerate([*vocab, SOT, EOT])}
    return CLIPTokenizer(vocab=ids, merges=merges, model_max_length=77)


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in pieces:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def tiny_clip(
    folder: Path,
    seed: int = 0,
    *,
    layers: int = 2,
    text_width: int = 32,
    vision_width: int = 32,
    heads: int = 4,
    image_size: int = 32,
    patch: int = 8,
    joint: int = 16,
    positions: int = 77,
    **text: Any,
) -> Path:
    """A random `CLIPModel` in Hugging Face layout; `text` overrides fields of its text config."""
    tokenizer = tiny_tokenizer()
    shape = {"num_hidden_layers": layers, "num_attention_heads": heads, "projection_dim": joint}
    eot = tokenizer.eos_token_id
    config = CLIPConfig(
        projection_dim=joint,
        text_config={
            **shape,
            "hidden_size": text_width,
            "intermediate_size": 4 * text_width,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": positions,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": eot,
            "pad_token_id": eot,
            **text,
        },
        vision_config={
            **shape,
            "hidden_size": vision_width,
            "intermediate_size": 4 * vision_width,
            "image_size": image_size,
            "patch_size": patch,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(config)
        with torch.no_grad():  # CLIP's initialisation is so small that all captions look alike
            model.text_model.embeddings.token_embedding.weight.mul_(20)
            for layer in model.text_model.encoder.layers:
                layer.self_attn.v_proj.weight.mul_(4)
                layer.self_attn.out_proj.weight.mul_(4)
    tokenizer.save_pretrained(folder)
    crop = {
        **{"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": image_size}},
        **{"do_center_crop": True, "crop_size": {"height": image_size, "width": image_size}},
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    return _save(model, crop, folder)


def tiny_siglip(
    folder: Path, seed: int = 0, width: int = 32, image_size: int = 32, **text: Any
) -> Path:
    """A random `SiglipModel` in Hugging Face layout: 64 positions, no start token; `text` overrides
    fields of its text config."""
    size = {"hidden_size": width, "intermediate_size": 4 * width}
    shape = {**size, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(WORDS)])}
    words = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = Lowercase(), Whitespace()
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(folder)
    config = SiglipConfig(
        text_config={
            **{**shape, "vocab_size": len(ids), "max_position_embeddings": 64},
            **{
                "projection_size": width,
                "bos_token_id": None,
                "eos_token_id": 1,
                "pad_token_id": 0,
            },
            **text,
        },
        vision_config={**shape, "image_size": image_size, "patch_size": 8},
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = SiglipModel(config)
    squash = {
        **{"image_processor_type": "SiglipImageProcessor", "do_center_crop": None},
        **{"size": {"height": image_size, "width": image_size}},
        **{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    }
    return _save(model, squash, folder)


def tiny_lm(folder: Path, kind: str = "gpt2", seed: int = 0, positions: int = 64) -> Path:
    """A random causal language model of width 32 in the shape of GPT-2 or Llama."""
    words = Tokenizer(
        BPE(merges=[], vocab={c: n for n, c in enumerate(sorted(ByteLevel.alphabet()))})
    )
    words.pre_tokenizer, words.decoder = ByteLevel(add_prefix_space=False), ByteDecoder()
    end = "<|endoftext|>"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token=end, eos_token=end)
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.eos_token_id}
    shape |= {"eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": positions}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "gpt2":
            model: Any = GPT2LMHeadModel(GPT2Config(**shape, n_embd=32, n_layer=2, n_head=4))
        else:
            size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
            heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
            model = LlamaForCausalLM(LlamaConfig(**shape, **size, **heads))
        with torch.no_grad():  # its initialisation is so small that all words look alike
            model.get_input_embeddings().weight.mul_(10)
    tokenizer.save_pretrained(folder)
    _save_weights(model, folder)
    return folder


def _save_weights(model: PreTrainedModel, folder: Path) -> None:
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    if bars:
        logging.enable_progress_bar()


def _save(model: PreTrainedModel, processor: dict[str, Any], folder: Path) -> Path:
    _save_weights(model, folder)
    steps = {"do_resize": True, "do_rescale": True, "do_normalize": True}
    processor |= {**steps, "resample": 3, "rescale_factor": 1 / 255}
    write_json(folder / "preprocessor_config.json", processor)
    return folder


def picture(index: int, size: int = 40, seed: int = 0) -> bytes:
    """A JPEG of smooth noise whose colour depends on `index`."""
    random = np.random.default_rng([seed, index])
    noise = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    buffer = BytesIO()
    noise.resize((size + index % 7, size), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def tiny_features(
    folder: Path,
    images: int = 24,
    captions: int = 2,
    *,
    val: int = 12,
    views: int = 0,
    pixels: bool = False,
    duplicates: int = 0,
    clip: Path | None = None,
    shards: Path | None = None,
    seed: int = 0,
) -> Path:
    """A feature store of `images` train and `val` val images for `tiny_clip`'s joint width of 16.

    `shards`: those of `tiny_shards` with as many images and captions, for what is read of them.
    An image's embedding is a rotated copy of a code of its caption's words, so there is something
    to learn. The last `duplicates` train images have the bytes of the first ones.
    """
    random = torch.Generator().manual_seed(seed)
    codes = {word: torch.randn(16, generator=random) for word in WORDS}
    tokenizer = tiny_tokenizer()
    splits = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, start in (("train", images, 0), ("val", val, images)):
        texts = [caption(start + i, v) for i in range(count) for v in range(captions)]
        encoded = tokenizer(texts)["input_ids"]
        embeds = torch.stack(
            [sum(codes[w] for w in caption(start + i).split()) for i in range(count)]  # type: ignore[misc]
        )
        groups = torch.arange(count)
        if split == "train" and duplicates:
            embeds[-duplicates:] = embeds[:duplicates]
            groups[-duplicates:] = groups[:duplicates]
        tensors = {
            "image_embeds": embeds,  # (N, e)
            "token_ids": torch.tensor([i for ids in encoded for i in ids], dtype=torch.int32),
            "token_offsets": torch.tensor([0, *np.cumsum([len(ids) for ids in encoded])]),
            "caption_rows": torch.arange(count).repeat_interleave(captions),
            "groups": groups,
        }
        if pixels:
            shape = (count, 3, 32, 32)
            tensors["pixels"] = torch.randint(256, shape, generator=random, dtype=torch.uint8)
        path = folder / f"{split}.safetensors"
        save_file(tensors, path)
        write_json(folder / f"{split}.ids.json", [f"{split}-{i:03}" for i in range(count)])
        splits[split] = {
            **{"images": count, "captions": len(texts), "truncated_captions": 0},
            **{"bytes": path.stat().st_size, "sha256": sha256_file(path)},
        }
    manifest = {
        **{"format": "cliptune-features-2", "key": "tiny", "shards": str(shards or "")},
        "shards_sha256": ShardSet.open(shards).digest if shards else "",
        "backbone": {
            **{"name": str(clip or ""), "revision": None},
            "fingerprint": load_backbone(str(clip)).fingerprint if clip else "",
        },
        **{"preprocess": {}, "views": views, "data_seed": 0, "pixels": pixels},
        **{"splits": splits, "truncated_captions": 0},
    }
    write_json(folder / "manifest.json", manifest)
    return folder


def tiny_shards(
    folder: Path,
    counts: Mapping[str, int] | None = None,
    captions: int = 2,
    *,
    rows_per_shard: int = 8,
    classes: bool = False,
    duplicates: int = 0,
    seed: int = 0,
) -> Path:
    """A shard folder as `cliptune shards` writes it: `counts` images a split (24, 8, 8).

    With `classes` the images have class names and no captions. The last `duplicates` train images
    have the bytes of the first ones.
    """
    counts = counts or {"train": 24, "val": 8, "test": 8}
    folder.mkdir(parents=True, exist_ok=True)
    shards, index = [], 0
    for split, count in counts.items():
        rows = []
        for i in range(count):
            copy = split == "train" and i >= count - duplicates
            image = picture(i - count + duplicates if copy else index, seed=seed)
            name = NOUNS[index // 6 % 8]
            rows.append(
                {
                    **{"id": f"{split}-{i:03}", "image": image, "width": 40 + index % 7},
                    **{"height": 40, "label": NOUNS.index(name) if classes else None},
                    "captions": [] if classes else [caption(index, v) for v in range(captions)],
                    "class_name": name if classes else None,
                    **{"split": split, "sha256": sha256_bytes(image)},
                }
            )
            index += 1
        for number, start in enumerate(range(0, count, rows_per_shard)):
            part = rows[start : start + rows_per_shard]
            path = folder / f"{split}-{number:05}.parquet"
            pq.write_table(pa.Table.from_pylist(part, SCHEMA), path, row_group_size=5)
            entry = {"file": path.name, "split": split, "rows": len(part)}
            entry["captions"] = sum(len(row["captions"]) for row in part)
            shards.append(entry | {"sha256": sha256_file(path)})
    splits = {
        split: {"images": n, "captions": 0 if classes else n * captions}
        for split, n in counts.items()
    }
    manifest = {
        **{"format": "cliptune-shards-1", "source": {}, "splits": splits, "shards": shards},
        "classes": {name: i for i, name in enumerate(NOUNS)} if classes else {},
        **{"quarantined": {}, "notes": {}, "created": ""},
    }
    write_json(folder / "manifest.json", manifest)
    return folder
