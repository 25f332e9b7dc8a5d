"""Captions from prefixes: saying them, and learning to.

The baseline is what ClipCap's public code does (Mokady et al. 2021), on transformers' own GPT-2:
one picture at a time, its beams' whole text read again for each token; and training on captions
padded to one length, with logits at every position. GPT-2 has its real shape and random weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GPT2Config

from benchmarks import captions as texts
from benchmarks.harness import Case, Outputs, Row
from benchmarks.models import backbone, normal
from benchmarks.steps import step
from trainables.adapters.registry import build, make_config
from trainables.data.batches import Batch, Tokens
from trainables.models.decoding import Decoding, decode
from trainables.models.language_model import LanguageModel

SHAPE = {"n_embd": 768, "n_layer": 12, "n_head": 12}  # of openai-community/gpt2
VOCABULARY, POSITIONS = 50257, 1024
LENGTH = 10  # k, vectors in the place of words
PICTURES, BEAMS, WORDS = 32, 5, 15
LONGEST = 84  # tokens, of the 145,000 captions whose lengths `captions.py` follows


def gpt2() -> LanguageModel:
    """GPT-2 without a tokenizer. As drawn, it says its last word again, or all words are as likely:
    its output matrix is another than that of its inputs, and larger."""
    shape = {**SHAPE, "vocab_size": VOCABULARY, "n_positions": POSITIONS}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ends = {"bos_token_id": texts.EOT, "eos_token_id": texts.EOT}
        config = GPT2Config(**shape, **ends, tie_word_embeddings=False)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
        with torch.no_grad():
            model.get_output_embeddings().weight.mul_(10)
    return LanguageModel(
        name="GPT-2",
        revision=None,
        fingerprint="random",
        model=model.requires_grad_(False).eval(),
        tokenizer=None,
        width=SHAPE["n_embd"],
        context_length=POSITIONS,
        end_token=texts.EOT,
        plain=True,
    )


@torch.no_grad()
def one_by_one(model: Any, prefix: Tensor, end: int) -> list[int]:
    """ClipCap's beam search of one picture, prefix (1, k, d): the best beam's tokens."""
    seen, sums, words = prefix, torch.zeros(1), torch.zeros(1, 0, dtype=torch.int64)
    lengths, ended = torch.ones(1), torch.zeros(1, dtype=torch.bool)
    for number in range(WORDS):
        scores = model(inputs_embeds=seen, use_cache=False).logits[:, -1].log_softmax(-1)  # (K, V)
        scores[ended] = -torch.inf
        scores[ended, 0] = 0
        lengths = lengths + (~ended if number else 0)
        means = (sums[:, None] + scores) / lengths[:, None]
        best, places = means.flatten().topk(BEAMS)
        source, chosen = places // scores.shape[1], places % scores.shape[1]
        lengths, ended = lengths[source], ended[source]
        sums = best * lengths
        words = torch.cat([words[source], chosen[:, None]], dim=1)
        vectors = model.get_input_embeddings()(chosen)[:, None]
        seen = torch.cat([seen[source], vectors], dim=1)
        ended = ended | (chosen == end)
        if ended.all():
            break
    top = int((sums / lengths).argmax())
    return words[top, : int(lengths[top])].tolist()


def said(rows: list[list[int]]) -> Outputs:
    """Captions as a matrix, whatever their lengths."""
    grid = torch.full((len(rows), WORDS), -1)
    for row, ids in enumerate(rows):
        grid[row, : len(ids)] = torch.tensor(ids)
    return {"tokens": grid}


def decoding() -> Case:
    """All pictures, one after the other or at once."""
    lm = gpt2()
    prefix = normal(PICTURES, LENGTH, lm.width, seed=1, scale=0.1)
    how = Decoding("beam", BEAMS, max_tokens=WORDS)
    return Case(
        lambda: said([one_by_one(lm.model, one[None], lm.end_token) for one in prefix]),
        lambda: said(decode(lm, prefix, how, lm.end_token, keep_end=True)),
    )


def words(count: int) -> Tokens:
    """Captions as a language model has them: without a start."""
    tokens = texts.captions(count)
    first = torch.zeros(len(tokens.ids), dtype=torch.bool)
    first[tokens.offsets[:-1]] = True
    return Tokens(tokens.ids[~first], tokens.offsets - torch.arange(len(tokens.offsets)))


def padded_length() -> int:
    """ClipCap's rule: the mean and ten standard deviations, at most the longest."""
    lengths = words(texts.CAPTIONS).lengths.double()
    return min(int(lengths.mean() + 10 * lengths.std()), LONGEST)


def training() -> Case:
    """The transformer mapper of 8 layers, in front of a frozen GPT-2."""
    clip, lm = backbone("B/32", text_layers=1, vision_layers=1), gpt2()
    clip.beside[f"language model {lm.name}@None {lm.dtype}"] = lm
    values = {"adapter.lm": lm.name, "adapter.lm_mode": "frozen", "adapter.mapper": "transformer"}
    values["precision"] = "fp32"
    adapter: Any = build(make_config("prefix_captioner", values), clip)
    trained = dict(adapter.named_parameters())
    tokens, images = words(8), normal(8, clip.embed_dim, seed=2)
    groups = torch.arange(8)
    batch = Batch(images, None, tokens, None, groups, groups, torch.tensor(0.0))
    long = padded_length()
    ids = tokens.pad(0, long)  # (8, T)
    real = torch.arange(long) < tokens.lengths[:, None]
    mask = torch.cat([real.new_ones(8, LENGTH), real], dim=1)

    def plain() -> Outputs:
        vectors = torch.cat([adapter.prefix(images, None), lm.embed(ids)], dim=1)
        logits = lm.model(inputs_embeds=vectors, attention_mask=mask.long(), use_cache=False).logits
        logits = logits[:, LENGTH - 1 : -1]  # (8, T, V)
        loss = F.cross_entropy(logits.flatten(0, 1), ids.masked_fill(~real, -100).flatten())
        return step(loss, trained, value=loss)

    def ours() -> Outputs:
        loss, _ = adapter.loss(batch)
        return step(loss, trained, value=loss)

    return Case(plain, ours)


ROWS = (
    Row(
        "captioning/decode",
        f"{PICTURES} pictures, beam {BEAMS}, {WORDS} tokens, GPT-2, no caption differs",
        10,
        decoding,
        tolerance=0,
        once=True,
    ),
    Row(
        "captioning/train",
        "8 captions of real lengths, transformer mapper, frozen GPT-2",
        2.8,
        training,
    ),
)
