"""bf16 against fp32: the demo's CLIP on its own scenes, embeddings, ranks and seconds."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line
from benchmarks.gpu.speed import embedder
from benchmarks.gpu.trials import text_only, trials
from pipelines.demo.__main__ import BACKBONE
from pipelines.demo.render import render
from pipelines.demo.scenes import invent
from pipelines.demo.sentences import captions
from trainables.data.batches import Predictions, Tokens
from trainables.hardware import autocast, has_bf16
from trainables.metrics.retrieval import retrieval_metrics
from trainables.models.load import load_backbone
from trainables.models.text_tower import embed_text
from trainables.training.measure import measure as val

COSINE = 0.999  # least
RECALL = 1.0  # percentage points, at most


def measure(scale: Scale) -> Iterator[Line]:
    if not has_bf16(scale.device):
        yield Line("bf16 against fp32", why="no bf16 on this device")
        return
    yield from embeddings(scale)
    yield from seconds(scale)


def embeddings(scale: Scale) -> Iterator[Line]:
    """Of the val scenes: images and captions through either, and what the ranks make of it."""
    clip = load_backbone(str(BACKBONE), device=scale.device)
    scenes = [invent("shifted", "val", n) for n in range(16 if scale.small else 500)]
    arrays = [torch.frombuffer(bytearray(render(s).tobytes()), dtype=torch.uint8) for s in scenes]
    side = render(scenes[0]).size[0]
    pixels = torch.stack(
        [clip.preprocess.apply(a.view(side, side, 3).permute(2, 0, 1)) for a in arrays]
    ).to(scale.device)
    texts = [captions(scene) for scene in scenes]
    tokens, _ = clip.tokenize([text for some in texts for text in some])
    groups = torch.arange(len(scenes))
    owners = groups.repeat_interleave(torch.tensor([len(some) for some in texts]))
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for kind in ("fp32", "bf16"):
        images = embedder(clip, pixels, kind)().float().cpu()
        fresh = Tokens(tokens.ids, tokens.offsets)  # plans are of a precision's own step
        with torch.no_grad(), autocast(kind, clip.device):
            words = embed_text(clip, fresh).float().cpu()
        found[kind] = (F.normalize(images, dim=-1), F.normalize(words, dim=-1))
    for what, number in (("images", 0), ("captions", 1)):
        cosine = (found["fp32"][number] * found["bf16"][number]).sum(-1)
        yield Line(f"{what}: least cosine of bf16 and fp32", float(cosine.min()), least=COSINE)
    metrics = {
        kind: retrieval_metrics(Predictions(*both), groups, owners) for kind, both in found.items()
    }
    for name in ("t2i_r1", "t2i_r5", "i2t_r1", "i2t_r5"):
        gap = 100 * abs(metrics["bf16"][name] - metrics["fp32"][name])
        yield Line(f"{name}: difference", gap, "points", most=RECALL)


def seconds(scale: Scale) -> Iterator[Line]:
    """A val pass of a soft prompt with B/16's text tower."""
    clip = text_only(scale, "B/16")
    took = {}
    with trials(clip, 16 if scale.small else 2048) as make:
        for kind in ("fp32", "bf16"):
            run = make.make("soft_prompt", 1, kind, batch_size=8, precision=kind)[0]
            images = run.val
            assert images is not None
            val(run.adapter, images)
            took[kind] = scale.seconds(lambda: val(run.adapter, images))  # noqa: B023
            yield Line(f"val of {len(images.groups)} images, {kind}", took[kind], "s")
    yield Line("val: fp32 over bf16", took["fp32"] / took["bf16"], "x")
