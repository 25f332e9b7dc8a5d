"""The demo's clips: what they show, what is said of them, and that only their order tells it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np

from pipelines.demo.motion import MOTIONS, Film, clip_captions, draw_clips, drawn, invent_film
from pipelines.demo.scenes import SPLITS
from trainables.media.clips import Clip


def films(motion: str, count: int = 40) -> list[Film]:
    at = MOTIONS.index(motion)
    return [invent_film("train", at + len(MOTIONS) * n) for n in range(count)]


def test_a_set_is_whole_and_the_same_every_time(tmp_path: Path) -> None:
    index = draw_clips(tmp_path / "a", 10, 2, 2, seed=3)
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    assert Counter(row["split"] for row in rows) == {"train": 10, "val": 2, "test": 2}
    kinds = Counter(Path(row["image"]).suffix for row in rows)
    assert kinds == {".gif": 12, ".mp4": 1, "": 1}
    for row in rows:
        clip = Clip.open(index.parent / row["image"])
        assert 16 <= len(clip.times) <= 24
        assert (clip.width, clip.height) == (64, 64)
        assert len(set(row["captions"])) == 4
    again = draw_clips(tmp_path / "b", 10, 2, 2, seed=3)
    for path in sorted(p for p in index.parent.rglob("*") if p.is_file()):
        assert path.read_bytes() == (again.parent / path.relative_to(index.parent)).read_bytes()
    other = draw_clips(tmp_path / "c", 1, 0, 0, seed=4)
    assert other.read_text() != index.read_text().splitlines(True)[0]


def test_splits_share_no_thing_on_a_ground() -> None:
    seen = {
        split: {
            (film.scene.ground, film.scene.things[0].kind)
            for film in (invent_film(split, n) for n in range(150))
        }
        for split in SPLITS
    }
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


def test_captions_name_the_thing_and_what_it_does() -> None:
    words = {"left": "left", "up": "up|top", "grow": "grow|big", "shrink": "shrink|small"}
    for motion, said in words.items():
        for film in films(motion, 10):
            sentences = clip_captions(film)
            assert len(set(sentences)) == 4
            colour = film.scene.things[0].kind.colour
            assert all(colour in s and any(w in s for w in said.split("|")) for s in sentences)
    assert not any(" a orange" in s for f in films("stay", 80) for s in clip_captions(f))


def test_a_film_and_its_opposite_differ_in_order_alone() -> None:
    for motion, opposite in (("left", "right"), ("up", "down"), ("shrink", "grow")):
        (film,) = films(motion, 1)
        there = drawn(film)
        back = drawn(Film(film.scene, opposite, film.frames))[::-1]
        assert len(there) == len(back) == film.frames
        for one, other in zip(there, back, strict=True):  # to the tremble of the hand
            difference = np.asarray(one).astype(int) - np.asarray(other)
            assert np.abs(difference).mean() < 2
        ends = np.asarray(there[0]).astype(int) - np.asarray(there[-1])
        assert np.abs(ends).mean() > 4


def test_it_moves_where_its_caption_says() -> None:
    """By the change between the first and the last frame: darker or lighter on the left, above."""
    for motion, axis, late in (("left", 1, 0), ("right", 1, 1), ("up", 0, 0), ("down", 0, 1)):
        film = films(motion, 1)[0]
        pictures = [np.asarray(p).astype(int) for p in drawn(film)]
        rest = np.median(pictures, axis=0)  # what stands there when the thing is elsewhere
        for picture, half in ((pictures[0], 1 - late), (pictures[-1], late)):
            changed = np.abs(picture - rest).sum(2) > 60
            centre = np.argwhere(changed).mean(0)[axis]
            assert (centre > 31.5) == bool(half), motion
