"""Every adapter and every form: handed over as it computes, or refused by a sentence that names a
form that does hold it.

Of ONNX the modules are run that its programs are made of; making programs takes seconds each, and
is tested on a few in test_parity.py.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.nn import functional as F

from pipelines.export import onnx_files, onnx_run, to_open_clip
from pipelines.export.__main__ import To
from pipelines.export.parity import compare, verdict
from pipelines.export.sample import Answers, Sample, answers_of
from pipelines.export.targets import target_of
from tests.contract import ALL, batch_of, examples, make, pictures, train, trained
from trainables.adapters.base import Adapter
from trainables.errors import ConfigError
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images, frozen_embeds
from trainables.models.load import load_backbone
from trainables.models.text_tower import embed_text
from trainables.training.measure import examine

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
FORMS = [to for to in get_args(To) if to]
TEXTS = ["a red dog", "two green cats on a table", "a boat"]
SIZE = 8  # images


@pytest.fixture(scope="module")
def adapter_of(backbone: Backbone) -> Any:
    """Each adapter, trained for a step, and calibrated where it tells classes apart."""

    @functools.cache
    def trained_one(variant: str) -> Adapter[Any]:
        adapter, data = make(variant, backbone, precision="fp32"), examples(backbone)
        if trained(adapter):
            train(adapter, batch_of(adapter, backbone), steps=1)
        if adapter.train_config.task == "classification":
            adapter.end_epoch(adapter.train_config.epochs or 1, data)
            adapter.classes = data.classes
            adapter.calibration = examine(adapter, data).calibration()
        return adapter.eval()

    return trained_one


def sample_for(adapter: Adapter[Any]) -> Sample:
    pixels = pictures()[:SIZE]
    embeds = frozen_embeds(adapter.backbone, pixels)
    return Sample(embeds, pixels, TEXTS, torch.zeros(SIZE, dtype=torch.int64), [])


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of ONNX, kept as they are instead of as programs; and our own reader of open_clip's
    layout, where open_clip is not installed."""
    kept: dict[Path, onnx_files.Part] = {}

    def keep(part: onnx_files.Part, folder: Path, numbers: str) -> Path:
        folder.mkdir(parents=True)
        kept[folder] = part
        return folder

    def run(folder: Path, batches: Any) -> Answers:
        part = kept[folder]
        with torch.no_grad():
            answers = part.module(torch.cat([*batches]))
        several = answers if isinstance(answers, tuple) else (answers,)
        return dict(zip(part.gives, several, strict=True))

    def reread(folder: Path, sample: Sample, about: Any) -> Answers:
        backbone = load_backbone(str(folder))
        assert sample.pixels is not None
        with torch.no_grad():
            images = embed_images(backbone, sample.pixels)
            texts = embed_text(backbone, backbone.tokenize(sample.texts)[0])
        return {"images": F.normalize(images, dim=-1), "texts": F.normalize(texts, dim=-1)}

    monkeypatch.setattr(to_open_clip, "answer", reread)
    monkeypatch.setattr(onnx_files, "_program", keep)
    monkeypatch.setattr(onnx_run, "_run", run)


def refused(adapter: Adapter[Any], to: str, folder: Path) -> str:
    """The sentence; empty where it was handed over, and computes what the adapter does."""
    target = target_of(to)
    folder.mkdir()
    sample, how = sample_for(adapter), adapter.backbone.preprocess
    try:
        target.write(adapter, folder, sample)
    except ConfigError as error:
        return str(error)
    about: dict[str, Any] = {"to": to, "takes": "pixels", "tolerance": target.tolerance}
    about |= {"mean": how.mean, "std": how.std, "images": SIZE, "tau": adapter.tau}
    about |= {"sharpness": adapter.calibration.scale if adapter.calibration else None}
    about |= {"backbone": {"name": adapter.backbone.name, "revision": None}}
    answers = target.answer(folder, sample, about)
    lines, near = verdict(about, compare(about, sample, answers_of(adapter, sample), answers))
    assert near, lines
    if to == "onnx" and adapter.classes is not None:
        assert answers.keys() >= {"scores", "probabilities"}
    return ""


@pytest.mark.parametrize("variant", ALL)
def test_a_pair_is_equal_or_told_of_another(
    variant: str, adapter_of: Any, tmp_path: Path, modules: None
) -> None:
    adapter = adapter_of(variant)
    said = {to: refused(adapter, to, tmp_path / to) for to in FORMS}
    works = [to for to in FORMS if not said[to]]
    own = bool(adapter.export(tmp_path / "own"))
    for sentence in filter(None, said.values()):
        last = re.split(r"(?<=\.) ", sentence)[-1]
        named = re.findall(r"`--to (\w+)`", last)
        assert named or last.startswith("Without `--to`" if own else "`cliptune.load`"), sentence
        assert set(named) <= {*works}, sentence
        assert named or not works, sentence


def test_the_numbers_that_were_asked_for_are_made(
    adapter_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        onnx_files, "_program", lambda part, folder, numbers: asked.append(numbers) or folder
    )
    monkeypatch.setattr(onnx_files, "_beside", lambda *_: [])
    adapter = adapter_of("gda")
    target = target_of("onnx", "int8")
    target.write(adapter, tmp_path, sample_for(adapter))
    assert (asked, target.tolerance) == (["int8"] * 2, 0.2)


def test_without_calibration_there_are_no_probabilities(
    adapter_of: Any, tmp_path: Path, modules: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = adapter_of("gda")
    sample, about = sample_for(adapter), {"takes": "squares"}
    for number, wanted in enumerate([{"scores", "probabilities"}, {"scores"}]):
        onnx_files.write(adapter, tmp_path / str(number), sample, "fp32", "squares")
        assert onnx_run.answer(tmp_path / str(number), sample, about).keys() == wanted
        monkeypatch.setattr(adapter, "calibration", None)
