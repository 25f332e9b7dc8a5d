"""A folder such as the examples speak of: photos, their captions, a tiny CLIP, and runs on them."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cliptune
import pipelines.arena.__main__
import pipelines.tune.__main__
import pipelines.typed
from pipelines import console
from tests.soak.works import command_here, compete_here, search_here
from tests.things import things
from tests.tiny import caption, tiny_clip

SPLITS = ("train",) * 40 + ("val",) * 10 + ("test",) * 10


@pytest.fixture(scope="package")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Searches train in this process, and nothing is said of how far they are."""
    folder = tmp_path_factory.mktemp("desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines.tune.__main__, "_tune", functools.partial(search_here, 1))
        patch.setattr(pipelines.arena.__main__, "_tune", compete_here)
        patch.setattr(pipelines.typed, "command", command_here)
        patch.setattr(console, "Patient", lambda stream: io.StringIO())
        patch.chdir(folder)
        _lay(folder)
        yield folder


def _lay(folder: Path) -> None:
    tiny_clip(folder / "clip")
    (folder / "photos").mkdir()
    rows = []
    for number, split in enumerate(SPLITS):
        pixels = np.random.default_rng(number).integers(0, 90, (40, 40, 3), dtype=np.uint8)
        pixels[..., number % 3] += 100
        name = f"photos/{number}.jpg"
        Image.fromarray(pixels).save(folder / name)
        rows.append({"image": name, "caption": caption(number), "split": split})
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    things(folder / "things")
    (folder / "things.json").write_text(json.dumps({"template": "a photo of a {}."}))
    shards = cliptune.shards("captions.csv", out="shards").path
    store = cliptune.encode(shards, backbone="clip", out="features")
    cliptune.train(store, "runs/mine", adapter="soft_prompt", set={"epochs": 3, "optim.lr": 1e-2})
    quick = {"epochs": 1, "adapter.mapper": "mlp"}
    cliptune.train(store, "runs/words", adapter="prefix_captioner", set=quick)
    cliptune.evaluate("runs/mine")
    draw = cliptune.draw("things", shots=2, words="things.json", out="draw.json")
    labelled = cliptune.encode("things", backbone="clip", out="labelled")
    cliptune.train(labelled, "runs/few", adapter="linear_probe", draw=draw, set={"epochs": 3})
