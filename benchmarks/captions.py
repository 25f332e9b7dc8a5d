"""The texts of the benchmarks: `captions.json`, fixed, and the generator that wrote it.

Flows in: a seed. Flows out: captions as token ids, lengths as real ones have; and the 37 classes of
Oxford-IIIT Pets. `python -m benchmarks.captions` writes the file again, byte for byte.

Lengths follow those of 145,000 Flickr30k captions under CLIP's BPE: mean 15.8 with SOT and EOT,
p95 24, p99 33. The ids themselves are drawn, so captions hardly ever begin alike: what the text
tower saves by that on real captions is not counted.
"""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from trainables.data.batches import Tokens

FILE = Path(__file__).with_name("captions.json")
SEED = 0
CAPTIONS = 256
SOT, EOT, STOP = 49406, 49407, 269  # STOP: the full stop of CoOp's prompts
WORDS = range(320, 40_000)  # whole words, most of them
# Length by quantile, linear in between.
LENGTHS = (
    (0, 7),
    (0.05, 9.5),
    (0.25, 12),
    (0.5, 14.8),
    (0.75, 18.3),
    (0.95, 24),
    (0.99, 33),
    (1, 48),
)
# Class names cut as CLIP's BPE cuts them.
BREEDS = """
aby-ss-inian, american bulldog, american pit bull terrier, bas-set hound, beagle, bengal, bir-man,
bombay, boxer, british shorth-air, chihuahua, egyptian mau, english co-cker spaniel,
english setter, german shorth-aired, great pyrenees, ha-van-ese, japanese chin, kee-sh-ond,
leon-berger, maine coon, miniature pin-scher, newfoundland, persian, pomer-anian, pug, rag-doll,
russian blue, saint bernard, samo-yed, scottish terrier, shi-ba in-u, siamese, sphy-nx,
staffordshire bull terrier, wheat-en terrier, yorkshire terrier
"""


def generate(seed: int = SEED, count: int = CAPTIONS) -> dict[str, Any]:
    """What the file holds: {"captions": [[SOT, ..., EOT], ...], "classes": {name: [id, ...]}}."""
    draw = random.Random(seed)  # its `random()` is the same in all versions of Python

    def word() -> int:
        return WORDS[int(draw.random() * len(WORDS))]

    captions = []
    for number in range(count):
        share = (0.5 + number) * 0.6180339887 % 1  # golden ratio: any 32 in a row are alike
        captions.append([SOT, *(word() for _ in range(length_at(share) - 2)), EOT])
    ids: dict[str, int] = {}
    classes = {}
    for breed in " ".join(BREEDS.split()).split(", "):
        pieces = breed.replace("-", " ").split()
        classes[breed.replace("-", "")] = [
            ids[piece] if piece in ids else ids.setdefault(piece, word()) for piece in pieces
        ]
    return {"captions": captions, "classes": classes}


def length_at(share: float) -> int:
    (left, short), (right, long) = next(k for k in pairwise(LENGTHS) if share <= k[1][0])
    return round(short + (long - short) * (share - left) / (right - left))


def render(texts: dict[str, Any]) -> str:
    """JSON, a caption and a class a line."""
    captions = ",\n".join(json.dumps(ids) for ids in texts["captions"])
    classes = ",\n".join(f"{json.dumps(n)}: {json.dumps(i)}" for n, i in texts["classes"].items())
    return f'{{"captions": [\n{captions}\n],\n"classes": {{\n{classes}\n}}}}\n'


def captions(count: int) -> Tokens:
    """The first `count` captions; what the file has not is drawn as it was."""
    texts = json.loads(FILE.read_text()) if count <= CAPTIONS else generate(count=count)
    return _ragged(texts["captions"][:count])


def class_prompts() -> Tokens:
    """`[SOT, name, ., EOT]` of each class: CoOp's prompts without their context vectors."""
    classes = json.loads(FILE.read_text())["classes"]
    return _ragged([[SOT, *ids, STOP, EOT] for ids in classes.values()])


def _ragged(rows: list[list[int]]) -> Tokens:
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return Tokens(torch.tensor([number for row in rows for number in row]), offsets)


if __name__ == "__main__":
    FILE.write_text(render(generate()))
