"""Draw a demo set to disk: a domain and three sizes in; captions in Karpathy's layout out, or
classes in CoOp's.

`out/images/*.jpg` first, then the JSON file, whose existence means that the folder is whole.
"""

import json
from pathlib import Path

from pipelines.demo.lexicon import SHIFTED
from pipelines.demo.render import render
from pipelines.demo.scenes import COLOURS, Domain, Split, invent, invent_one
from pipelines.demo.sentences import CAPTIONS, captions, tokens

QUALITY = 90


def draw(out: Path, domain: Domain, train: int, val: int, test: int, seed: int = 0) -> Path:
    """Write the images and their captions; returns the path of `dataset.json`."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
    wanted = [(split, index) for split, size in sizes.items() for index in range(size)]
    images = [_entry(out, domain, *place, seed, imgid) for imgid, place in enumerate(wanted)]
    return _write(out / "dataset.json", {"dataset": "cliptune-demo", "images": images})


def draw_classes(out: Path, domain: Domain, train: int, val: int, test: int, seed: int = 0) -> Path:
    """Write so many images of each colour, one thing a picture, under names that the tiny CLIP has
    never read; returns the path of `split_zhou_colours.json`."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    sizes: dict[Split, int] = {"train": train, "val": val, "test": test}
    entries: dict[str, list[list[object]]] = {split: [] for split in sizes}
    for split, size in sizes.items():
        for label, colour in enumerate(COLOURS):
            for index in range(size):
                name = f"images/{domain}_{split}_{colour}_{index:04d}.jpg"
                scene = invent_one(domain, split, colour, index, seed)
                render(scene).save(out / name, quality=QUALITY)
                entries[split].append([name, label, SHIFTED.colours[colour][-1]])
    return _write(out / "split_zhou_colours.json", entries)


def _write(target: Path, value: object) -> Path:
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.replace(target)
    return target


def _entry(
    out: Path, domain: Domain, split: Split, index: int, seed: int, imgid: int
) -> dict[str, object]:
    """Save one image and describe it, as an item of `dataset.json`."""
    scene = invent(domain, split, index, seed)
    filename = f"{domain}_{split}_{index:05d}.jpg"
    render(scene).save(out / "images" / filename, quality=QUALITY)
    sentids = range(imgid * CAPTIONS, (imgid + 1) * CAPTIONS)
    return {
        "filename": filename,
        "split": split,
        "imgid": imgid,
        "sentids": list(sentids),
        "sentences": [
            {"raw": raw, "tokens": tokens(raw), "imgid": imgid, "sentid": sentid}
            for sentid, raw in zip(sentids, captions(scene), strict=True)
        ],
    }
