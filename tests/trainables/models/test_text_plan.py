"""Which nodes a plan computes, against a trie built word by word; and how few shapes plans have."""

from __future__ import annotations

import functools
import random
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.captions import EOT, SOT, length_at
from tests import ROOT
from trainables.data.batches import Tokens
from trainables.files import read_json
from trainables.models.backbone import Backbone
from trainables.models.load import load_backbone
from trainables.models.text_plan import Form, Plan
from trainables.trials.cuda_graphs import MOST, shape_of, tensors

PARTS = {"num_attention_heads": 1, "vocab_size": 49408}
CLIP = cast(
    Backbone,
    SimpleNamespace(
        kind="clip",
        device=torch.device("cpu"),
        context_length=77,
        start_token=SOT,
        pad_token=EOT,
        pads_left=False,
        model=SimpleNamespace(config=SimpleNamespace(text_config=SimpleNamespace(**PARTS))),
    ),
)


def ragged(rows: list[list[int]]) -> Tokens:
    return Tokens(
        torch.tensor([word for row in rows for word in row]),
        torch.tensor([0, *map(len, rows)]).cumsum(0),
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    words=st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=12),
    length=st.integers(0, 3),
    few=st.booleans(),
)
def test_a_plan_is_the_trie_of_its_captions(words: list[list[int]], length: int, few: bool) -> None:
    rows = [[SOT, *(255 + 256 * w for w in row), EOT] for row in words]  # bytes of many zeros
    made = Plan.of(CLIP, ragged(rows), Form((), True, True, few, length))
    (layout,) = made.layouts
    vectors = [PARTS["vocab_size"] + n for n in range(length)]
    rows = [[row[0], *vectors, *row[1:]] for row in rows]
    trie = sorted({tuple(row[: n + 1]) for row in rows for n in range(len(row))})
    # A node's children follow it; a caption's own nodes are in one piece.
    assert layout.content[: len(trie)].tolist() == [node[-1] for node in trie]
    assert layout.position[: len(trie)].tolist() == [len(node) - 1 for node in trie]
    number = {node: n for n, node in enumerate(trie)}
    ends = layout.ends[made.row].tolist()
    assert ends == [number[tuple(row)] for row in rows]
    # Who looks at whom, read back from what travels to the device.
    attention = layout.attention.attention(1, True)
    outputs: list[list[int]] = []
    for group in attention.groups:
        keys = group.keys[:, 0, None].expand(-1, group.mask.shape[2], -1)
        for looks, at in zip(group.mask[:, 0].flatten(0, 1), keys.flatten(0, 1), strict=True):
            outputs.append(at[looks].tolist())
    for n, node in enumerate(trie):
        path = [number[node[: k + 1]] for k in range(len(node))]
        assert outputs[int(attention.back[n, 0])] == path


def drawn(count: int, seed: int = 0) -> list[list[int]]:
    """Captions of real lengths; a third begin with one of a few words, as people's do."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        words = [draw.randrange(320, 40_000) for _ in range(length_at(draw.random()) - 2)]
        words[0] = draw.choice((320, 320, 786, 518, words[0]))
        rows.append([SOT, *words, EOT])
    return rows


FLICKR8K = ROOT.parent / "shared" / "data"


@functools.cache
def written() -> list[list[list[int]]]:
    """The captions of Flickr8k's 6,000 train images in CLIP's tokens."""
    if not (FLICKR8K / "flickr8k").is_dir():
        pytest.skip("the captions are not here (../shared/data/flickr8k)")
    backbone = load_backbone(str(FLICKR8K / "clip-flickr8k"))
    images = read_json(FLICKR8K / "flickr8k" / "dataset_flickr8k.json")["images"]
    rows = []
    for image in images:
        if image["split"] == "train":
            tokens, _ = backbone.tokenize([one["raw"] for one in image["sentences"]])
            rows.append([ids.tolist() for ids in tokens.ids.split(tokens.lengths.tolist())])
    return rows


@pytest.mark.parametrize("n_ctx", [0, 16])
@pytest.mark.parametrize("size", [32, 128, 256, 512])
@pytest.mark.parametrize("source", ["drawn", "written"])
def test_at_least_nine_of_ten_steps_are_replayed(source: str, size: int, n_ctx: int) -> None:
    """Three epochs of 6,000 images, counted as `CudaGraphs` records."""
    images = [[row] for row in drawn(6000)] if source == "drawn" else written()
    draw, form = random.Random(1), Form((), True, True, True, n_ctx)
    seen: set[Any] = set()
    recorded: set[Any] = set()
    replayed = steps = nodes = padding = 0
    for _ in range(3):
        draw.shuffle(images)
        captions = [draw.choice(rows) for rows in images]
        for start in range(0, len(captions) - size + 1, size):
            made = Plan.of(CLIP, ragged(captions[start : start + size]), form)
            shape = shape_of(list(tensors(made)))
            if shape in seen and len(recorded) < MOST:
                recorded.add(shape)
            replayed, steps = replayed + (shape in recorded), steps + 1
            seen.add(shape)
            nodes += len(made.layouts[0].content)
            padding += int((made.layouts[0].attention.apart == 0).sum())
    assert replayed >= 0.9 * steps
    assert padding <= 0.1 * nodes
