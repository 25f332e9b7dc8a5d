"""`lora`: parity with PEFT and with a merged model, dropout, and published parameter counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from tests.contract import batch_for, make, outputs, pictures, train, trained
from tests.tiny import caption
from trainables.adapters.base import Adapter
from trainables.adapters.registry import build, make_config
from trainables.data.batches import Batch
from trainables.errors import ConfigError
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images, upper
from trainables.models.load import load_backbone
from trainables.models.text_tower import embed_text

# PEFT 0.21 asks transformers for an attribute that was renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def lora(backbone: Backbone, batch: Batch, **values: Any) -> Adapter[Any]:
    """A LoRA that has moved away from zero-shot."""
    adapter = build(make_config("lora", values), backbone)
    train(adapter, batch, steps=3, lr=0.05)
    return adapter


def hugging_face(model: Any, batch: Batch, backbone: Backbone) -> Tensor:
    """The embeddings as plain transformers code computes them."""
    ids = batch.tokens.pad(backbone.tokenizer.eos_token_id)
    mask = torch.arange(ids.shape[1]) < batch.tokens.lengths[:, None]
    with torch.no_grad():
        pixels = backbone.preprocess.normalise(pictures())
        images = model.get_image_features(pixel_values=pixels).pooler_output
        texts = model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
    return F.normalize(torch.cat([images, texts]), dim=-1)


@pytest.mark.parametrize("tower", ["text", "vision", "both"])
@pytest.mark.parametrize("rslora", [False, True])
def test_peft_loads_what_we_export(
    tower: str, rslora: bool, clip: Path, backbone: Backbone, batch: Batch, tmp_path: Path
) -> None:
    values = {"adapter.tower": tower, "adapter.rslora": rslora, "adapter.targets": "qkvo"}
    adapter = lora(backbone, batch, **values)
    files = adapter.export(tmp_path)
    assert all(path.is_file() for path in files)
    loaded = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip), str(tmp_path)).eval()
    ours = outputs(adapter, batch)
    torch.testing.assert_close(hugging_face(loaded, batch, backbone), ours, atol=1e-5, rtol=0)
    zero_shot = outputs(make("zero_shot", backbone), batch)
    assert (ours - zero_shot).abs().max() > 1e-2  # there was something to lose


def test_merged_it_is_a_plain_clip(backbone: Backbone, batch: Batch, tmp_path: Path) -> None:
    adapter: Any = lora(backbone, batch, **{"adapter.tower": "both", "adapter.targets": "all"})
    ours = outputs(adapter, batch)
    adapter.merge(tmp_path)
    assert torch.equal(outputs(adapter, batch), ours)  # the adapter itself goes on as it was
    plain = CLIPModel.from_pretrained(tmp_path).eval()
    assert plain.state_dict().keys() == backbone.model.state_dict().keys()
    torch.testing.assert_close(hugging_face(plain, batch, backbone), ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_merged_it_is_a_backbone(
    kind: str, backbone: Backbone, siglip: Backbone, tmp_path: Path
) -> None:
    backbone = {"clip": backbone, "siglip": siglip}[kind]
    batch = batch_for(backbone)
    adapter: Any = lora(backbone, batch, **{"adapter.tower": "both", "adapter.targets": "all"})
    ours = outputs(adapter, batch)
    adapter.merge(tmp_path)
    again = load_backbone(str(tmp_path))
    assert again.preprocess == backbone.preprocess
    assert again.fingerprint != backbone.fingerprint
    tokens, _ = again.tokenize([caption(3)])
    assert tokens.ids.tolist() == backbone.tokenize([caption(3)])[0].ids.tolist()
    moved = replace(
        batch,
        image_embeds=embed_images(again, pictures()),
        hidden=None,
        text_embeds=embed_text(again, batch.tokens),
    )
    zero_shot = outputs(make("zero_shot", again), moved)
    torch.testing.assert_close(zero_shot, ours, atol=1e-5, rtol=0)


def test_dropout_acts_in_training_only(backbone: Backbone, batch: Batch) -> None:
    adapter = lora(backbone, batch, **{"adapter.dropout": 0.5})
    adapter.train()
    assert not torch.equal(adapter.embed_text(batch.tokens), adapter.embed_text(batch.tokens))
    adapter.eval()
    assert torch.equal(adapter.embed_text(batch.tokens), adapter.embed_text(batch.tokens))


@pytest.mark.parametrize(
    ("tower", "layers", "block"),
    [("text", 0, None), ("vision", 0, 0), ("vision", 1, 1), ("both", 2, 0)],
)
def test_the_first_adapted_block_of_the_image_tower(
    tower: str, layers: int, block: int | None, backbone: Backbone
) -> None:
    values = {"adapter.tower": tower, "adapter.layers": layers}
    adapter = build(make_config("lora", values), backbone)
    assert adapter.image_block == block
    assert adapter.frozen_text == (tower == "vision")


def test_states_below_the_adapted_blocks_give_the_same_embeddings(backbone: Backbone) -> None:
    batch, above = batch_for(backbone), batch_for(backbone, block=1)
    values = {"adapter.tower": "vision", "adapter.layers": 1}
    adapter: Any = lora(backbone, above, **values)
    adapter.eval()
    from_pixels = upper(adapter.backbone, batch.hidden, 0)
    from_states = adapter.embed_images(above.image_embeds, above.hidden)
    torch.testing.assert_close(from_states, from_pixels)
    assert not torch.allclose(from_states, above.image_embeds, atol=1e-3)


@pytest.mark.parametrize(
    ("tower", "published"), [("text", 196_608), ("vision", 294_912), ("both", 491_520)]
)
def test_parameters_as_published(tower: str, published: int) -> None:
    """Rank 8 on q and v of ViT-B/32, whose shape is `CLIPConfig`'s default, on no memory."""
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig())
    shape: Any = SimpleNamespace(
        model=model, name="b32", revision=None, kind="clip", scale=100.0, bias=0.0
    )
    shape.isolated = lambda: shape
    adapter = build(make_config("lora", {"adapter.tower": tower}), shape)
    assert sum(p.numel() for p in trained(adapter).values()) == published


def test_layers_counts_from_the_output(backbone: Backbone) -> None:
    adapter = build(make_config("lora", {"adapter.layers": 1}), backbone)
    assert {name.split(".")[1] for name in trained(adapter)} == {
        f"text_model-encoder-layers-1-self_attn-{matrix}_proj" for matrix in "qv"
    }
    with pytest.raises(ConfigError, match=r"`adapter\.layers` must be at most 2, got 3"):
        build(make_config("lora", {"adapter.layers": 3}), backbone)
