"""The model card of the tiny CLIP: measurements in, Markdown out."""

from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.demo.scenes import Domain
from trainables.hardware import resolved


@dataclass(frozen=True)
class Measured:
    """One training run: its size, its wall clock, and its recalls per domain in percent."""

    steps: int
    images: int
    batch: int
    seed: int
    minutes: float
    recalls: Mapping[Domain, Mapping[str, float]]


def model_card(run: Measured) -> str:
    """README.md of the folder, figures and all."""
    rows = "\n".join(
        f"| {domain} | {' | '.join(f'{recalls[key]:.1f}' for key in _KEYS)} |"
        for domain, recalls in run.recalls.items()
    )
    return _TEMPLATE.format(run=run, rows=rows, precision=resolved("auto", "cpu"))


_KEYS = ("t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10")
_TEMPLATE = """---
license: apache-2.0
library_name: transformers
pipeline_tag: zero-shot-image-classification
---
# A tiny CLIP of drawn scenes

A transformers `CLIPModel` of 1.6 M parameters that has only ever seen procedurally drawn scenes:
one to four coloured, patterned shapes on a ground. It exists so that cliptune's demo and tests run
without a network. It knows nothing of photographs.

- Vision: 64 px, patch 8, 4 layers, width 128. Text: 3 layers, width 128, 77 positions, a byte-level
  BPE of about 950 pieces. Joint width 128.
- Data: {run.images:,} images of the `base` domain, five captions each, one drawn a step.
- Training: from scratch with CLIP's contrastive loss alone, {run.steps:,} steps of {run.batch},
  AdamW in {precision}, seed {run.seed}, {run.minutes:.0f} minutes on two CPU cores shared with
  other work.

## Zero-shot retrieval

1,000 images and 5,000 captions of the test split, which shares no composition with training; every
caption is a query, every image in the pool. Percent; chance at R@1 is 0.1 (text to image).

| domain | text to image R@1 | R@5 | R@10 | image to text R@1 | R@5 | R@10 |
|---|---|---|---|---|---|---|
{rows}

The `shifted` domain draws the same kinds of scene with another hand. Its sentences are built in
ways that this model was not trained on, and about one in five of the words that name things is new
to it. How far that domain lies from `base` was set after training, on its validation split, so
that zero-shot retrieval works and still leaves an adapter something to learn.

Made by `python -m pipelines.demo.train_clip --out DIR`; measured again by
`python -m pipelines.demo.zero_shot --model DIR --domain base` (or `shifted`).

Licence: Apache-2.0, weights and data alike: both are made by the code in `pipelines/demo`.
"""
