"""The captioner: its loss against transformers' own, its mappers against ClipCap's, whole runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from tests.pair import pair
from tests.tiny import tiny_clip, tiny_features, tiny_lm, tiny_shards
from tests.trainables.models.test_decoding import ending, talkative
from tests.trainables.models.test_language_model import write_scaled
from trainables.adapters.prefix_captioner import PrefixCaptioner, PrefixCaptionerConfig
from trainables.adapters.registry import build, make_config
from trainables.data.batches import Batch
from trainables.distributed import average
from trainables.errors import CheckpointError, ConfigError
from trainables.features.features import open_features
from trainables.models.backbone import Backbone
from trainables.models.decoding import Decoding, decode
from trainables.models.language_model import LanguageModel, load_language_model
from trainables.models.load import load_backbone
from trainables.models.mappers import MlpMapper, TemporalPool, TransformerMapper
from trainables.training.checkpoint import load_adapter
from trainables.training.loop import Interrupted, Run, never
from trainables.training.measure import measure
from trainables.training.predict import speak
from trainables.training.sampler import CaptionBatches

SMALL = {"adapter.prefix_length": 3, "adapter.clip_length": 2, "adapter.layers": 1}
SMALL |= {
    "precision": "fp32",
    "adapter.heads": 4,
    "adapter.lora_dropout": 0.0,
    "adapter.max_tokens": 6,
}
TEXTS = ["a red dog!", "!", "", "a photo of a blue boat near the sea"]
METRIC = "val/cider_d"


@pytest.fixture(scope="module")
def lms(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a language model of some kind, written once."""
    base = tmp_path_factory.mktemp("lms")

    def of(kind: str) -> Path:
        if not (base / kind).exists():
            small = kind in ("gpt2", "llama")
            return tiny_lm(base / kind, kind) if small else write_scaled(base / kind, kind)
        return base / kind

    return of


def captioner(backbone: Backbone, lm: Path, **values: Any) -> PrefixCaptioner:
    settings = {**SMALL, "adapter.lm": str(lm), **{f"adapter.{k}": v for k, v in values.items()}}
    adapter = build(make_config("prefix_captioner", settings), backbone)
    assert isinstance(adapter, PrefixCaptioner)
    return adapter


def batch_of(lm: LanguageModel, texts: list[str] = TEXTS, width: int = 16) -> Batch:
    images = torch.randn(len(texts), width, generator=torch.Generator().manual_seed(1))
    groups = torch.arange(len(texts))
    tokens = lm.tokenize(texts)
    return Batch(images, None, tokens, None, groups, groups, torch.tensor(0.0))


def shaken(adapter: PrefixCaptioner) -> PrefixCaptioner:
    """In evaluation mode, and away from where it starts: LoRA's B is 0 there."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) / 20)
    return adapter.eval()


def plainly(adapter: PrefixCaptioner, batch: Batch, long: int = 45) -> Tensor:
    """All captions padded to `long` tokens, the mask and the labels for transformers to handle."""
    prefix = adapter.prefix(batch.image_embeds, None)
    model, length = adapter.lm.model, prefix.shape[1]
    rows = [batch.tokens.select(torch.tensor([n])).ids for n in range(len(prefix))]
    ids = torch.stack([F.pad(row, (0, long - len(row)), value=5) for row in rows])
    real = torch.stack([F.pad(torch.ones_like(row), (0, long - len(row))) for row in rows])
    vectors = torch.cat([prefix, model.get_input_embeddings()(ids)], dim=1)
    mask = F.pad(real, (length, 0), value=1)
    labels = F.pad(ids.masked_fill(real == 0, -100), (length, 0), value=-100)
    return model(inputs_embeds=vectors, attention_mask=mask, labels=labels, use_cache=False).loss


def as_clipcap(adapter: PrefixCaptioner, batch: Batch, long: int = 45) -> Tensor:
    """ClipCap's: no end token, 0 both pads and is never a target."""
    prefix = adapter.prefix(batch.image_embeds, None)
    model, length = adapter.lm.model, prefix.shape[1]
    rows = [batch.tokens.select(torch.tensor([n])).ids[:-1] for n in range(len(prefix))]
    ids = torch.stack([F.pad(row, (0, long - len(row))) for row in rows])
    real = torch.stack([F.pad(torch.ones_like(row), (0, long - len(row))) for row in rows])
    vectors = torch.cat([prefix, model.get_input_embeddings()(ids)], dim=1)
    mask = F.pad(real, (length, 0), value=1)
    logits = model(inputs_embeds=vectors, attention_mask=mask, use_cache=False).logits
    logits = logits[:, length - 1 : -1]
    return F.cross_entropy(logits.flatten(0, 1), ids.flatten(), ignore_index=0)


def assert_same_loss_and_gradients(
    adapter: PrefixCaptioner, ours: Tensor, expected: Tensor
) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    named = dict(adapter.named_parameters())
    found, wanted = (torch.autograd.grad(x, list(named.values())) for x in (ours, expected))
    for name, one, other in zip(named, found, wanted, strict=True):
        assert other.abs().max() > 0, name
        assert (one - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max())), name


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_loss_and_gradients_are_those_of_padded_captions(
    kind: str, mode: str, backbone: Backbone, lms: Callable[[str], Path]
) -> None:
    adapter = shaken(captioner(backbone, lms(kind), lm_mode=mode, mapper="transformer"))
    trained = [name for name, _ in adapter.named_parameters() if name.startswith("speaker.")]
    assert bool(trained) == (mode != "frozen")
    assert all("lora" in name for name in trained) or mode == "full"
    batch = batch_of(adapter.lm)
    ours, numbers = adapter(batch)
    assert numbers["loss"] == ours
    assert_same_loss_and_gradients(adapter, ours, plainly(adapter, batch))


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
@pytest.mark.parametrize("kind", ["gemma2", "granite", "cohere"])
def test_a_model_that_scales_its_logits_is_trained_on_those(
    kind: str, mode: str, backbone: Backbone, lms: Callable[[str], Path]
) -> None:
    adapter = shaken(captioner(backbone, lms(kind), lm_mode=mode))
    assert not adapter.lm.plain
    assert any("lora_B" in name for name, _ in adapter.named_parameters()) == (mode == "lora")
    batch = batch_of(adapter.lm)
    assert_same_loss_and_gradients(adapter, adapter(batch)[0], plainly(adapter, batch))


def test_the_end_token_is_learned(backbone: Backbone, lms: Callable[[str], Path]) -> None:
    adapter = captioner(backbone, lms("gpt2"), lm_mode="frozen").eval()
    batch = batch_of(adapter.lm)
    found = adapter.log_probabilities(batch)
    assert len(found) == sum(len(text) + 1 for text in TEXTS)  # letters, and an end for each
    prefix = adapter.prefix(batch.image_embeds[2:3], None)  # of the empty caption
    after = adapter.lm.model(inputs_embeds=prefix).logits[0, -1].log_softmax(-1)
    place = len(TEXTS[0]) + 1 + len(TEXTS[1]) + 1
    torch.testing.assert_close(found[place], after[adapter.lm.end_token])


@pytest.mark.parametrize("mode", ["frozen", "full"])
def test_paper_mode_is_clipcaps_loss(
    mode: str, backbone: Backbone, lms: Callable[[str], Path]
) -> None:
    adapter = shaken(captioner(backbone, lms("gpt2"), lm_mode=mode, paper=True))
    batch = batch_of(adapter.lm)
    assert (batch.tokens.ids == 0).sum() == 2  # "!" is token 0, as GPT-2 has it
    expected = as_clipcap(adapter, batch)
    assert_same_loss_and_gradients(adapter, adapter(batch)[0], expected)
    assert abs(float((expected - plainly(adapter, batch)).detach())) > 1e-3


def test_paper_mode_ends_with_its_full_stop(backbone: Backbone, lms: Callable[[str], Path]) -> None:
    adapter = captioner(backbone, lms("gpt2"), lm_mode="full", paper=True, max_tokens=5).eval()
    lm = talkative(adapter.lm)
    images = torch.randn(8, 16, generator=torch.Generator().manual_seed(4))
    how = Decoding("beam", 5, max_tokens=5)
    with torch.no_grad():
        pair = [ending(lm, adapter.prefix(images, None), how), lm.full_stop]
        for matrix in (lm.model.get_input_embeddings(), lm.model.get_output_embeddings()):
            matrix.weight[pair] = matrix.weight[pair[::-1]]  # the full stop takes its part
        expected = decode(lm, adapter.prefix(images, None), how, lm.full_stop)
    said = adapter.captions(images)
    assert said == [lm.text(ids + [lm.full_stop] * (len(ids) < 5)) for ids in expected]
    assert 0 < sum(text.endswith(".") for text in said) < 8


def test_parameters_of_clipcaps_mappers() -> None:
    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    with torch.device("meta"):
        assert count(MlpMapper(512, 768, 10)) == 31_468_800
        assert count(TransformerMapper(512, 768, 10, 10, 8, 8)) == 41_745_408
        assert round(count(TransformerMapper(640, 768, 10, 10, 8, 8)) / 1e6, 2) == 42.73
        assert round(count(TransformerMapper(512, 768, 40, 40, 8, 8)) / 1e6, 2) == 53.59


def test_the_mlp_mapper_is_two_layers_with_a_tanh() -> None:
    mapper, x = MlpMapper(6, 8, 5), torch.randn(3, 6)
    first, second = mapper[0], mapper[2]
    assert first.weight.shape == (20, 6)
    expected = torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    assert mapper(x).shape == (3, 5, 8)
    torch.testing.assert_close(mapper(x), expected.view(3, 5, 8))


def test_the_transformer_mapper_is_clipcaps() -> None:
    """Head by head and token by token."""
    heads, width = 2, 8
    mapper, x = TransformerMapper(6, width, 3, 4, 2, heads), torch.randn(2, 6)
    with torch.no_grad():
        for parameter in mapper.parameters():
            parameter.add_(torch.randn_like(parameter) / 5)
    for row, image in enumerate(x):
        seen = (mapper.enter.weight @ image + mapper.enter.bias).view(4, width)
        tokens = torch.cat([seen, mapper.constant])  # (7, 8)
        for block in mapper.blocks:
            normed = F.layer_norm(tokens, (width,), block.norm1.weight, block.norm1.bias)
            q, k, v = (normed @ part.T for part in block.qkv.weight.chunk(3))
            mixed = []
            for head in range(heads):
                own = slice(head * width // heads, (head + 1) * width // heads)
                scores = q[:, own] @ k[:, own].T / math.sqrt(width / heads)
                mixed.append(scores.softmax(-1) @ v[:, own])
            tokens = tokens + torch.cat(mixed, 1) @ block.out.weight.T + block.out.bias
            normed = F.layer_norm(tokens, (width,), block.norm2.weight, block.norm2.bias)
            into, _, out = block.mlp
            inner = (normed @ into.weight.T + into.bias).clamp(min=0)
            assert inner.shape[1] == 2 * width
            tokens = tokens + inner @ out.weight.T + out.bias
        torch.testing.assert_close(mapper(x)[row], tokens[-3:], rtol=1e-4, atol=1e-5)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`adapter.heads` must be a divisor of the width 32"):
        TransformerMapper(6, 32, 3, 4, 2, 5)


@pytest.mark.parametrize("frames", [1, 4, 7])
def test_temporal_pooling_starts_at_the_mean(frames: int) -> None:
    clips = torch.randn(3, frames, 16)
    torch.testing.assert_close(TemporalPool(16)(clips), clips.mean(1))


def test_temporal_pooling_learns_the_order_that_a_mean_cannot_see() -> None:
    draw = torch.Generator().manual_seed(0)
    clips = torch.randn(64, 6, 16, generator=draw)
    reverse = clips.flip(1)  # has the same mean
    torch.manual_seed(0)
    pool = TemporalPool(16)
    target = torch.randn(16, generator=draw)
    optimizer = torch.optim.Adam(pool.parameters(), lr=1e-2)

    def loss() -> Tensor:
        gap = (pool(clips) - pool(reverse)) @ target  # which of the two was played forwards?
        first = (clips[:, 0] - clips[:, -1]) @ target
        return F.soft_margin_loss(gap, first.sign())

    before = loss()
    torch.testing.assert_close(before, torch.tensor(math.log(2)))
    for _ in range(60):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert value < 0.3


def test_normalised_images_lose_their_length(
    backbone: Backbone, lms: Callable[[str], Path]
) -> None:
    x = torch.randn(2, 16)
    unit, raw = (captioner(backbone, lms("gpt2"), normalize=n) for n in (True, False))
    torch.testing.assert_close(unit.prefix(3 * x, None), unit.prefix(x, None))
    torch.testing.assert_close(unit.prefix(x, None), raw.prefix(F.normalize(x, dim=1), None))
    assert (raw.prefix(3 * x, None) - raw.prefix(x, None)).abs().max() > 0.01


@pytest.mark.parametrize(("kind", "mode"), [("gpt2", "lora"), ("llama", "full")])
def test_what_is_exported_speaks_without_us(
    kind: str, mode: str, tmp_path: Path, backbone: Backbone, lms: Callable[[str], Path]
) -> None:
    adapter = shaken(captioner(backbone, lms(kind), lm_mode=mode))
    adapter.export(tmp_path)
    images = torch.randn(2, 16)
    prefix = adapter.prefix(images, None)
    mapper = MlpMapper(16, 32, 3)
    stored = load_file(tmp_path / "mapper.safetensors")
    mapper.load_state_dict({k.removeprefix("mapper."): v for k, v in stored.items()})
    torch.testing.assert_close(mapper(F.normalize(images, dim=1)), prefix)
    other = load_language_model(str(tmp_path / "language_model"))
    ours, theirs = (m(inputs_embeds=prefix).logits for m in (adapter.lm.model, other.model))
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    assert adapter.lm.identity["fingerprint"] != other.fingerprint
    again = adapter.captions(images)  # merging left the adapter as it was
    how = Decoding("beam", 5, max_tokens=6)
    found = decode(other, prefix, how, other.end_token)
    assert again == [other.text(ids) for ids in found]


def test_a_prefix_that_leaves_no_room_is_refused(
    backbone: Backbone, lms: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError, match=r"`adapter.prefix_length` must be below 63, .* got 63"):
        captioner(backbone, lms("gpt2"), prefix_length=63)


def test_the_tiny_language_model_has_no_commit() -> None:
    with pytest.raises(ConfigError, match=r"`adapter.lm_revision` must be left out for `tiny`, "):
        PrefixCaptionerConfig(lm="tiny", lm_revision="0" * 40)


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_the_shared_language_model_is_never_changed(
    mode: str, backbone: Backbone, lms: Callable[[str], Path]
) -> None:
    frozen = captioner(backbone, lms("llama"), lm_mode="frozen")
    before = {n: t.clone() for n, t in frozen.lm.model.state_dict().items()}
    adapter = captioner(backbone, lms("llama"), lm_mode=mode).train()
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.5)
    for _ in range(2):
        adapter(batch_of(adapter.lm))[0].backward()
        optimizer.step()
    adapter.eval()
    after = frozen.lm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not frozen.lm.model.training
    assert all(p.grad is None and not p.requires_grad for p in frozen.lm.model.parameters())


# -- runs -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, clip: Path) -> Path:
    """Features with the words that they were made of: 24 train and 8 val images."""
    base = tmp_path_factory.mktemp("captions")
    shards = tiny_shards(base / "shards", rows_per_shard=24)
    return tiny_features(base / "features", 24, val=8, clip=clip, shards=shards)


def start(folder: Path, backbone: Backbone, store: Path, lm: Path, **values: Any) -> Run:
    settings = {
        **SMALL,
        "adapter.lm": str(lm),
        "adapter.lora_dropout": 0.1,
        "adapter.max_tokens": 3,
    }
    settings |= {"epochs": 2, "batch_size": 16, "optim.lr": 1e-3}
    settings |= {name.replace("__", "."): value for name, value in values.items()}
    config = make_config("prefix_captioner", settings)
    train, val = (open_features(store, split, backbone) for split in ("train", "val"))
    return Run(config, backbone, train, val, folder, METRIC)


def finish(run: Run, should_stop: Callable[[], bool] = never) -> Run:
    while not run.finished:
        run.advance(should_stop)
    return run


@pytest.mark.parametrize("mode", ["frozen", "lora", "full"])
def test_a_run_cut_at_any_step_ends_with_the_same_bytes(
    mode: str, tmp_path: Path, backbone: Backbone, store: Path, lms: Callable[[str], Path]
) -> None:
    values = {"adapter__lm_mode": mode, "adapter__mapper": "transformer"}
    whole = finish(start(tmp_path / "whole", backbone, store, lms("gpt2"), **values))
    assert whole.total == 2 * 3  # 48 captions
    assert whole.rows[1]["train/loss"] < whole.rows[0]["train/loss"]
    expected = (tmp_path / "whole/last/adapter.safetensors").read_bytes()
    for cut in (1, 4):
        run = start(tmp_path / f"{cut}", backbone, store, lms("gpt2"), **values)
        with pytest.raises(Interrupted):
            finish(run, lambda run=run, cut=cut: run.step >= cut)  # type: ignore[misc]
        resumed = finish(start(tmp_path / f"{cut}", backbone, store, lms("gpt2"), **values))
        assert (tmp_path / f"{cut}/last/adapter.safetensors").read_bytes() == expected
        assert resumed.rows[-1]["train/loss"] == whole.rows[-1]["train/loss"]
        assert resumed.rows[-1][METRIC] == whole.rows[-1][METRIC]


def test_the_best_checkpoint_says_what_it_was_chosen_for(
    tmp_path: Path, backbone: Backbone, store: Path, lms: Callable[[str], Path]
) -> None:
    run = finish(start(tmp_path, backbone, store, lms("llama"), adapter__lm_mode="lora"))
    adapter = load_adapter(tmp_path / "best", backbone)
    val = open_features(store, "val", backbone)
    assert run.best is not None
    assert measure(adapter, val)["cider_d"] == run.best[METRIC]
    assert len(speak(adapter, val)) == len(speak(adapter, val, batch_size=3)) == 8
    assert speak(adapter, val) == speak(adapter, val, batch_size=3)


def test_another_language_model_in_the_same_folder_is_refused(
    tmp_path: Path, clip: Path, store: Path
) -> None:
    lm = tiny_lm(tmp_path / "lm")
    start(tmp_path / "run", load_backbone(str(clip)), store, lm).advance()
    tiny_lm(lm, seed=1)
    sentence = r"with the language model `.*lm` with fingerprint \w{12}, got \w{12}: restore"
    with pytest.raises(CheckpointError, match=sentence):
        load_adapter(tmp_path / "run/best", load_backbone(str(clip)))
    with pytest.raises(CheckpointError, match=sentence):
        start(tmp_path / "run", load_backbone(str(clip)), store, lm)


def test_long_captions_are_cut_counted_and_keep_their_end(
    tmp_path: Path, backbone: Backbone, store: Path
) -> None:
    lm = tiny_lm(tmp_path / "lm", positions=24)
    run = start(tmp_path / "run", backbone, store, lm, adapter__lm_mode="frozen")
    assert isinstance(run.adapter, PrefixCaptioner)
    room = 24 - 3
    texts = open_features(store, "train", backbone).texts()
    assert run.truncated_captions == sum(len(text) + 1 > room for text in texts) > 0
    words = run.adapter.words(open_features(store, "train", backbone))
    assert int(words.lengths.max()) == room
    assert (words.ids[words.offsets[1:] - 1] == run.adapter.lm.end_token).all()
    assert run.advance()["train/truncated_captions"] == run.truncated_captions


def test_an_epoch_shows_each_caption_once_beside_its_image(
    backbone: Backbone, store: Path, lms: Callable[[str], Path]
) -> None:
    data = open_features(store, "train", backbone)
    adapter = captioner(backbone, lms("gpt2"))
    texts, seen = data.texts(), []
    batches = CaptionBatches(data, adapter)
    for step in range(batches.steps_per_epoch):
        batch = batches(step, 9)
        for row in range(len(batch.tokens)):
            text = adapter.lm.text(batch.tokens.select(torch.tensor([row])).ids.tolist())
            image = texts.index(text) // 2
            assert torch.equal(batch.image_embeds[row], data.image_embeds[image])
            seen.append(text)
    assert len(set(seen)) == len(seen) == len(texts) // 40 * 40


def test_frames_are_asked_for_where_there_are_none(
    tmp_path: Path, backbone: Backbone, store: Path, lms: Callable[[str], Path]
) -> None:
    with pytest.raises(ConfigError, match=r"`adapter.pooling` must be mean .* got 'attention'"):
        start(tmp_path, backbone, store, lms("gpt2"), adapter__pooling="attention")


# -- two workers ------------------------------------------------------------------------------


def gradients(folder: Path, rows: list[int]) -> dict[str, Tensor]:
    """Of one step on some captions, which have unlike lengths."""
    adapter = captioner(load_backbone(str(folder / "clip")), folder / "lm", lm_mode="full").eval()
    whole = batch_of(adapter.lm)
    at = torch.tensor(rows)
    groups = whole.image_groups[at]
    images, tokens = whole.image_embeds[at], whole.tokens.select(at)
    batch = Batch(images, None, tokens, None, groups, groups, whole.progress)
    value, numbers = adapter(batch)
    value.backward()
    if dist.is_initialized():
        average(list(adapter.parameters()), value.detach()[None])
    found = {n: p.grad for n, p in adapter.named_parameters() if p.grad is not None}
    return found | {"loss": numbers["loss"]}


def worker(rank: int, folder: Path) -> None:
    save_file(gradients(folder, [rank, rank + 2]), folder / f"{rank}.safetensors")


def test_two_workers_are_one(tmp_path: Path) -> None:
    tiny_clip(tmp_path / "clip")
    tiny_lm(tmp_path / "lm")
    pair(worker, tmp_path)
    expected = gradients(tmp_path, [0, 1, 2, 3])
    for rank in (0, 1):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name] - value).abs().max() < 1e-5 * value.abs().max(), name
