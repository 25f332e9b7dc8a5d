"""A feature store whose bytes are not those that were written: named, and made again."""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import lock_descriptor
from safetensors.torch import save_file

from pipelines.encode import store as encoding
from pipelines.encode.args import Args
from pipelines.encode.embeddings import encode_given
from pipelines.encode.store import encode
from tests.pipelines.encode.test_encode import InProcess
from tests.pipelines.encode.test_given import folder as given_folder
from tests.tiny import tiny_features, tiny_shards
from trainables.data import verified
from trainables.data.made_once import hash_of
from trainables.data.shards import Seal, ShardSet
from trainables.data.verified import intact, noted
from trainables.errors import CliptuneError, DataError
from trainables.features.features import backbone_of, embed_split, open_features
from trainables.files import read_json, sha256_bytes, sha256_file, write_hashed, write_json

assert given_folder  # a fixture
ROWS = torch.tensor([3, 0, 7])
UNREAD = {".states"}  # each slot has its checksum
Make = Callable[[], tuple[Path, bool]]


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read through."""
    names: list[str] = []
    plain = verified.read_through

    def counted(path: Path) -> str:
        names.append(path.name)
        return plain(path)

    monkeypatch.setattr(verified, "read_through", counted)
    return names


@pytest.fixture
def embedded(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """How a store with pixels and two views is made."""
    monkeypatch.setattr(encoding, "embed_units", InProcess())
    shards = tiny_shards(tmp_path / "shards")
    args = Args(shards, str(clip), out=tmp_path / "a b", views=2, pixels=True)
    return lambda: encode(args)


@pytest.fixture
def given(given_folder: Path) -> Make:
    """How a store of finished embeddings is made."""
    args = Args(embeddings=given_folder, out=given_folder.parent / "out", split="hash")
    return lambda: encode_given(args)


def outcome(store: Path) -> dict[str, Any]:
    """All that any command takes from a store, opened anew."""
    backbone, found = backbone_of(store), dict[str, Any]()
    splits = {name: open_features(store, name, backbone) for name in ("train", "val")}
    about = read_json(store / "manifest.json")
    shards = ShardSet.open(about["shards"])
    if shards.digest != about["shards_sha256"]:
        raise DataError(f"`{store}`")
    found["classes"] = shards.classes
    if shards.embedded:
        splits["test"] = embed_split(backbone, shards, "test", seal=Seal("a test"))
    for name, data in splits.items():
        found[name] = [data.ids, data.texts(), data.truncated]
        tensors = [data.image_embeds, data.tokens.ids, data.tokens.offsets, data.caption_rows]
        tensors += [data.groups, data.tokens.lengths if shards.classes else data.text_embeds()]
        if data.pixels is not None:
            tensors += [data.pixels, data.hidden(ROWS, 0, 1)]
        tensors += [data.embeds(ROWS, view) for view in range(data.views + 1)]
        found[name] += [sha256_bytes(one.contiguous().numpy().tobytes()) for one in tensors]
    return found


def harms(data: bytes) -> dict[str, bytes]:
    """One bit turned at several places, cut in half, and empty."""
    made = {"half": data[: len(data) // 2], "empty": b""}
    for share in (0.0, 0.3, 0.5, 0.7, 1.0):
        at = min(len(data) - 1, int(share * len(data)))
        made[f"bit at {at}"] = data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]
    return made


@pytest.mark.parametrize("kind", ["embedded", "given"])
def test_no_file_of_a_store_can_be_another_without_a_word(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is found by the opening or by `encode`, or changes nothing."""
    make: Make = request.getfixturevalue(kind)
    store = make()[0]
    right, wrong = outcome(store), list[str]()
    paths = [path for path in store.rglob("*") if path.is_file() and path.suffix not in UNREAD]
    paths = [path for path in paths if path.stat().st_size]  # without locks
    assert len(paths) > 8
    for path in paths:
        whole = path.read_bytes()
        for harm, data in harms(whole).items():
            what = f"{path.relative_to(store)}, {harm}"
            path.write_bytes(data)
            try:
                if outcome(store) != right:
                    wrong.append(f"{what}: another outcome")
            except CliptuneError as error:
                if path.name not in str(error) or "cliptune encode" not in str(error):
                    wrong.append(f"{what}: {error}")
                capsys.readouterr()
                if make() != (store, True) or path.name not in capsys.readouterr().out:
                    wrong.append(f"{what}: is not made again")
                if outcome(store) != right:
                    wrong.append(f"{what}: is made another")
                whole = path.read_bytes()
            else:
                path.write_bytes(whole)
    assert wrong == []


def test_each_file_is_read_once(embedded: Make, reads: list[str]) -> None:
    store = embedded()[0]
    outcome(store)
    reads.clear()
    outcome(store)
    assert reads == []  # as it was known when it was written
    for path in store.rglob("*.safetensors"):
        os.utime(path)
    outcome(store)
    assert sorted(reads) == sorted(path.name for path in store.rglob("*.safetensors"))
    reads.clear()
    outcome(store)
    assert reads == []


def test_a_change_is_found_in_a_file_that_was_whole_and_keeps_its_times(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    about, expected = path.stat(), sha256_bytes(b"one")
    assert intact(path, expected)
    assert not intact(path, sha256_bytes(b"two"))  # a note holds for its hash alone
    path.write_bytes(b"two")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert not intact(path, expected)
    path.write_bytes(b"one")
    assert intact(path, expected)


def test_a_file_that_changes_while_it_is_read_is_not_noted(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    plain = verified.read_through

    def touched(one: Path) -> str:
        digest = plain(one)
        one.write_bytes(b"two, later")
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(verified, "read_through", touched)
        assert intact(path, sha256_bytes(b"one"))
    assert not intact(path, sha256_bytes(b"one"))
    assert reads == ["a", "a"]


def test_who_asks_while_a_file_is_read_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "notes", lambda: tmp_path / "notes")
    path = tmp_path / "a"
    path.write_bytes(b"one")
    expected, held = noted(path), list[bool]()
    (place,) = (tmp_path / "notes").iterdir()
    place.write_bytes(b"")

    def ask(_: Path) -> str:
        with place.open("a") as other:
            held.append(not lock_descriptor(other.fileno(), blocking=False))
        return expected

    monkeypatch.setattr(verified, "read_through", ask)
    assert intact(path, expected)
    assert intact(path, expected)
    assert held == [True]


@pytest.mark.parametrize("note", [b"", b"\xff\xfe", b"[", b'["/else", 1]'])
def test_a_note_that_is_damaged_is_written_anew(
    tmp_path: Path, reads: list[str], note: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "notes", lambda: tmp_path / "notes")
    path = tmp_path / "a"
    path.write_bytes(b"one")
    expected = noted(path)
    (place,) = (tmp_path / "notes").iterdir()
    place.write_bytes(note)
    for _ in range(2):
        assert intact(path, expected)
    assert reads == ["a", "a"]


def test_where_no_note_can_be_kept_files_are_read_each_time(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    monkeypatch.setattr(verified, "notes", lambda: path / "below a file")
    expected = noted(path)
    assert intact(path, expected)
    assert reads == ["a", "a"]

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(verified, "notes", lambda: tmp_path / "notes")
    monkeypatch.setattr(verified.os, "ftruncate", full)
    assert intact(path, expected)
    assert intact(path, expected)
    assert reads == ["a"] * 4


def test_notes_lie_in_the_users_cache(
    tmp_path: Path, notes: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert notes() == tmp_path / "cliptune" / "verified"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert notes() == Path("/home/someone/.cache/cliptune/verified")


def test_how_far_a_large_file_is_read_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "BLOCK", 2**18)
    path = tmp_path / "a"
    path.write_bytes(bytes(2**20))
    verified.read_through(path)
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 10**6, 6))
    monkeypatch.setattr(verified.time, "monotonic", lambda: float(next(clock)))
    assert verified.read_through(path) == sha256_file(path)
    said = capsys.readouterr().err.splitlines()
    assert f"verifying `{path}`, once on this machine: 0.0 of 0.0 GiB" in said[0]


def test_the_command_that_is_named_writes_the_store(embedded: Make, clip: Path) -> None:
    """Its words are those that would be typed, blanks and all."""
    import tyro

    store = embedded()[0]
    words = shlex.split(read_json(store / "manifest.json")["command"])
    assert words[:2] == ["cliptune", "encode"]
    args = tyro.cli(Args, args=words[2:])
    assert (args.backbone, args.views, args.pixels) == (str(clip), 2, True)
    assert encode(args) == (store, False)
    changed = dataclasses.replace(args, clean_text=False, sampling="uniform")
    again = encode(changed)[0]
    words = shlex.split(read_json(again / "manifest.json")["command"])
    assert tyro.cli(Args, args=words[2:]) == changed


@pytest.mark.parametrize("hashed", [True, False])
def test_old_stores_are_read(tmp_path: Path, clip: Path, hashed: bool) -> None:
    """Their manifests have fewer hashes, or none."""
    store = tiny_features(tmp_path / "old", clip=clip)
    about = read_json(store / "manifest.json")
    if not hashed:
        for split in about["splits"].values():
            del split["sha256"]
        write_json(store / "manifest.json", about)
    path = store / "train.safetensors"
    expected = open_features(store, "train").image_embeds.clone()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    if hashed:
        with pytest.raises(DataError, match=r"train\.safetensors.*`cliptune encode` again"):
            open_features(store, "train")
    else:
        assert torch.equal(open_features(store, "train").image_embeds, expected)


def test_what_no_store_holds_is_said(tmp_path: Path, clip: Path) -> None:
    """With hashes that fit: what another program wrote."""
    store = tiny_features(tmp_path / "a", clip=clip)
    about = read_json(store / "manifest.json")
    write_json(store / "train.ids.json", ["one"])
    with pytest.raises(DataError, match=r"train\.ids\.json` must have an id for each image"):
        open_features(store, "train")
    save_file({"other": torch.zeros(2)}, store / "val.safetensors")
    about["splits"]["val"]["sha256"] = sha256_file(store / "val.safetensors")
    write_hashed(store / "manifest.json", about)
    with pytest.raises(DataError, match=r"val\.safetensors` is damaged"):
        open_features(store, "val")
    for name, value in (("splits", []), ("backbone", None), ("key", 7)):
        write_hashed(store / "manifest.json", about | {name: value})
        with pytest.raises(DataError, match=rf"`{name}` must be a JSON .* makes it anew"):
            open_features(store, "train")


def test_a_part_made_later_is_made_again_with_a_warning(
    embedded: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    store = embedded()[0]
    right = outcome(store)
    path = store / "lazy" / "view-0001-train.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    capsys.readouterr()
    assert outcome(store) == right
    said = f"warning: `{path}` is damaged (its bytes are not those that were written): it is made"
    assert said in capsys.readouterr().err
    assert hash_of(path).read_text() == sha256_file(path)
    hash_of(path).unlink()  # as older versions left it
    assert outcome(store) == right
