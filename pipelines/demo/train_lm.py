"""Train a tiny language model from scratch: sentences in, a Hugging Face folder out.

`python -m pipelines.demo.train_lm --out DIR` reads the sentences of the demo's train split, in the
words of both domains and of its clips, and learns a byte-level BPE and a GPT-2 of a million
parameters on them. The model never sees a picture: it is for the demo's captions what GPT-2 is for
real ones. With `--shards` the sentences are the train captions there, for places where no real
language model can be had.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from pipelines.console import done
from pipelines.demo.motion import clip_captions, invent_film
from pipelines.demo.scenes import DOMAINS, Split, invent
from pipelines.demo.sentences import captions
from trainables.data.shards import CAPTION_COLUMNS, ShardSet, captions_of
from trainables.errors import CliptuneError, DataError

END = "<|endoftext|>"
POSITIONS = 128


@dataclass(frozen=True)
class Recipe:
    """Everything that the weights depend on, besides the code."""

    steps: int = 1500
    scenes: int = 8000  # of each domain
    clips: int = 4000
    batch: int = 128
    rate: float = 2e-3
    warmup: int = 100
    tokens: int = 1200  # at most
    seed: int = 0


def of_shards(folder: Path) -> tuple[list[str], list[str]]:
    """The captions of train, and of val."""
    shards = ShardSet.open(folder)
    for split in ("train", "val"):
        if split not in shards.splits:
            raise DataError(f"`{shards.folder}` must have a {split} split, got none.")
    train, val = (
        [text for row in shards.rows(split, CAPTION_COLUMNS) for text in captions_of(row)]
        for split in ("train", "val")
    )
    return train, val


def of_the_demo(recipe: Recipe) -> tuple[list[str], list[str]]:
    """The sentences about train scenes and clips, and about val's."""
    found = []
    shares: dict[Split, float] = {"train": 1.0, "val": 0.05}
    for split, share in shares.items():
        said: list[str] = []
        for domain in DOMAINS:
            for index in range(int(recipe.scenes * share)):
                said += captions(invent(domain, split, index, recipe.seed))
        for index in range(int(recipe.clips * share)):
            said += clip_captions(invent_film(split, index, recipe.seed))
        random.Random(recipe.seed).shuffle(said)
        found.append(said)
    return found[0], found[1]


def build_tokenizer(said: list[str], tokens: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2 has one: any text can be spelled, frequent words are whole."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    learner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[END],
        show_progress=False,
    )
    learner.train_from_iterator(said, trainer)
    special = {"bos_token": END, "eos_token": END}
    return PreTrainedTokenizerFast(tokenizer_object=learner, **special)


def build_model(tokenizer: PreTrainedTokenizerFast) -> GPT2LMHeadModel:
    """An untrained GPT-2 of about a million parameters."""
    end = tokenizer.eos_token_id
    config = GPT2Config(
        **{"vocab_size": len(tokenizer), "n_positions": POSITIONS, "n_embd": 128, "n_layer": 4},
        **{"n_head": 4, "bos_token_id": end, "eos_token_id": end},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    )
    return GPT2LMHeadModel(config)


def encode(tokenizer: PreTrainedTokenizerFast, said: list[str]) -> list[Tensor]:
    """Each sentence between two end tokens, as far as the model can read: the first stands for
    whatever comes before."""
    end, most = tokenizer.eos_token_id, POSITIONS + 1  # the last one is only predicted
    return [torch.tensor([end, *ids, end][:most]) for ids in tokenizer(said)["input_ids"]]


def nats(model: GPT2LMHeadModel, rows: list[Tensor]) -> Tensor:
    """The mean cross-entropy of a batch's tokens."""
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    logits = model(input_ids=ids[:, :-1].clamp(min=0)).logits
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=-100)


def train(recipe: Recipe, rows: list[Tensor], model: GPT2LMHeadModel) -> None:
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.rate, weight_decay=0.01)
    draw = random.Random(recipe.seed)
    started = time.monotonic()
    warmup = min(recipe.warmup, recipe.steps // 2)
    for step in range(1, recipe.steps + 1):
        share = (step - warmup) / (recipe.steps - warmup)
        pace = step / warmup if share < 0 else 0.5 + 0.5 * math.cos(math.pi * share)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * pace
        loss = nats(model, draw.sample(rows, min(recipe.batch, len(rows))))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if step % 100 == 0 or step == recipe.steps:
            seconds = (time.monotonic() - started) / step
            print(
                f"step {step}/{recipe.steps}  {loss.item():.3f} nats a token  "
                f"{recipe.batch / seconds:.0f} sentences/s  "
                f"ETA {seconds * (recipe.steps - step) / 60:.1f} min",
                flush=True,
            )


CARD = """# A tiny causal language model

GPT-2's shape (4 layers of 128, {parameters:,} parameters, a byte-level BPE of {tokens:,} tokens),
trained from scratch on {sentences:,} sentences, {source}. It knows no other words, and has never
seen a picture. On sentences of the val split it needs {val:.3f} nats a token.

Made by `python -m pipelines.demo.train_lm` in {minutes:.0f} minutes, with
`{recipe}`.
"""


def main() -> None:
    """Train, save, measure, and write the card from what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--tokens", type=int, default=Recipe.tokens)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    args = parser.parse_args()
    recipe = Recipe(steps=args.steps, tokens=args.tokens, seed=args.seed)
    torch.manual_seed(recipe.seed)
    said, other = of_shards(args.shards) if args.shards else of_the_demo(recipe)
    source = (
        "the train captions of a data set" if args.shards else "those of the demo's train split"
    )
    tokenizer = build_tokenizer(said, recipe.tokens)
    model = build_model(tokenizer)
    started = time.monotonic()
    train(recipe, encode(tokenizer, said), model.train())
    minutes = (time.monotonic() - started) / 60
    model.eval().half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    with torch.no_grad():
        val = float(nats(model.float(), encode(tokenizer, other)[:500]))
    card = CARD.format(
        **{"parameters": model.num_parameters(), "tokens": len(tokenizer), "val": val},
        **{"sentences": len(said), "source": source, "minutes": minutes},
        recipe=json.dumps(asdict(recipe)),
    )
    (args.out / "README.md").write_text(card)
    print(card)
    done([args.out], f"cliptune tune --adapter prefix_captioner --set adapter.lm={args.out} ...")


if __name__ == "__main__":
    try:
        main()
    except CliptuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
