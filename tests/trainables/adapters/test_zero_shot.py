"""`zero_shot`: templates on token ids are templates on text."""

from __future__ import annotations

import pytest
import torch

from tests.tiny import caption
from trainables.adapters.registry import build, make_config
from trainables.data.batches import Batch
from trainables.models.backbone import Backbone


@pytest.mark.parametrize("template", ["a photo of {}", "{} on a table", "a photo of {}.", "a: {}!"])
def test_a_template_on_ids_is_the_template_on_text(template: str, backbone: Backbone) -> None:
    texts = [caption(1), "dog", "a white boat " * 60, "cat " * 75]
    tokens, _ = backbone.tokenize(texts)
    whole, _ = backbone.tokenize([template.format(text.strip()) for text in texts])
    adapter = build(make_config("zero_shot", {"adapter.template": template}), backbone)
    plain = build(make_config("zero_shot"), backbone)
    torch.testing.assert_close(adapter.embed_text(tokens), plain.embed_text(whole))


def test_an_ensemble_is_the_mean_of_unit_vectors(backbone: Backbone, batch: Batch) -> None:
    templates = ("{}", "a photo of {}")
    each = [
        build(make_config("zero_shot", {"adapter.template": t}), backbone).embed_text(batch.tokens)
        for t in templates
    ]
    both = build(make_config("zero_shot", {"adapter.template": "|".join(templates)}), backbone)
    torch.testing.assert_close(both.embed_text(batch.tokens), (each[0] + each[1]) / 2)
