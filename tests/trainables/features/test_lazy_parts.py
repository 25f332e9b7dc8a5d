"""What is made of a split on first use: right, once, and never needed to be there."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.encode import store as encoding
from pipelines.encode.args import Args
from pipelines.encode.store import encode
from tests.pair import forking
from tests.pipelines.encode.test_encode import InProcess
from tests.tiny import caption, tiny_features, tiny_shards
from trainables.adapters.registry import build, make_config
from trainables.data.shards import Seal, ShardSet
from trainables.errors import DataError
from trainables.features.features import backbone_of, embed_split, open_features
from trainables.features.lazy_parts import LazyParts
from trainables.features.split import SplitFeatures
from trainables.files import read_json, write_hashed
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images, lower
from trainables.models.text_tower import embed_text
from trainables.training.checkpoint import trained_tensors
from trainables.training.loop import Run
from trainables.training.predict import predict
from trainables.training.selection import METRICS

ROWS = torch.tensor([3, 0, 7])


@pytest.fixture
def store(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A real store with two views declared, and pixels."""
    monkeypatch.setattr(encoding, "embed_units", InProcess())
    shards = tiny_shards(tmp_path / "shards")
    return encode(Args(shards, str(clip), out=tmp_path / "out", views=2, pixels=True))[0]


@pytest.fixture
def towers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the image tower's lower half was given, call by call."""
    from trainables.features import lazy_parts

    given: list[int] = []
    plain = lazy_parts.lower

    def counted(backbone: Backbone, pixels: torch.Tensor, block: int) -> torch.Tensor:
        given.append(len(pixels))
        return plain(backbone, pixels, block)

    monkeypatch.setattr(lazy_parts, "lower", counted)
    return given


def test_nothing_is_made_before_it_is_asked_for(store: Path) -> None:
    open_features(store, "train", backbone_of(store))
    assert not (store / "lazy").exists()
    assert read_json(store / "manifest.json")["views"] == 2


def test_captions_are_embedded_once_and_equal_the_tower(store: Path) -> None:
    backbone = backbone_of(store)
    data = open_features(store, "val", backbone)
    embeds = data.text_embeds()
    with torch.no_grad():
        torch.testing.assert_close(embeds, embed_text(backbone, data.tokens))
    assert [path.name for path in (store / "lazy").glob("*.safetensors")] == [
        "text-val.safetensors"
    ]
    backbone.model.text_projection.weight.data.zero_()  # whoever asks again reads the file
    assert torch.equal(open_features(store, "val", backbone).text_embeds(), embeds)


def test_what_all_share_is_fp32_whoever_asks_first(store: Path) -> None:
    backbone = backbone_of(store)
    plain = open_features(store, "train", backbone)
    with torch.no_grad():
        texts = embed_text(backbone, plain.tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        asked = open_features(store, "train", backbone)
        made = (asked.text_embeds(), asked.embeds(ROWS, 1), asked.hidden(ROWS, 1, 1))
    assert all(not tensor.requires_grad for tensor in made)
    torch.testing.assert_close(made[0], texts)
    squares = open_features(store, "train", backbone).lazy.view(1)["pixels"][ROWS]  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(made[1], embed_images(backbone, squares))
        torch.testing.assert_close(made[2], lower(backbone, squares, 1))


def test_a_full_disk_costs_only_the_keeping(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    backbone = backbone_of(store)
    with monkeypatch.context() as patch:
        patch.setattr("os.posix_fallocate", full)
        embeds = open_features(store, "train", backbone).embeds(ROWS, 2)
    assert not list((store / "lazy").glob("*.safetensors"))
    assert torch.equal(open_features(store, "train", backbone).embeds(ROWS, 2), embeds)
    assert [path.name for path in (store / "lazy").glob("*.safetensors")] == [
        "view-0002-train.safetensors"
    ]


def test_a_damaged_file_is_made_again(store: Path) -> None:
    backbone = backbone_of(store)
    embeds = open_features(store, "val", backbone).text_embeds().clone()
    path = store / "lazy" / "text-val.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    assert torch.equal(open_features(store, "val", backbone).text_embeds(), embeds)
    assert path.stat().st_size > embeds.nbytes


def ask_for_a_view(store: Path, results: Any) -> None:
    made: list[int] = []
    plain = LazyParts._encode

    def counted(self: LazyParts, number: int, put: Any) -> None:
        made.append(number)
        plain(self, number, put)

    LazyParts._encode = counted  # type: ignore[method-assign]
    data = open_features(store, "train", backbone_of(store))
    results.put((data.embeds(torch.arange(24), 1).sum().item(), len(made)))


def test_two_processes_encode_a_view_once(store: Path) -> None:
    context = forking()
    results = context.Queue()
    workers = [context.Process(target=ask_for_a_view, args=(store, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(made for _, made in found) == [0, 1]
    assert found[0][0] == found[1][0]


def test_a_view_needs_the_shards_it_was_declared_on(store: Path) -> None:
    manifest = read_json(store / "manifest.json")
    write_hashed(store / "manifest.json", manifest | {"shards_sha256": "other"})
    data = open_features(store, "train", backbone_of(store))
    with pytest.raises(DataError, match="changed since the features"):
        data.embeds(ROWS, 1)


def test_a_view_needs_the_decoders_it_was_declared_with(store: Path) -> None:
    manifest = read_json(store / "manifest.json")
    decoder = manifest["decoder"] | {"pillow": "1.0"}
    write_hashed(store / "manifest.json", manifest | {"decoder": decoder})
    data = open_features(store, "train", backbone_of(store))
    with pytest.raises(DataError, match=r"'pillow': '1\.0'.*encode` again"):
        data.embeds(ROWS, 1)
    assert not list((store / "lazy").glob("*.partial"))


def test_the_budget_of_a_finished_store_can_be_changed(
    store: Path, clip: Path, tmp_path: Path
) -> None:
    args = Args(tmp_path / "shards", str(clip), out=store.parent, views=2, pixels=True)
    assert encode(replace(args, activations_gb=1e-3)) == (store, False)
    assert read_json(store / "manifest.json")["activations_bytes"] == 10**6


def test_states_are_computed_once_for_all(store: Path, towers: list[int]) -> None:
    backbone = backbone_of(store)
    first = open_features(store, "train", backbone).hidden(ROWS, 0, 1)
    again = open_features(store, "train", backbone).hidden(ROWS.flip(0), 0, 1)
    assert torch.equal(again, first.flip(0))
    assert towers == [1, 3, 1]  # one image each tells the shape
    assert (store / "lazy" / "block-01-view-0000-train.states").is_file()


@pytest.mark.parametrize("pays", [True, False])
def test_a_gpu_keeps_states_only_where_reading_was_measured_to_pay(
    pays: bool, store: Path, towers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []

    def measured(folder: Path, rows: torch.Tensor, compute: object) -> bool:
        asked.append(rows.tolist())
        return pays

    monkeypatch.setattr("trainables.features.lazy_parts.recomputes", lambda device: True)
    monkeypatch.setattr("trainables.features.lazy_parts.reading_pays", measured)
    data = open_features(store, "train", backbone_of(store))
    first, again = data.hidden(ROWS, 0, 1), data.hidden(ROWS, 0, 1)
    assert torch.equal(first, again)
    assert asked == [ROWS.tolist()]
    assert (store / "lazy" / "block-01-view-0000-train.states").exists() is pays
    assert towers == ([1, 3] if pays else [3, 3])


def test_all_states_share_one_budget(store: Path, towers: list[int]) -> None:
    manifest = read_json(store / "manifest.json")
    size = 4 * 17 * 32 + 4  # a row: 16 patches and CLS, and its checksum
    write_hashed(store / "manifest.json", manifest | {"activations_bytes": 30 * size})
    backbone = backbone_of(store)
    train, val = (open_features(store, split, backbone) for split in ("train", "val"))
    train.hidden(torch.arange(24), 0, 1)
    val.hidden(torch.arange(8), 0, 1)
    files = sorted((store / "lazy").glob("*.states"))
    assert sum(path.stat().st_size for path in files) <= 30 * size
    towers.clear()
    val.hidden(torch.arange(8), 0, 1)
    assert towers == [2]  # six of them fit


def test_pixels_that_are_not_there_are_asked_for(tmp_path: Path, clip: Path) -> None:
    folder = tiny_features(tmp_path, clip=clip)
    with pytest.raises(DataError, match="encode --pixels"):
        open_features(folder, "train", backbone_of(folder)).hidden(ROWS, 0, 1)


def test_a_store_that_cannot_be_written_is_read_all_the_same(store: Path) -> None:
    (store / "lazy").write_text("a file where the folder would be")
    data = open_features(store, "train", backbone_of(store))
    assert data.text_embeds().shape == (48, 16)
    assert data.hidden(ROWS, 1, 1).shape == (3, 17, 32)


def test_test_leaves_nothing_on_disk(store: Path) -> None:
    backbone = backbone_of(store)
    shards = ShardSet.open(read_json(store / "manifest.json")["shards"])
    before = sorted(store.rglob("*"))
    data = embed_split(backbone, shards, "test", seal=Seal("a test"), pixels=True)
    assert data.hidden(ROWS, 0, 1).shape == (3, 17, 32)
    with torch.no_grad():
        torch.testing.assert_close(data.text_embeds(), embed_text(backbone, data.tokens))
    assert sorted(store.rglob("*")) == before


def test_training_on_kept_states_equals_training_on_pixels(store: Path, tmp_path: Path) -> None:
    backbone = backbone_of(store)
    values = {"adapter.tower": "vision", "adapter.layers": 1, "adapter.dropout": 0.0}
    values |= {"precision": "fp32", "epochs": 2, "batch_size": 8, "optim.lr": 1e-4}

    def run(kind: str, budget: int) -> Run:
        manifest = read_json(store / "manifest.json")
        write_hashed(store / "manifest.json", manifest | {"activations_bytes": budget})
        train, val = (open_features(store, split, backbone) for split in ("train", "val"))
        config = make_config("lora", values)
        made = Run(config, backbone, train, val, tmp_path / kind, METRICS["retrieval"][0])
        while not made.finished:
            made.advance()
        return made

    computed, kept, again = run("computed", 0), run("kept", 10**9), run("again", 10**9)
    for other in (kept, again):
        for name, tensor in trained_tensors(computed.adapter).items():
            torch.testing.assert_close(
                trained_tensors(other.adapter)[name], tensor, rtol=1e-5, atol=1e-6
            )


def test_a_run_on_views_resumes_with_the_same_bytes(store: Path, tmp_path: Path) -> None:
    backbone = backbone_of(store)
    values = {"adapter.tower": "vision", "epochs": 4, "batch_size": 8}

    def run(kind: str) -> Run:
        train, val = (open_features(store, split, backbone) for split in ("train", "val"))
        return Run(
            make_config("lora", values),
            backbone,
            train,
            val,
            tmp_path / kind,
            METRICS["retrieval"][0],
        )

    through = run("through")
    while not through.finished:
        through.advance()
    for _ in range(4):  # a process an epoch
        again = run("resumed")
        again.advance()
    for name, tensor in trained_tensors(through.adapter).items():
        assert torch.equal(trained_tensors(again.adapter)[name], tensor)


def test_a_backbone_that_is_not_the_stores_is_refused(store: Path, backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"was made with the backbone \w{12}, got"):
        open_features(store, "train", replace(backbone, fingerprint="another"))
    own = backbone_of(store)
    own.model.text_projection.weight.requires_grad_()
    with pytest.raises(DataError, match=r"`text_projection\.weight` is trained"):
        open_features(store, "train", own)


def test_predict_embeds_each_distinct_caption_once(backbone: Backbone) -> None:
    texts = [caption(n % 3) for n in range(9)]  # as an image folder's classes
    tokens, _ = backbone.tokenize(texts)
    embeds = torch.randn(9, backbone.embed_dim)
    rows = torch.arange(9)
    data = SplitFeatures([str(n) for n in rows], embeds, None, tokens, rows, rows)
    adapter = build(make_config("soft_prompt", {"precision": "fp32"}), backbone)
    seen: list[int] = []
    plain = adapter.embed_text

    def counted(tokens: Any, text_embeds: Any = None) -> Any:
        seen.append(len(tokens))
        return plain(tokens, text_embeds)

    adapter.embed_text = counted  # type: ignore[method-assign]
    found = predict(adapter, data).text_embeds
    assert seen == [3]
    with torch.no_grad():
        expected = torch.nn.functional.normalize(plain(tokens), dim=-1)
    torch.testing.assert_close(found, expected)
