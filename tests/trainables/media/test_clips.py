"""Clips: every form gives the frames that went in, sampling finds what moves, damage is named."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests import films
from tests.films import ANIMATIONS, BLUE, GREEN, RED, VIDEOS
from tests.pictures import jpeg
from trainables.errors import ConfigError, DataError
from trainables.features.frames import Frames, embed_clip
from trainables.media import clips, image_headers, video
from trainables.media.clips import BadClip, Clip, is_clip, sample, segments
from trainables.media.frame_folders import natural, pack
from trainables.media.images import decode
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images

COLOURS = [RED] * 4 + [GREEN] * 4 + [BLUE] * 4


def near(picture: Tensor, colour: tuple[int, int, int], within: int = 30) -> bool:
    """Whether all of (3, H, W) has this colour, as far as a lossy codec keeps it."""
    return bool((picture.int() - torch.tensor(colour)[:, None, None]).abs().max() <= within)


def png(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


def reason(source: bytes | Path) -> str:
    with pytest.raises(BadClip) as caught:
        Clip.open(source)
    return str(caught.value)


# --- every form -----------------------------------------------------------------------------------


def forms(tmp_path: Path) -> dict[str, bytes | Path]:
    frames = films.plain(COLOURS)
    found: dict[str, bytes | Path] = {kind: films.video(frames, kind) for kind in VIDEOS}
    found |= {kind: films.animation(frames, kind) for kind in ANIMATIONS}
    found["folder"] = films.folder(tmp_path / "frames", frames)
    found["zip"] = pack(tmp_path / "frames")
    (tmp_path / "clip.mp4").write_bytes(films.video(frames))
    return found | {"path": tmp_path / "clip.mp4"}


def test_every_form_gives_the_frames_that_went_in(tmp_path: Path) -> None:
    for kind, source in forms(tmp_path).items():
        clip = Clip.open(source)
        assert (clip.width, clip.height) == (48, 32), kind
        if kind not in ANIMATIONS:  # PIL joins equal neighbours
            step = 1 / 25 if kind in ("folder", "zip") else 1 / 10
            np.testing.assert_allclose(clip.times, np.arange(12) * step, atol=2e-3, err_msg=kind)
            assert clip.duration == pytest.approx(12 * step, abs=2e-3), kind
        else:
            np.testing.assert_allclose(clip.times, [0, 0.4, 0.8], atol=1e-6, err_msg=kind)
            assert clip.duration == pytest.approx(1.2), kind
        chosen = clip.frames(sample(clip, 3, "uniform"))
        for picture, colour in zip(chosen, (RED, GREEN, BLUE), strict=True):
            assert picture.shape == (3, 32, 48)
            assert picture.dtype == torch.uint8
            assert near(picture, colour), kind


def test_frames_come_in_the_order_asked_for_and_as_often() -> None:
    clip = Clip.open(films.video(films.plain(COLOURS)))
    blue, red, again = clip.frames([11, 0, 11])
    assert near(blue, BLUE)
    assert near(red, RED)
    assert torch.equal(blue, again)
    with pytest.raises(IndexError, match="12 frames, got number 12"):
        clip.frames([0, 12])


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    names = ["10.jpg", "9.jpg", "09b.jpg", "100.jpg"]
    assert sorted(names, key=natural) == ["9.jpg", "09b.jpg", "10.jpg", "100.jpg"]
    assert sorted(["a2b10", "a2b9", "a10"], key=natural) == ["a2b9", "a2b10", "a10"]
    greys = [(n * 20, n * 20, n * 20) for n in range(12)]
    clip = Clip.open(films.folder(tmp_path / "f", films.plain(greys)))
    assert [int(frame[0, 0, 0]) for frame in clip.frames(range(12))] == [n * 20 for n in range(12)]


def test_a_folders_zip_keeps_the_files_and_does_not_change(tmp_path: Path) -> None:
    folder = films.folder(tmp_path / "f", films.plain([RED, BLUE]))
    (folder / "notes.txt").write_text("no frame")
    (folder / ".hidden.png").write_bytes(b"")
    data = pack(folder)
    (folder / "1.png").touch()
    assert pack(folder) == data
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        assert file.namelist() == ["1.png", "2.png"]
        assert file.read("2.png") == (folder / "2.png").read_bytes()


@pytest.mark.parametrize(("turn", "corner"), [(90, (2, 0)), (180, (2, 2)), (-90, (0, 2))])
def test_a_video_is_turned_as_a_player_turns_it(turn: int, corner: tuple[int, int]) -> None:
    """A red top left corner goes to the bottom left when turned by 90 degrees against the clock."""
    frame = Image.new("RGB", (48, 32), (255, 255, 255))
    frame.paste(RED, (0, 0, 16, 16))
    clip = Clip.open(films.video([frame] * 3, turn=turn))
    assert (clip.width, clip.height) == ((32, 48) if turn % 180 else (48, 32))
    (picture,) = clip.frames([1])
    assert picture.shape == (3, clip.height, clip.width)
    rows = {0: slice(0, 12), 2: slice(-12, None)}
    assert near(picture[:, rows[corner[0]], rows[corner[1]]], RED, within=60)
    assert near(picture[:, clip.height // 2 - 2 : clip.height // 2 + 2, 22:26], (255,) * 3, 60)


def test_is_clip_by_the_first_bytes(tmp_path: Path) -> None:
    assert all(is_clip(data) for data in forms(tmp_path).values() if isinstance(data, bytes))
    stills = {kind: films.animation(films.plain([RED]), kind) for kind in ANIMATIONS}
    for data in (*stills.values(), jpeg(0), b"", b"\0\0\0\x18ftypheic", b"#EXTM3U", b"RIFF"):
        assert not is_clip(data)
    assert reason(jpeg(0)) == "a still image, not a clip"
    assert reason(b"#EXTM3U\nfile:/etc") == "not an image (begins with '#EXTM3U\\nfile:/')"


def test_a_clip_decodes_to_its_first_frame(tmp_path: Path) -> None:
    for kind, source in forms(tmp_path).items():
        data = source if isinstance(source, bytes) else None
        assert data is None or near(decode(data), RED), kind


def test_only_the_chosen_frames_become_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    plain = video._pixels
    monkeypatch.setattr(video, "_pixels", lambda frame: made.append(frame.time) or plain(frame))
    clip = Clip.open(films.video(films.plain(COLOURS)))
    assert made == [0.0]
    clip.frames([7, 2])
    assert made == [0.0, 0.2, 0.7]


# --- sampling -------------------------------------------------------------------------------------


def test_uniform_sampling_takes_the_middles_of_equal_parts_of_time() -> None:
    clip = Clip.open(films.video(films.plain([RED] * 12)))
    assert sample(clip, 3, "uniform") == [2, 6, 10]
    assert sample(clip, 12, "uniform") == list(range(12))
    assert sample(clip, 1, "uniform") == [6]
    uneven = Clip(b"", np.array([0.0, 1.0, 1.1, 1.2]), 2.0, np.zeros(4), 1, 1)
    assert sample(uneven, 4, "uniform") == [0, 0, 3, 3]  # what stands at 0.25, 0.75, 1.25, 1.75 s


def test_a_clip_with_fewer_frames_repeats_them() -> None:
    clip = Clip.open(films.video(films.plain([RED, BLUE])))
    for rule in ("uniform", "motion"):
        assert len(sample(clip, 8, rule)) == 8  # type: ignore[arg-type]
        assert set(sample(clip, 8, rule)) == {0, 1}  # type: ignore[arg-type]
    assert sample(clip, 5, "uniform") == [0, 0, 1, 1, 1]


def test_motion_is_the_mean_absolute_difference(tmp_path: Path) -> None:
    greys = [(10, 10, 10), (30, 30, 30), (30, 30, 30), (0, 0, 0)]
    clip = Clip.open(films.folder(tmp_path / "f", films.plain(greys)))
    np.testing.assert_allclose(clip.motion, [0, 20, 0, 30], atol=0.5)


def test_motion_sampling_finds_where_it_moves() -> None:
    for data in (films.video(films.moving(30, 10)), pack_of(films.moving(30, 10))):
        clip = Clip.open(data)
        moving = [number >= 30 for number in sample(clip, 8, "motion")]
        assert sum(moving) >= 7
        assert sum(number >= 30 for number in sample(clip, 8, "uniform")) == 2


def pack_of(frames: list[Image.Image]) -> bytes:
    return films.archive({f"{n}.png": buffer(frame) for n, frame in enumerate(frames)})


def buffer(frame: Image.Image) -> bytes:
    file = io.BytesIO()
    frame.save(file, "PNG")
    return file.getvalue()


def test_motion_sampling_is_uniform_where_nothing_moves() -> None:
    for frames in (5, 12, 31):
        clip = Clip.open(pack_of(films.plain([RED] * frames)))
        for n in (1, 4, 8):
            assert sample(clip, n, "motion") == sample(clip, n, "uniform")


def test_segments_cover_the_clip_and_are_sampled_within() -> None:
    def of(duration: float) -> Clip:
        times = np.arange(0, duration, 0.1)
        return Clip(b"", times, duration, np.zeros(len(times)), 1, 1)

    assert segments(of(3), 5) == [(0, 3)]
    assert segments(of(12), 5) == [(0, 5), (5, 12)]
    assert segments(of(13), 5) == [(0, 5), (5, 10), (10, 13)]
    assert segments(of(10), 5) == [(0, 5), (5, 10)]
    for rule in ("uniform", "motion"):
        inside = sample(of(12), 8, rule, (5, 12))  # type: ignore[arg-type]
        assert min(inside) >= 50
        assert inside == sorted(set(inside))
    with pytest.raises(ConfigError, match="`seconds` must be above 0, got 0"):
        segments(of(3), 0)
    with pytest.raises(ConfigError, match="`span` must lie in 0 to 3 s, got 4 to 5"):
        sample(of(3), 2, "uniform", (4, 5))
    with pytest.raises(ConfigError, match="`frames` must be at least 1, got 0"):
        sample(of(3), 0, "uniform")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_cut_video_is_refused(kind: str) -> None:
    data = films.video(films.plain(COLOURS), kind)
    for share in (0.3, 0.6, 0.95):
        assert "truncated video" in reason(data[: int(len(data) * share)])


def test_a_damaged_video_is_refused() -> None:
    data = films.video(films.moving(2, 10))
    media, index = data.index(b"mdat") + 4, data.index(b"moov") - 4
    assert reason(data[:media] + bytes(index - media) + data[index:]).startswith("corrupt video (")
    assert reason(data[: index + 8] + bytes(len(data) - index - 8)) == "no video stream"
    assert reason(b"\0\0\0\x03ftypisom") == "corrupt video (a box of 3 bytes)"
    assert reason(b"\x1aE\xdf\xa3" + bytes(60)).startswith("corrupt video (")
    assert reason(b"RIFF\x04\0\0\0AVI ").startswith("corrupt video (")


def test_a_video_without_a_picture_is_refused() -> None:
    assert reason(films.silence()) == "no video stream"
    mp4 = bytearray(films.video(films.plain([RED] * 3)))
    for table in (b"stsz", b"stco", b"stts", b"stsc"):  # the tables of its samples get no entries
        count = mp4.index(table) + (12 if table == b"stsz" else 8)
        mp4[count : count + 4] = bytes(4)
    assert reason(bytes(mp4)) == "zero-length video (no frame)"


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_a_cut_animation_is_refused(kind: str) -> None:
    data = films.animation(films.moving(0, 10), kind)
    if kind == "webp":  # PIL cannot even open it: no clip, and no image either
        assert "corrupt WEBP" in reason_of_image(data[: len(data) * 2 // 3])
    else:
        assert kind.upper() in reason(data[: len(data) * 2 // 3])


def reason_of_image(data: bytes) -> str:
    with pytest.raises(DataError) as caught:
        decode(data)
    return str(caught.value)


def test_folders_and_archives_that_hold_no_clip(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert reason(tmp_path / "empty") == "zero-length clip (a folder without an image)"
    assert reason(tmp_path / "none") == "missing file"
    assert reason(films.archive({"a.txt": b"x"})) == "zero-length clip (a ZIP without an image)"
    good = films.archive({"1.png": png(RED), "2.jpg": jpeg(0)[:-80]})
    assert reason(good) == "frame `2.jpg`: truncated JPEG"
    assert reason(good[:-10]).startswith("corrupt ZIP (")
    far = good[:-6] + (10**6).to_bytes(4, "little") + good[-2:]  # where its directory begins
    assert reason(far).startswith("corrupt ZIP (negative seek value -")
    nested = films.archive({"1.png": films.archive({"1.png": png(RED)})})
    assert reason(nested).startswith("frame `1.png`: not an image (begins with 'PK")
    folder = films.folder(tmp_path / "linked", films.plain([RED]))
    (tmp_path / "secret.png").write_bytes(png(BLUE))
    (folder / "2.png").symlink_to(tmp_path / "secret.png")
    assert reason(folder) == "frame `2.png` leaves the folder by a link"


def test_a_zip_bomb_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = films.archive({"1.png": bytes(40 << 20), "2.png": bytes(40 << 20)}, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "open", None)
    assert reason(bomb) == "a ZIP of 80.0 MiB when unpacked is above the limit of 64"


@pytest.mark.parametrize(
    ("method", "found"),
    [
        (zipfile.ZIP_DEFLATED, "corrupt ZIP (Bad CRC-32 for file '1.png')"),
        (zipfile.ZIP_BZIP2, "a ZIP that is not read here (packed otherwise than by deflate)"),
        (zipfile.ZIP_LZMA, "a ZIP that is not read here (packed otherwise than by deflate)"),
    ],
)
def test_a_zip_bomb_that_lies_about_its_size_fills_no_memory(method: int, found: str) -> None:
    bomb = bytearray(films.archive({"1.png": bytes(40 << 20)}, method))
    size = bomb.rfind(b"PK\x01\x02") + 24  # of the entry, in the directory
    bomb[size : size + 4] = (100).to_bytes(4, "little")
    tracemalloc.start()
    assert reason(bytes(bomb)) == found
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = films.plain(COLOURS)
    mp4, gif = films.video(frames), films.animation(frames)
    with monkeypatch.context() as patch:
        patch.setattr(image_headers, "MAX_PIXELS", 48 * 32 - 1)
        assert "megapixels is above the limit" in reason(mp4)
        assert "megapixels is above the limit" in reason(gif)
    with monkeypatch.context() as patch:
        patch.setattr(image_headers, "MAX_BYTES", len(mp4) - 1)
        assert "MiB is above the limit" in reason(mp4)
    with monkeypatch.context() as patch:
        patch.setattr(clips, "MAX_SECONDS", 1.0)
        assert reason(mp4) == "1.1 seconds is above the limit of 1"
    with monkeypatch.context() as patch:
        patch.setattr(clips, "MAX_FRAMES", 11)
        assert reason(mp4) == "12.0 frames is above the limit of 11"
    with monkeypatch.context() as patch:
        patch.setattr(clips, "MAX_WORK", 11 * 48 * 32)
        assert "megapixels of all frames is above the limit" in reason(mp4)
    assert len(Clip.open(mp4).times) == 12


# --- to the tower ---------------------------------------------------------------------------------


def test_a_still_is_a_clip_in_which_nothing_happens(backbone: Backbone) -> None:
    still = Frames(3).squares(backbone.preprocess, jpeg(0))
    assert still.shape == (3, 3, backbone.preprocess.size, backbone.preprocess.size)
    for square in still:
        assert torch.equal(square, backbone.preprocess.apply(decode(jpeg(0))))
    assert torch.equal(Frames().squares(backbone.preprocess, jpeg(0)), still[0])


def test_a_clip_is_embedded_frame_by_frame(backbone: Backbone) -> None:
    clip = Clip.open(films.video(films.plain(COLOURS)))
    found = embed_clip(backbone, clip, 6)
    for row, number in enumerate([1, 3, 5, 7, 9, 11]):
        square = backbone.preprocess.apply(clip.frames([number])[0])[None]
        with torch.no_grad():
            torch.testing.assert_close(found[row], embed_images(backbone, square)[0])
    late = embed_clip(backbone, clip, 2, "uniform", (0.8, 1.2))
    assert torch.allclose(late[0], found[-1], atol=1e-3)
