"""A head handed over: torch alone gives the logits that the adapter gives here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from pipelines.cli import stage_main
from tests.contract import CLASSES, batch_of, examples, make, pictures, train, trained
from tests.shelf import shelf
from trainables.adapters.prolip import Prolip
from trainables.adapters.registry import make_config
from trainables.files import read_json
from trainables.models.backbone import Backbone
from trainables.training.exported import write_scores
from trainables.training.predict import score

HEADS = ("projection classes", "clip_adapter", "tip_adapter", "kernel_ridge", "gda")
HEADS += ("linear_probe lbfgs text", "lp_plus", "ss_text", "prolip")
TOWERS = ("two_stage", "singular_values", "prolip projection")


@pytest.mark.parametrize("variant", [*HEADS, *TOWERS])
def test_the_program_answers_as_the_adapter(
    variant: str, backbone: Backbone, tmp_path: Path
) -> None:
    adapter, data = make(variant, backbone, precision="fp32"), examples(backbone)
    if trained(adapter):
        train(adapter, batch_of(adapter, backbone), steps=3)
    adapter.end_epoch(adapter.train_config.epochs or 1, data)
    expected = adapter.tau * score(adapter, data, CLASSES)
    wrote = [*adapter.export(tmp_path), *write_scores(adapter, tmp_path)]
    assert all(path.is_file() for path in wrote)
    assert read_json(tmp_path / "classes.json")["names"] == list(CLASSES.names)
    embeds = data.image_embeds
    if variant in TOWERS:
        plain = CLIPModel.from_pretrained(tmp_path).eval()
        pixels = backbone.preprocess.normalise(pictures())
        with torch.no_grad():
            embeds = plain.get_image_features(pixel_values=pixels).pooler_output
        assert (F.normalize(embeds) - F.normalize(data.image_embeds)).abs().max() > 1e-5
    program = torch.export.load(tmp_path / "scores.pt2").module()
    torch.testing.assert_close(program(embeds), expected, rtol=1e-4, atol=1e-4)
    # Of one image alone sums round otherwise, and kernel ridge has large terms of both signs.
    torch.testing.assert_close(program(embeds[:1]), expected[:1], rtol=1e-2, atol=1e-2)


def test_the_stage_says_how_to_load_it(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = shelf(tmp_path, clip), tmp_path / "run"
    flags = ["--features", str(store), "--draw", str(tmp_path / "base.json"), "--out", str(run)]
    stage_main("train", [*flags, "--adapter", "kernel_ridge"])
    capsys.readouterr()
    out = tmp_path / "out"
    stage_main("export", ["--run", str(run), "--out", str(out)])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f'next: torch.export.load("{out}/scores.pt2").module()'
    assert {path.name for path in out.iterdir()} == {"scores.pt2", "classes.json"}


def test_a_projection_needs_the_tower_that_it_ends(backbone: Backbone) -> None:
    for place, needs in (("embedding", "embeddings"), ("projection", "both towers")):
        config = make_config("prolip", {"adapter.place": place})
        assert Prolip.needs(config) == needs
