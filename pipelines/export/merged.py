"""A plain CLIPModel of transformers' that does what the adapter does, or a LoRA as PEFT has it.

Flows in: a trained LoRA, whose updates are added to the weights; or a prompt in front of the words,
whose vectors become tokens that the tokenizer puts there. Flows out: a folder that transformers, or
PEFT, loads without code of ours.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from pipelines.export.parity import normalised
from pipelines.export.refusals import instead
from pipelines.export.sample import Answers, Sample
from trainables.adapters.base import Adapter
from trainables.adapters.shared import write_model
from trainables.errors import ConfigError
from trainables.models.backbone import Backbone


def write_merged(adapter: Adapter[Any], folder: Path, sample: Sample) -> list[Path]:
    del sample
    merge: Any = getattr(adapter, "merge", None)
    if merge is not None:
        wrote: list[Path] = merge(folder)
        return wrote
    prompt = adapter.prompt
    plain = not adapter.moves_prompt and adapter.image_block is None
    first = prompt is not None and prompt.place == "after_sos" and prompt.deep is None
    if prompt is None or not (plain and first and prompt.shared):
        raise ConfigError(
            f"`{adapter.train_config.name}` fits into no plain CLIPModel: a LoRA does, and one "
            "prompt for all texts, between start and words, in front of the first block alone. "
            + instead(adapter)
        )
    return _write_prompted(adapter.backbone, prompt.vectors.detach(), folder)


def _write_prompted(backbone: Backbone, vectors: Tensor, folder: Path) -> list[Path]:
    """The vectors (P, d) as the embeddings of P more tokens."""
    model = copy.deepcopy(backbone.model)
    table = model.text_model.embeddings.token_embedding
    size = table.num_embeddings
    weight = torch.cat([table.weight.detach(), vectors.to(table.weight)])
    model.text_model.embeddings.token_embedding = nn.Embedding.from_pretrained(weight)
    model.config.text_config.vocab_size = len(weight)
    # Else a text would end at its highest id, which is no longer that of its end.
    model.config.text_config.eos_token_id = backbone.end_token
    model.text_model.eos_token_id = backbone.end_token
    words = Tokenizer.from_str(backbone.tokenizer.backend_tokenizer.to_str())
    names = [f"<|prompt_{number}|>" for number in range(len(vectors))]
    words.add_special_tokens(names)
    own = (backbone.start_token or 0, backbone.end_token, backbone.pad_token)  # CLIP has all three
    start, end, pad = (words.id_to_token(one) for one in own)
    ids = [(start, own[0]), (end, own[1])]
    ids += [(name, size + number) for number, name in enumerate(names)]
    words.post_processor = TemplateProcessing(f"{start} {' '.join(names)} $A {end}", None, ids)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        **{"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": pad},
        model_max_length=backbone.context_length,
    )
    return write_model(folder, replace(backbone, tokenizer=tokenizer), model)


def write_peft(adapter: Adapter[Any], folder: Path, sample: Sample) -> list[Path]:
    del sample
    if not hasattr(adapter, "merge"):
        raise ConfigError(
            f"`--to peft` needs a LoRA adapter, got `{adapter.train_config.name}`. "
            + instead(adapter)
        )
    return adapter.export(folder)


def answer(folder: Path, sample: Sample, about: dict[str, Any]) -> Answers:
    """By transformers, and PEFT where the folder holds its format."""
    from transformers import AutoModel, AutoTokenizer

    own = (folder / "config.json").is_file()
    base = str(folder) if own else about["backbone"]["name"]
    how = {} if own or Path(base).is_dir() else {"revision": about["backbone"]["revision"]}
    model: Any = AutoModel.from_pretrained(base, **how).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(base, **how)
    if not own:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(folder)).eval().base_model.model
    ids = tokenizer(sample.texts, padding="max_length", truncation=True, return_tensors="pt")
    with torch.no_grad():
        texts = model.get_text_features(input_ids=ids["input_ids"]).pooler_output
        images = model.get_image_features(pixel_values=normalised(sample, about)).pooler_output
    return {"images": F.normalize(images, dim=-1), "texts": F.normalize(texts, dim=-1)}
