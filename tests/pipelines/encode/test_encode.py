"""The `encode` stage: right values in shard order, resumable, mapped, and never a stale hit.

Ray is replaced by a loop in this process, except in the tests marked slow.
"""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from pipelines.capacity import Capacity, Node
from pipelines.encode import store as encoding
from pipelines.encode import towers
from pipelines.encode.__main__ import run
from pipelines.encode.args import Args
from pipelines.encode.store import encode
from pipelines.encode.towers import Job, ReadAndDecode, Resources, Step, Tower, Unit, of_backbone
from pipelines.hold import hold
from pipelines.shards.__main__ import Args as ShardArgs
from pipelines.shards.__main__ import run as write_shards
from tests import ROOT
from tests.pictures import jpeg
from tests.tiny import tiny_clip, tiny_shards
from trainables.adapters.registry import build, make_config
from trainables.data.shards import Seal, ShardSet, captions_of
from trainables.errors import ConfigError, DataError
from trainables.features import manifest
from trainables.features.features import embed_split, open_features
from trainables.features.manifest import features_key
from trainables.files import read_json, sha256_file, write_json
from trainables.media.images import decode
from trainables.media.preprocess import view_of
from trainables.metrics.retrieval import per_query
from trainables.models.image_tower import lower
from trainables.models.load import load_backbone
from trainables.training.predict import predict


class InProcess:
    """Ray's part of the stage as a loop, last unit first, and killed after so many steps."""

    def __init__(self) -> None:
        self.units: list[Unit] = []
        self.die_after = 10**9

    def __call__(self, units: Sequence[Unit], job: Job) -> Iterator[Step]:
        read = ReadAndDecode(job.backbone.preprocess, job.at_once)
        tower = Tower(*of_backbone(job.backbone), torch.get_num_threads())
        steps = 0
        for unit in reversed(units):
            self.units.append(unit)
            for step in read(unit._asdict()):
                if steps == self.die_after:
                    raise KeyboardInterrupt
                steps += 1
                yield tower(step, job.pixels)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    engine = InProcess()
    monkeypatch.setattr(encoding, "embed_units", engine)
    return engine


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_shards(tmp_path_factory.mktemp("shards"), duplicates=3)


def equal(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (
        a is not None and b is not None and a.shape == b.shape and bool(torch.equal(a, b))
    )


@pytest.mark.parametrize("pixels", [False, True])
def test_store_equals_embedding_in_process(
    tmp_path: Path, clip: Path, shards: Path, engine: InProcess, pixels: bool
) -> None:
    folder, fresh = encode(Args(shards, str(clip), out=tmp_path, pixels=pixels))
    assert fresh
    backbone, source = load_backbone(str(clip)), ShardSet.open(shards)
    for split in ("train", "val"):
        stored = open_features(folder, split)
        direct = embed_split(backbone, source, split, pixels=pixels)
        assert stored.ids == direct.ids == [row["id"] for row in source.rows(split, ["id"])]
        torch.testing.assert_close(stored.image_embeds, direct.image_embeds, rtol=1e-5, atol=1e-6)
        assert equal(stored.pixels, direct.pixels)
        assert (stored.pixels is not None) == pixels
        assert equal(stored.tokens.ids, direct.tokens.ids)
        assert equal(stored.tokens.offsets, direct.tokens.offsets)
        assert equal(stored.caption_rows, direct.caption_rows)
        assert equal(stored.groups, direct.groups)
    assert not (folder / "test.safetensors").exists()


def test_a_few_images_on_one_machine_need_no_ray(
    tmp_path: Path, clip: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("Ray was asked for")

    monkeypatch.setattr(towers, "_embed_with_ray", refuse)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    args = Args(shards, str(clip), out=tmp_path)
    stored = open_features(encode(args)[0], "train")
    direct = embed_split(load_backbone(str(clip)), ShardSet.open(shards), "train")
    torch.testing.assert_close(stored.image_embeds, direct.image_embeds, rtol=1e-5, atol=1e-6)
    with pytest.raises(AssertionError, match="Ray was asked for"):
        encode(replace(args, out=tmp_path / "wish", workers=1))
    monkeypatch.setattr(towers, "FEW", 3)
    with pytest.raises(AssertionError, match="Ray was asked for"):
        encode(replace(args, out=tmp_path / "many"))
    monkeypatch.undo()
    monkeypatch.setattr(towers, "_embed_with_ray", refuse)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(AssertionError, match="Ray was asked for"):
        encode(replace(args, out=tmp_path / "cluster", precision="fp32"))


def test_values_are_those_of_a_plain_forward(
    tmp_path: Path, clip: Path, shards: Path, engine: InProcess
) -> None:
    folder, _ = encode(Args(shards, str(clip), out=tmp_path, views=2, pixels=True, data_seed=5))
    backbone = load_backbone(str(clip))
    data = open_features(folder, "train", backbone)
    assert data.image_embeds.shape == (24, 16)
    assert data.views == 2
    assert open_features(folder, "val", backbone).views == 0  # measured on clean crops
    pre = backbone.preprocess
    for row, record in enumerate(ShardSet.open(shards).rows("train")):
        image = decode(record["image"])
        for number, view in enumerate([None, view_of(5, 0, row), view_of(5, 1, row)]):
            square = pre.apply(image, view)[None]
            with torch.no_grad():
                values = pre.normalise(square)
                plain = backbone.model.get_image_features(pixel_values=values).pooler_output
            stored = data.embeds(torch.tensor([row]), number)
            torch.testing.assert_close(stored, plain, rtol=1e-4, atol=1e-5)
            states = data.hidden(torch.tensor([row]), number, 1)
            assert torch.allclose(states, lower(backbone, square, 1), rtol=1e-4, atol=1e-5)
        ids = data.tokens.select(torch.nonzero(data.caption_rows == row).flatten()).ids
        assert ids.tolist() == backbone.tokenize(record["captions"])[0].ids.tolist()


def test_groups_join_equal_bytes(tmp_path: Path, clip: Path, shards: Path) -> None:
    groups = embed_split(load_backbone(str(clip)), ShardSet.open(shards), "train").groups
    assert groups[-3:].tolist() == groups[:3].tolist()
    assert groups.unique().numel() == 21


def test_a_caption_said_twice_is_two_queries_that_rank_alike(tmp_path: Path, clip: Path) -> None:
    said = [[f"a red {noun}", f"a red {noun}", f"{noun} again"] for noun in ("disc", "box", "star")]
    for n, captions in enumerate(said):
        (tmp_path / f"{n}.jpg").write_bytes(jpeg(n))
        with (tmp_path / "said.jsonl").open("a") as file:
            file.write(json.dumps({"image": f"{n}.jpg", "caption": captions}) + "\n")
    write_shards(ShardArgs(str(tmp_path / "said.jsonl"), tmp_path / "shards", split="val"))
    backbone, shards = load_backbone(str(clip)), ShardSet.open(tmp_path / "shards")
    data = embed_split(backbone, shards, "val")
    assert data.caption_rows.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    zero_shot = build(make_config("zero_shot", {"precision": "fp32"}), backbone)
    found = predict(zero_shot, data)
    values = per_query(found, data.groups, data.groups[data.caption_rows])
    for name, of_captions in values.items():
        if name.startswith("t2i_"):
            assert of_captions.shape == (9,)
            assert torch.equal(of_captions[::3], of_captions[1::3])
    assert values["i2t_r1"].shape == (3,)


def test_the_test_split_is_neither_read_nor_needed(
    tmp_path: Path, clip: Path, engine: InProcess
) -> None:
    source = tiny_shards(tmp_path / "shards")
    for path in source.glob("test-*.parquet"):
        path.unlink()
    folder, _ = encode(Args(source, str(clip), out=tmp_path / "features"))
    with pytest.raises(DataError, match="unknown split `test`"):
        open_features(folder, "test")
    with pytest.raises(DataError, match="sealed"):
        embed_split(load_backbone(str(clip)), ShardSet.open(source), "test")


def test_embed_split_opens_test_with_a_seal(clip: Path, shards: Path) -> None:
    data = embed_split(
        load_backbone(str(clip)), ShardSet.open(shards), "test", seal=Seal("a test"), pixels=True
    )
    assert data.image_embeds.shape == (8, 16)
    assert len(data.tokens) == 16


def test_second_call_does_nothing_and_says_so(
    tmp_path: Path, clip: Path, shards: Path, engine: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    args = Args(shards, str(clip), out=tmp_path)
    run(args)
    assert "next: cliptune tune --features" in capsys.readouterr().out
    stamps = {p.name: (p.stat().st_mtime_ns, sha256_file(p)) for p in tmp_path.glob("*/*.*")}
    engine.units.clear()
    run(args)
    assert "up to date: nothing to do" in capsys.readouterr().out
    assert not engine.units
    again = {p.name: (p.stat().st_mtime_ns, sha256_file(p)) for p in tmp_path.glob("*/*.*")}
    assert {k: v for k, v in again.items() if k != ".lock"} == {
        k: v for k, v in stamps.items() if k != ".lock"
    }


@pytest.mark.parametrize("die_after", range(0, 7))
def test_resume_after_a_kill_computes_only_the_rest(
    tmp_path: Path, clip: Path, shards: Path, engine: InProcess, die_after: int
) -> None:
    whole, _ = encode(Args(shards, str(clip), out=tmp_path / "whole"))
    args = Args(shards, str(clip), out=tmp_path / "killed")
    engine.die_after = die_after
    with pytest.raises(KeyboardInterrupt):
        encode(args)
    folder = next((tmp_path / "killed").iterdir())
    with pytest.raises(DataError, match="no finished features"):
        open_features(folder, "train")
    # 4 shards of 8 images in row groups of 5 and 3, computed from the last to the first.
    engine.die_after, engine.units = 10**9, []
    resumed, fresh = encode(args)
    assert fresh
    assert len(engine.units) == 8 - die_after // 2 * 2
    for name in ("train.safetensors", "val.safetensors", "train.ids.json"):
        assert sha256_file(resumed / name) == sha256_file(whole / name)


def test_a_finished_shard_that_was_damaged_is_computed_again(
    tmp_path: Path, clip: Path, shards: Path, engine: InProcess
) -> None:
    args = Args(shards, str(clip), out=tmp_path)
    folder, _ = encode(args)
    good = sha256_file(folder / "train.safetensors")
    path = folder / "train.safetensors"
    for place, damaged in ((0.0, 0), (0.5, 0), (0.999, 2)):  # header, captions, embeddings
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= 1
        path.write_bytes(data)
        engine.units.clear()
        assert encode(args) == (folder, True)
        assert sha256_file(path) == good
        assert len(engine.units) == damaged


def test_torn_progress_is_not_trusted(
    tmp_path: Path, clip: Path, shards: Path, engine: InProcess
) -> None:
    args = Args(shards, str(clip), out=tmp_path)
    engine.die_after = 6
    with pytest.raises(KeyboardInterrupt):
        encode(args)
    progress = next(tmp_path.glob("*/train.progress.jsonl"))
    progress.write_bytes(progress.read_bytes()[:-9])
    engine.die_after, engine.units = 10**9, []
    encode(args)
    assert len(engine.units) == 4  # both train shards not noted whole; val was


def change_weights(clip: Path, shards: Path) -> dict[str, Any]:
    path = clip / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-4] ^= 1
    path.write_bytes(data)
    return {}


def change_preprocessing(clip: Path, shards: Path) -> dict[str, Any]:
    path = clip / "preprocessor_config.json"
    write_json(path, read_json(path) | {"size": {"shortest_edge": 33}})
    return {}


def change_tokenizer(clip: Path, shards: Path) -> dict[str, Any]:
    path = clip / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b"\n")
    return {}


def change_an_image(clip: Path, shards: Path) -> dict[str, Any]:
    tiny_shards(shards, seed=1)
    return {}


CHANGES: dict[str, Any] = {
    "weights": change_weights,
    "preprocessing": change_preprocessing,
    "tokenizer": change_tokenizer,
    "shards": change_an_image,
    "views": lambda clip, shards: {"views": 1},
    "data_seed": lambda clip, shards: {"data_seed": 1},
    "pixels": lambda clip, shards: {"pixels": True},
}


@pytest.mark.parametrize("change", CHANGES)
def test_never_a_stale_hit(tmp_path: Path, engine: InProcess, change: str) -> None:
    clip, shards = tiny_clip(tmp_path / "clip"), tiny_shards(tmp_path / "shards")
    first, _ = encode(Args(shards, str(clip), out=tmp_path / "features"))
    flags = CHANGES[change](clip, shards)
    engine.units.clear()
    second, fresh = encode(Args(shards, str(clip), out=tmp_path / "features", **flags))
    assert fresh
    assert second != first
    assert len(engine.units) == 8


def test_another_decoder_is_another_key(
    clip: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, source = load_backbone(str(clip)), ShardSet.open(shards)
    keys = {features_key(backbone, source), features_key(backbone, source)}
    assert len(keys) == 1
    versions = manifest.decoder_versions()
    assert versions.keys() == {"preprocess", "pillow", "simplejpeg"}
    for name in versions:
        changed = versions | {name: "0"}
        monkeypatch.setattr(manifest, "decoder_versions", lambda c=changed: c)
        keys.add(features_key(backbone, source))
    assert len(keys) == 4


def test_a_changed_shard_is_refused(tmp_path: Path, clip: Path, engine: InProcess) -> None:
    source = tiny_shards(tmp_path / "shards")
    path = source / "train-00001.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00001.parquet` was changed or damaged"):
        encode(Args(source, str(clip), out=tmp_path / "features"))


def test_an_image_that_does_not_decode_is_named(
    tmp_path: Path, clip: Path, engine: InProcess
) -> None:
    source = tiny_shards(tmp_path / "shards")
    path = source / "val-00000.parquet"
    table = pq.read_table(path)
    images = table["image"].to_pylist()
    images[3] = images[3][:200]
    table = table.set_column(1, table.schema.field("image"), pa.array(images, pa.binary()))
    pq.write_table(table, path)
    manifest = read_json(source / "manifest.json")
    for shard in manifest["shards"]:
        if shard["file"] == path.name:
            shard["sha256"] = sha256_file(path)
    write_json(source / "manifest.json", manifest)
    with pytest.raises(DataError, match=r"image `val-003`: .*JPEG"):
        encode(Args(source, str(clip), out=tmp_path / "features"))


def test_classes_without_captions_get_one(tmp_path: Path, clip: Path, engine: InProcess) -> None:
    source = tiny_shards(tmp_path / "shards", classes=True)
    folder, _ = encode(Args(source, str(clip), out=tmp_path / "features"))
    data, backbone = open_features(folder, "train"), load_backbone(str(clip))
    assert len(data.tokens) == len(data.ids) == 24
    expected, _ = backbone.tokenize(["a photo of a dog."])
    assert data.tokens.select(torch.tensor([0])).ids.tolist() == expected.ids.tolist()
    with pytest.raises(DataError, match="image `x` has neither a caption nor a class name"):
        captions_of({"id": "x", "captions": [], "class_name": None})


def test_truncated_captions_are_counted_and_reported(
    tmp_path: Path, clip: Path, engine: InProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_shards(tmp_path / "shards")
    path = source / "train-00000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[2]["captions"] = ["dog " * 90, "a dog", "cat " * 76]
    pq.write_table(pa.Table.from_pylist(rows, pq.read_schema(path)), path)
    manifest = read_json(source / "manifest.json")
    for shard in manifest["shards"]:
        if shard["file"] == path.name:
            shard["sha256"] = sha256_file(path)
    write_json(source / "manifest.json", manifest)
    run(Args(source, str(clip), out=tmp_path / "features"))
    assert "2 captions were cut to 77 positions" in capsys.readouterr().out
    folder = next((tmp_path / "features").iterdir())
    assert read_json(folder / "manifest.json")["truncated_captions"] == 2
    data = open_features(folder, "train")
    assert data.truncated == 2
    assert (data.caption_rows == 2).sum() == 3


def test_the_store_is_mapped_and_not_copied(features: Path) -> None:
    first, second = open_features(features, "train"), open_features(features, "train")
    maps = [
        tuple(int(part, 16) for part in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(features / "train.safetensors"))
    ]
    for data in (first, second):
        tensors = (
            data.image_embeds,
            data.pixels,
            data.tokens.ids,
            data.tokens.offsets,
            data.groups,
        )
        for tensor in tensors:
            assert tensor is not None
            assert any(start <= tensor.data_ptr() < end for start, end in maps)
    # The mapping is private: what a careless trial writes reaches neither the file nor another.
    before = sha256_file(features / "train.safetensors")
    kept = float(second.image_embeds[0, 0])
    first.image_embeds[0, 0] = kept + 1
    assert float(second.image_embeds[0, 0]) == kept
    assert sha256_file(features / "train.safetensors") == before


@pytest.mark.parametrize("harm", ["missing", "truncated", "format", "manifest"])
def test_a_damaged_store_is_refused(
    tmp_path: Path, clip: Path, shards: Path, engine: InProcess, harm: str
) -> None:
    folder, _ = encode(Args(shards, str(clip), out=tmp_path))
    path = folder / "train.safetensors"
    if harm == "missing":
        path.unlink()
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "format":
        write_json(folder / "manifest.json", {"format": "other"})
    else:
        (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=re.escape(str(folder))):
        open_features(folder, "train")


def test_only_one_process_writes_a_store(tmp_path: Path) -> None:
    refused = pytest.raises(DataError, match="in use by process")
    with hold(tmp_path), refused, hold(tmp_path):
        pass
    with hold(tmp_path):  # free again
        pass


def test_a_full_disk_is_known_before_any_work(
    tmp_path: Path, clip: Path, shards: Path, engine: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=r"train.partial` needs [\d,]+ bytes .*No space left"):
        encode(Args(shards, str(clip), out=tmp_path))
    assert not engine.units
    assert not list(tmp_path.glob("*/*.partial"))


def test_a_source_without_val_is_refused(tmp_path: Path, clip: Path) -> None:
    source = tiny_shards(tmp_path / "shards", {"train": 8})
    with pytest.raises(DataError, match=r"must have images in `val`.*--split val-of-train"):
        encode(Args(source, str(clip), out=tmp_path / "features"))


@pytest.mark.parametrize(
    "flags",
    [{"views": -1}, {"data_seed": -1}, {"batch_size": 0}, {"workers": 0}, {"activations_gb": -1}],
)
def test_flags_out_of_range_are_refused(flags: dict[str, Any]) -> None:
    name = next(iter(flags)).replace("_", "-")
    with pytest.raises(ConfigError, match=rf"`--{name}` must be at least"):
        Args(Path("shards"), "clip", **flags)


@pytest.mark.parametrize("gpus", [0, 1, 8])
@pytest.mark.parametrize("cpus", [1, 2, 3, 16, 96])
@pytest.mark.parametrize("workers", ["auto", 1, 5])
def test_towers_always_leave_room_to_decode(cpus: int, gpus: int, workers: int | str) -> None:
    plan = Resources.plan(workers, "auto", Capacity((Node("here", cpus, gpus),)))
    assert plan.towers >= 1
    assert plan.towers * plan.tower_cpus + plan.task_cpus <= cpus + 0.01
    assert plan.towers * plan.tower_gpus <= gpus
    assert plan.task_cpus != plan.tower_cpus  # or Ray Data fuses the stages
    assert plan.tower_cpus < 1 or plan.tower_cpus == int(plan.tower_cpus)


def test_a_cluster_without_cpus_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 CPU"):
        Resources.plan("auto", "auto", Capacity((Node("here", 0, 0),)))


def cli(*words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.encode", *map(str, words)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
def test_with_ray_killed_and_run_again(tmp_path: Path, clip: Path, engine: InProcess) -> None:
    shards = tiny_shards(tmp_path / "shards", {"train": 180, "val": 9}, rows_per_shard=3)
    words = ("--shards", shards, "--backbone", clip, "--workers", 1, "--out")
    killed = cli(*words, tmp_path / "ray")
    deadline = time.monotonic() + 600
    while not any(p.stat().st_size for p in tmp_path.glob("ray/*/train.progress.jsonl")):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    noted = len(next(tmp_path.glob("ray/*/train.progress.jsonl")).read_text().splitlines())
    assert 0 < noted < 60
    for name in ("ray", "whole"):
        process = cli(*words, tmp_path / name)
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0, output.decode()
    direct, _ = encode(Args(shards, str(clip), out=tmp_path / "direct"))
    folder, whole = tmp_path / "ray" / direct.name, tmp_path / "whole" / direct.name
    for split in ("train", "val"):
        ours, reference = open_features(folder, split), open_features(direct, split)
        assert ours.ids == reference.ids
        torch.testing.assert_close(ours.image_embeds, reference.image_embeds, rtol=1e-5, atol=1e-6)
        # To the bit, whatever was ready first.
        assert equal(ours.image_embeds, open_features(whole, split).image_embeds)
