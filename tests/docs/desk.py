"""A folder with all that README and docs speak of, tiny, and how their commands are made small."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from tests import films
from tests.pipelines.encode.test_given import save, table, vectors
from tests.tiny import caption, picture, tiny_clip, tiny_lm

SPLITS = {"train": 24, "val": 12, "test": 12}
LAND = ("Forest", "Highway", "River", "SeaLake")
PETS = ("beagle", "boxer", "persian", "sphynx")
VECTORS = 60  # of each of three classes
# What stands for weights that are not here.
STANDS_FOR = {
    "openai/clip-vit-base-patch32": "clip",
    "openai/clip-vit-base-patch16": "clip",
    "adapter.lm=openai-community/gpt2": "adapter.lm=gpt2",
}
COMMITS = {"--revision <commit>", "adapter.lm_revision=<commit>"}
# Flags of a command as the test runs it: a small budget.
SMALL: dict[str, dict[str, tuple[str, ...]]] = {
    "demo": {"--trials": ("2",), "--epochs": ("1",)},
    "tune": {"--trials": ("3",), "--epochs": ("1",)},
    "arena": {
        **{"--trials": ("1",), "--epochs": ("1",), "--seed": ("1",)},
        "--adapter": ("zero_shot", "linear_probe", "gda"),
    },
    "evaluate": {"--bootstrap": ("100",)},
    "explain": {"--draws": ("100",)},
    "pipelines.demo.train_lm": {"--steps": ("2",), "--tokens": ("300",)},
}

EVERY = {"--trials": ("11",)}  # a recipe of each adapter that needs no tower


def small(stage: str, words: Sequence[str]) -> list[str]:
    """The words with what is here instead of what is not, and a small budget."""
    kept = [STANDS_FOR.get(word, word) for word in _without_commits(words)]
    budget = SMALL.get(stage, {}) | (EVERY if "auto" in words else {})
    for flag, values in budget.items():
        kept = [*_without(flag, kept), flag, *values]
    return kept


def _without_commits(words: Sequence[str]) -> list[str]:
    text = "\n".join(words)
    for one in COMMITS:
        text = text.replace(one.replace(" ", "\n"), "")
    return [word for word in text.split("\n") if word]


def _without(flag: str, words: Sequence[str]) -> list[str]:
    """Without a flag and its values."""
    if flag not in words:
        return [*words]
    start = words.index(flag)
    end = next((n for n in range(start + 1, len(words)) if words[n][:2] == "--"), len(words))
    return [*words[:start], *words[end:]]


def lay(folder: Path) -> None:
    """All that the pages begin with."""
    tiny_clip(folder / "clip")
    tiny_lm(folder / "gpt2")
    tiny_lm(folder / "stories260k", "llama")
    _captions(folder)
    _labelled(folder / "EuroSAT_RGB", LAND)
    _zhou(folder / "oxford_pets")
    for name in ("FOLDER", "whurs19/ViT-B-32"):
        _embeddings(folder / name)
    _said(folder)
    np.save(folder / "img.npy", vectors(6, 3))
    np.save(folder / "text.npy", vectors(2, 4))
    words = {"template": "a satellite photo of a {}"}
    (folder / "words.json").write_text(json.dumps(words))


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _each(counts: Mapping[str, int]) -> Iterable[tuple[int, str]]:
    return enumerate(split for split, count in counts.items() for _ in range(count))


def _captions(folder: Path) -> None:
    """`captions.csv` and `clips.csv`, a photo, a clip, and a folder of photos."""
    for kind in ("captions", "clips"):
        lines = ["image,caption,split"]
        for number, split in _each(SPLITS):
            name = f"{kind}/{number}.{'jpg' if kind == 'captions' else 'mp4'}"
            _put(folder / name, picture(number) if kind == "captions" else _clip(number))
            lines += [f"{name},{caption(number, v)},{split}" for v in range(2)]
        (folder / f"{kind}.csv").write_text("\n".join(lines) + "\n")
    for number in range(4):
        _put(folder / f"photos/{number}.jpg", picture(90 + number))
    for name in ("photo.jpg", "a.jpg"):
        _put(folder / name, picture(99))
    _put(folder / "clip.mp4", _clip(99))


def _clip(number: int) -> bytes:
    return films.video(films.plain([(number * 5 % 256, 40 * n % 256, 80) for n in range(10)]))


def _labelled(folder: Path, names: Sequence[str]) -> None:
    for number, split in _each(dict.fromkeys(SPLITS, 20 * len(names))):
        _put(folder / split / names[number % len(names)] / f"{number}.jpg", picture(number, seed=1))


def _zhou(folder: Path) -> None:
    splits: dict[str, list[tuple[str, int, str]]] = {}
    for number, split in _each(dict.fromkeys(SPLITS, 20 * len(PETS))):
        name = f"{PETS[number % len(PETS)]}_{number}.jpg"
        _put(folder / "images" / name, picture(number, seed=2))
        splits.setdefault(split, []).append((name, number % len(PETS), PETS[number % len(PETS)]))
    (folder / "split_zhou_OxfordPets.json").write_text(json.dumps(splits))


def _embeddings(folder: Path) -> None:
    """Of three classes, in clip-retrieval's layout, and the texts of the classes."""
    names = ("pond", "meadow", "river")
    rows = [{"key": f"{n:03}", "class_name": names[n % 3]} for n in range(3 * VECTORS)]
    table(folder / "metadata/metadata_0.parquet", rows)
    save(folder / "img_emb/img_emb_0.npy", vectors(3 * VECTORS, 1))
    save(folder / "text_emb/text_emb_0.npy", vectors(3, 9))
    texts = [{"template": "a satellite photo of a {}", "class_name": name} for name in names]
    table(folder / "text_metadata/text_metadata_0.parquet", texts)


def _said(folder: Path) -> None:
    """Embeddings of photos, and in another file what was said of them."""
    rows = [{"image_path": f"{n}.jpg"} for n, _ in _each(SPLITS)]
    table(folder / "flickr8k/metadata/metadata_0.parquet", rows)
    save(folder / "flickr8k/img_emb/img_emb_0.npy", vectors(len(rows), 5))
    images = [
        {
            **{"filename": f"{n}.jpg", "split": split, "imgid": n},
            "sentences": [{"raw": caption(n, v)} for v in range(2)],
        }
        for n, split in _each(SPLITS)
    ]
    named = {"dataset": "flickr8k", "images": images}
    (folder / "dataset_flickr8k.json").write_text(json.dumps(named))
