"""A head handed over: torch alone gives the logits that the adapter gives here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import CLIPModel

from pipelines.cli import stage_main
from tests.contract import CLASSES, batch_of, examples, make, pictures, train, trained
from tests.shelf import shelf
from tests.test_train import fails
from trainables.adapters.registry import make_config
from trainables.backbone import Backbone
from trainables.checkpoint import load_adapter
from trainables.errors import ConfigError
from trainables.exported import write_scores
from trainables.features import backbone_of, open_features
from trainables.draws import read_draw
from trainables.files import read_json
from trainables.predict import score

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
    torch.testing.assert_close(program(embeds[:1]), expected[:1], rtol=1e-4, atol=1e-4)


def test_the_stage_says_how_to_load_it_and_cliptune_is_not_needed(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shelf(tmp_path, clip)
    flags = ["--features", str(store), "--draw", str(tmp_path / "base.json")]
    for name in ("kernel_ridge", "coop"):
        own = ["epochs=1"] if name == "coop" else []
        run = ["--adapter", name, "--out", str(tmp_path / name), "--set", "batch_size=8", *own]
        stage_main("train", [*flags, *run])
    capsys.readouterr()
    out = tmp_path / "out"
    stage_main("export", ["--run", str(tmp_path / "kernel_ridge"), "--out", str(out)])
    said = capsys.readouterr().out.splitlines()[-1]
    assert said == f'next: torch.export.load("{out}/scores.pt2").module()'
    backbone = backbone_of(store)
    data = read_draw(tmp_path / "base.json").of(open_features(store, "val", backbone), "val")
    adapter = load_adapter(tmp_path / "kernel_ridge/best", backbone)
    torch.save(data.image_embeds, tmp_path / "images.pt")
    code = (
        "import sys, torch\n"
        f"images = torch.load({str(tmp_path / 'images.pt')!r})\n"
        f"found = {said.removeprefix('next: ')}(images)\n"
        f"torch.save(found, {str(tmp_path / 'found.pt')!r})\n"
        "assert not [name for name in sys.modules if name.startswith('trainables')]\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={}, check=True)
    assert data.classes is not None
    expected = adapter.tau * score(adapter, data, data.classes)
    torch.testing.assert_close(torch.load(tmp_path / "found.pt"), expected, rtol=1e-4, atol=1e-4)
    words = ("export", "--run", str(tmp_path / "coop"), "--out", str(tmp_path / "x"))
    assert "`coop` has no format of another library" in fails(capsys, *words)


def test_a_projection_needs_the_tower_that_it_ends() -> None:
    kind = type(make_config("prolip").adapter)
    assert kind().place == "embedding"
