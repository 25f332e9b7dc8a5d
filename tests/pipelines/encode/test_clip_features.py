"""Clips through the stages: from a source into shards, and from shards into a feature store."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipelines.encode.__main__ import run
from pipelines.encode.args import Args
from pipelines.encode.store import encode
from pipelines.shards.__main__ import Args as ShardArgs
from pipelines.shards.__main__ import run as write_shards
from tests import ROOT, films
from tests.films import BLUE, GREEN, RED
from tests.pictures import jpeg
from trainables.data.shards import Seal, ShardSet
from trainables.errors import ConfigError, DataError
from trainables.features.classes import Classes
from trainables.features.features import embed_split, open_features
from trainables.features.frames import Frames
from trainables.features.manifest import features_key
from trainables.files import read_json, sha256_json
from trainables.media.clips import Clip, sample
from trainables.media.frame_folders import pack
from trainables.media.images import decode
from trainables.media.preprocess import decoder_versions
from trainables.models.cleaning import versions
from trainables.models.image_tower import embed_images
from trainables.models.load import load_backbone

COLOURS = [RED] * 4 + [GREEN] * 4 + [BLUE] * 4


def source(folder: Path) -> Path:
    """Six clips and two stills in three splits, and a table of them."""
    folder.mkdir()
    frames, walk = films.plain(COLOURS), films.moving(8, 8)
    (folder / "a.mp4").write_bytes(films.video(frames))
    (folder / "b.gif").write_bytes(films.animation(walk))
    films.folder(folder / "c", frames[::-1])
    (folder / "d.jpg").write_bytes(jpeg(1))
    (folder / "e.webm").write_bytes(films.video(walk, "webm"))
    (folder / "f.jpg").write_bytes(jpeg(2))
    (folder / "g.avi").write_bytes(films.video(walk[::-1], "avi"))
    (folder / "h.zip").write_bytes(films.archive({"1.jpg": jpeg(3), "2.jpg": jpeg(4)}))
    splits = dict(zip("abcdefgh", ["train"] * 4 + ["val"] * 2 + ["test"] * 2, strict=True))
    rows = [
        {"video": path.name, "caption": f"clip {path.name}", "split": splits[path.name[0]]}
        for path in sorted(folder.iterdir())
    ]
    return table(folder, rows)


def table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "table.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_shards(ShardArgs(str(source(folder / "source")), folder / "shards"))
    return folder / "shards"


# --- into shards ----------------------------------------------------------------------------------


def test_shards_hold_the_original_bytes(tmp_path: Path) -> None:
    path = source(tmp_path / "source")
    write_shards(ShardArgs(str(path), tmp_path / "shards"))
    found = ShardSet.open(tmp_path / "shards")
    assert found.notes == {"clips": 6}
    rows = {row["id"]: row for split in ("train", "val") for row in found.rows(split)}
    assert list(rows) == ["a.mp4", "b.gif", "c", "d.jpg", "e.webm", "f.jpg"]
    assert rows["c"]["image"] == pack(path.parent / "c")
    assert rows["a.mp4"]["image"] == (path.parent / "a.mp4").read_bytes()
    sizes = {name: (row["width"], row["height"]) for name, row in rows.items()}
    assert sizes["a.mp4"] == sizes["c"] == (48, 32)
    assert sizes["b.gif"] == sizes["e.webm"] == (64, 64)


def test_another_frame_is_another_source(tmp_path: Path) -> None:
    args = ShardArgs(str(source(tmp_path / "source")), tmp_path / "shards")
    write_shards(args)
    write_shards(args)  # up to date
    (tmp_path / "source" / "c" / "3.png").write_bytes(jpeg(9))
    with pytest.raises(DataError, match="fingerprint changed"):
        write_shards(args)


def test_bad_clips_are_quarantined_with_id_and_reason(tmp_path: Path) -> None:
    mp4, gif = films.video(films.plain(COLOURS)), films.animation(films.moving(0, 10))
    bad = {
        "cut.mp4": (mp4[:-100], "truncated video"),
        "cut.gif": (gif[: len(gif) * 2 // 3], "truncated GIF"),
        "sound.mp4": (films.silence(), "no video stream"),
        "text.mp4": (b"<!DOCTYPE html>", "not an image (begins with '<!DOCTYPE html"),
        "none.zip": (films.archive({"a.txt": b""}), "zero-length clip (a ZIP without an image)"),
        "frame.zip": (films.archive({"1.jpg": jpeg(0)[:-80]}), "frame `1.jpg`: truncated JPEG"),
    }
    for name, (data, _) in bad.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "empty").mkdir()
    (tmp_path / "good.mp4").write_bytes(mp4)
    names = [*bad, "empty", "good.mp4"]
    path = table(tmp_path, [{"image": n, "caption": n, "split": "train"} for n in names])
    write_shards(ShardArgs(str(path), tmp_path / "out", max_bad_fraction=0.9))
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    found = {line["id"]: line["reason"] for line in map(json.loads, lines)}
    assert found.pop("empty") == "zero-length clip (a folder without an image)"
    assert found.keys() == bad.keys()
    for name, reason in found.items():
        assert reason.startswith(bad[name][1])
    assert [row["id"] for row in ShardSet.open(tmp_path / "out").rows("train")] == ["good.mp4"]


def test_tars_and_class_folders_hold_clips_too(tmp_path: Path) -> None:
    mp4 = films.video(films.plain(COLOURS))
    (tmp_path / "tars").mkdir()
    with tarfile.open(tmp_path / "tars" / "train.tar", "w") as tar:
        for name, data in (("1.mp4", mp4), ("1.txt", b"red, green, blue")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "classes" / "dance").mkdir(parents=True)
    (tmp_path / "classes" / "dance" / "1.mp4").write_bytes(mp4)
    (tmp_path / "classes" / "sleep").mkdir()
    for name in ("tars", "classes"):
        write_shards(ShardArgs(str(tmp_path / name), tmp_path / "out" / name, split="train"))
        (row,) = ShardSet.open(tmp_path / "out" / name).rows("train")
        assert row["image"] == mp4


# --- into features --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", ["uniform", "motion"])
def test_a_store_of_frames(tmp_path: Path, clip: Path, shards: Path, sampling: Any) -> None:
    folder, fresh = encode(Args(shards, str(clip), out=tmp_path, frames=3, sampling=sampling))
    assert fresh
    backbone, rows = load_backbone(str(clip)), ShardSet.open(shards)
    for split in ("train", "val"):
        stored = open_features(folder, split)
        direct = embed_split(backbone, rows, split, seen=Frames(3, sampling))
        assert stored.frame_embeds is not None
        assert direct.frame_embeds is not None
        assert stored.frame_embeds.shape == (len(stored.ids), 3, backbone.embed_dim)
        torch.testing.assert_close(stored.frame_embeds, direct.frame_embeds)
        torch.testing.assert_close(stored.image_embeds, direct.image_embeds)
        torch.testing.assert_close(stored.image_embeds, stored.frame_embeds.mean(1))
    manifest = read_json(folder / "manifest.json")
    assert (manifest["frames"], manifest["sampling"]) == (3, sampling)
    assert not encode(Args(shards, str(clip), out=tmp_path, frames=3, sampling=sampling))[1]


def test_frames_are_those_that_were_sampled(tmp_path: Path, clip: Path, shards: Path) -> None:
    backbone = load_backbone(str(clip))
    data = open_features(encode(Args(shards, str(clip), out=tmp_path, frames=4))[0], "train")
    assert data.frame_embeds is not None
    for row, record in enumerate(ShardSet.open(shards).rows("train")):
        pictures = [decode(record["image"])] * 4
        if record["id"] != "d.jpg":
            opened = Clip.open(record["image"])
            pictures = opened.frames(sample(opened, 4, "uniform"))
        squares = torch.stack([backbone.preprocess.apply(picture) for picture in pictures])
        with torch.no_grad():
            torch.testing.assert_close(data.frame_embeds[row], embed_images(backbone, squares))
    still = data.frame_embeds[data.ids.index("d.jpg")]
    torch.testing.assert_close(still, still[:1].expand(4, -1))
    moving = data.frame_embeds[data.ids.index("a.mp4")]
    assert (moving[0] - moving[-1]).abs().max() > 1e-2


def test_a_part_of_a_split_has_its_frames(clip: Path, shards: Path) -> None:
    data = embed_split(load_backbone(str(clip)), ShardSet.open(shards), "train", seen=Frames(2))
    part = data.take({"c": 0, "a.mp4": 1}, Classes(("one", "two")))
    assert part.frame_embeds is not None
    assert data.frame_embeds is not None
    assert torch.equal(part.frame_embeds, data.frame_embeds[[0, 2]])


def test_without_frames_a_clip_is_its_first_one(
    tmp_path: Path, clip: Path, shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(Args(shards, str(clip), out=tmp_path))
    assert "warning: 6 of the images are clips" in capsys.readouterr().out
    (folder,) = [path.parent for path in tmp_path.glob("*/manifest.json")]
    data, backbone = open_features(folder, "train"), load_backbone(str(clip))
    assert data.frame_embeds is None
    assert "frames" not in read_json(folder / "manifest.json")
    first = Clip.open(next(ShardSet.open(shards).rows("train"))["image"]).frames([0])[0]
    with torch.no_grad():
        expected = embed_images(backbone, backbone.preprocess.apply(first)[None])[0]
    torch.testing.assert_close(data.image_embeds[0], expected)
    run(Args(shards, str(clip), out=tmp_path, frames=2))
    assert "warning" not in capsys.readouterr().out


def test_keys(clip: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    for n in range(4):
        Image.new("RGB", (8, 8), (60 * n, 0, 0)).save(tmp_path / "s" / f"{n}.png")
    rows = [{"image": f"{n}.png", "caption": "x", "split": "train"} for n in range(4)]
    write_shards(ShardArgs(str(table(tmp_path / "s", rows)), tmp_path / "stills"))
    stills, moving = ShardSet.open(tmp_path / "stills"), ShardSet.open(shards)
    backbone = load_backbone(str(clip))
    pre = backbone.preprocess
    parts = {  # as it was when there were no clips
        **{"format": "cliptune-features-2", "backbone": backbone.fingerprint},
        **{"shards": stills.digest, "decoder": decoder_versions()},
        "preprocess": {n: getattr(pre, n) for n in pre.__dataclass_fields__},
        **{"views": 2, "data_seed": 5, "pixels": True},
        "cleaning": versions("openai"),
    }
    assert features_key(backbone, stills, 2, 5, True) == sha256_json(parts)[:16]
    seen = [Frames(), Frames(2), Frames(3), Frames(3, "motion")]
    keys = {features_key(backbone, s, frames=f) for s in (stills, moving) for f in seen}
    assert len(keys) == 8


def test_frames_exclude_pixels_and_views(clip: Path, shards: Path) -> None:
    rule = "`--frames` must be 0 with `--{}`, got 8: pixels and augmented views are kept"
    for flags in ({"pixels": True}, {"views": 2}):
        with pytest.raises(ConfigError, match=rule.format(next(iter(flags)))):
            Args(shards, str(clip), frames=8, **flags)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="`--frames` must be above 0 with `--sampling motion`"):
        Args(shards, str(clip), sampling="motion")
    with pytest.raises(ConfigError, match="`--frames` must be at least 0, got -1"):
        Args(shards, str(clip), frames=-1)


def test_test_is_embedded_like_train(clip: Path, shards: Path) -> None:
    data = embed_split(
        load_backbone(str(clip)), ShardSet.open(shards), "test", seal=Seal("a test"), seen=Frames(5)
    )
    assert data.ids == ["g.avi", "h.zip"]
    assert data.frame_embeds is not None
    assert data.frame_embeds.shape == (2, 5, 16)


@pytest.mark.slow
def test_with_ray(tmp_path: Path, clip: Path, shards: Path) -> None:
    words = ("--shards", shards, "--backbone", clip, "--out", tmp_path / "ray", "--frames", 3)
    command = [sys.executable, "-m", "pipelines.encode", *map(str, words), "--workers", "1"]
    subprocess.run(command, cwd=ROOT, env=os.environ, check=True, capture_output=True)
    direct, _ = encode(Args(shards, str(clip), out=tmp_path / "direct", frames=3))
    for split in ("train", "val"):
        ours = open_features(tmp_path / "ray" / direct.name, split)
        reference = open_features(direct, split)
        assert ours.ids == reference.ids
        assert ours.frame_embeds is not None
        torch.testing.assert_close(ours.frame_embeds, reference.frame_embeds, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.image_embeds, reference.image_embeds, rtol=1e-5, atol=1e-6)
