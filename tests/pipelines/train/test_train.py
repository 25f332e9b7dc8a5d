"""One run by hand, and what it hands over: flags, files, and other libraries' formats."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import CLIPModel

import cliptune
from pipelines.cli import main, stage_main
from tests import ROOT
from tests.one_process import watching
from trainables.errors import CliptuneError
from trainables.models.load import load_backbone
from trainables.training.checkpoint import load_adapter
from trainables.training.integrity import verify

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def train(features: Path, out: Path, *words: str) -> None:
    flags = ["--features", str(features), "--out", str(out), *words]
    stage_main("train", [*flags, "--set", "epochs=2", "batch_size=16", "optim.lr=0.01"])


def fails(capsys: pytest.CaptureFixture[str], stage: str, *words: str) -> str:
    """What a user reads on standard error when `stage` refuses; never a traceback."""
    with pytest.raises(SystemExit) as stop:
        stage_main(stage, words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_a_run_by_hand_its_second_call_and_its_export_to_peft(
    tmp_path: Path, features: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    stores = tmp_path / "stores"
    stores.mkdir()
    (stores / "key").symlink_to(features)
    train(stores, out, "--adapter", "lora")  # a folder with one store in it will do
    said = capsys.readouterr().out
    assert "epoch   2/2" in said
    assert f"next: cliptune evaluate --run {out}" in said
    verify(out / "best")
    before = (out / "last" / "adapter.safetensors").stat().st_mtime_ns
    train(stores, out, "--adapter", "lora")
    assert "nothing to do" in capsys.readouterr().out
    assert (out / "last" / "adapter.safetensors").stat().st_mtime_ns == before
    flags = ["--features", str(stores), "--out", str(out), "--metric", "val/t2i_mrr"]
    assert "its `metric` is 'val/t2i_r1'" in fails(capsys, "train", *flags)  # chose `best/`
    _export_loads_elsewhere(tmp_path, out, clip)


def test_a_run_whose_first_save_met_a_full_disk_goes_on(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(change: str) -> None:
        if change.endswith("run/best"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), change)

    with watching(tmp_path, full), pytest.raises(SystemExit):
        train(features, tmp_path / "run", "--adapter", "projection")
    assert (tmp_path / "run" / "best.new").is_dir()
    assert "lies on a disk that cannot be written to" in capsys.readouterr().err
    train(features, tmp_path / "run", "--adapter", "projection")
    verify(tmp_path / "run" / "best")


def _export_loads_elsewhere(tmp_path: Path, out: Path, clip: Path) -> None:
    stage_main("export", ["--run", str(out), "--out", str(tmp_path / "peft")])
    stage_main("export", ["--run", str(out), "--out", str(tmp_path / "merged"), "--merged"])
    backbone = load_backbone(str(clip))
    tokens, _ = backbone.tokenize(["a red dog in the park", "a blue boat near the sea"])
    with torch.no_grad():
        expected = load_adapter(out / "best", backbone).embed_text(tokens)
        ids = {"input_ids": tokens.pad(backbone.pad_token)}
        peft = PeftModel.from_pretrained(CLIPModel.from_pretrained(clip), tmp_path / "peft")
        merged = CLIPModel.from_pretrained(tmp_path / "merged")
        for model in (peft.eval(), merged.eval()):
            found = model.get_text_features(**ids).pooler_output
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, backbone_text(clip, ids))


def backbone_text(clip: Path, ids: dict[str, torch.Tensor]) -> torch.Tensor:
    embeds: torch.Tensor = CLIPModel.from_pretrained(clip).get_text_features(**ids).pooler_output
    return embeds


def test_an_adapter_without_a_foreign_format_says_how_to_load_it(
    tmp_path: Path, features: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(features, tmp_path / "run")
    said = fails(capsys, "export", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "x"))
    assert f'`cliptune.load("{tmp_path / "run"}")` loads it' in said
    assert cliptune.load(tmp_path / "run").name == "soft_prompt"
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--adaptor", "lora"], "Did you mean `--adapter`?"),
        (["--adapter", "lorra"], "Did you mean `lora`?"),
        (["--set", "optim.rl=1"], "Did you mean `optim.lr`?"),
        (["--set", "optim.lr=fast"], "`optim.lr` must be of type float, got 'fast'."),
        (["--set", "optim.lr=-1"], "`optim.lr` must be above 0, got -1.0."),
        (["--set", "loss.kind=nce"], "Choices: `infonce`, `siglip`."),
        (["--set", "optim.lr"], "takes `field=value`"),
        (["--set", "batch_size=inf"], "`batch_size` must be a finite number, got 'inf'."),
        (["--set", "patience=1", "patience=2"], "`--set` takes `patience` once, got '1' and '2'."),
        (["--set", "patience=1", "--set", "seed=2"], "`--set` takes all its values at once"),
        (["--metric", "val/t2i_medr"], "unknown metric `val/t2i_medr`"),
        (["--set", "epochs=0"], "`epochs` must be at least 1 of `soft_prompt`, got 0."),
        (["--set", "adapter.n_ctx=76"], "leaves no room for a word"),
        (["--adapter", "lora", "--set", "adapter.tower=vision"], "has no pixels"),
        (["--workers", "0"], "`--workers` must be at least 1, got 0."),
        (["--gpus", "0.5", "--workers", "2"], "must be whole with `--workers 2`, got 0.5"),
    ],
)
def test_a_wrong_flag_or_field_is_named_with_its_rule(
    words: list[str], expected: str, tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny import tiny_features

    store = tiny_features(tmp_path / "features", clip=clip)
    flags = ["--features", str(store), "--out", str(tmp_path / "run"), *words]
    assert expected in fails(capsys, "train", *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "words", "expected"),
    [
        ("tune", "--gpus nonsense", "`--gpus` must be a number or auto, got nonsense."),
        ("tune", "--gpus=x", "`--gpus` must be a number or auto, got x."),
        ("tune", "--trials 1.5", "`--trials` must be a whole number, got 1.5."),
        ("tune", "--workers_per_trial x", "`--workers-per-trial` must be a whole number, got x."),
        ("train", "--wait soon", "`--wait` must be a number, got soon."),
        ("encode", "--workers few", "`--workers` must be a whole number or auto, got few."),
        ("sweep", "--shares 0.5 half", "`--shares` must be a number, got half."),
        ("arena", "--protocol al", "must be all, base_to_new, transfer or shift, got al."),
        ("encode", "--precision fp64", "`--precision` must be auto, fp32 or bf16, got fp64."),
    ],
)
def test_a_value_of_no_such_type_is_one_sentence(
    stage: str, words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, stage, *words.split())
    assert said.startswith("error: ")
    assert said.endswith(f"{expected}\n")
    assert said.count("\n") == 1


def test_values_that_fit_and_words_of_no_flag_are_left_to_the_stage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    values = "--gpus 0.25 --trials 3 --seed -1 --scheduler asha --adapter 3 lora --minutes=1e1"
    assert "--features" in fails(capsys, "tune", *values.split())  # which is what is missing
    assert "must be" not in fails(capsys, "caption", "--seconds", "3", "photo.jpg", "--run", "no")


def test_workers_that_no_cluster_has_leave_nothing(
    tmp_path: Path,
    features: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(dashboard: bool) -> None:
        raise CliptuneError("no room for this.")

    monkeypatch.setattr("pipelines.train.training.connect", refuse)
    flags = ["--features", str(features), "--out", str(tmp_path / "run"), "--workers", "99"]
    assert "no room for this." in fails(capsys, "train", *flags)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_features_or_with_several_is_named(
    tmp_path: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.tiny import tiny_features

    flags = ["--features", str(tmp_path), "--out", str(tmp_path / "run")]
    assert f"`{tmp_path}` holds no finished features" in fails(capsys, "train", *flags)
    for name in ("a", "b"):
        tiny_features(tmp_path / name, clip=clip)
    assert "several stores" in fails(capsys, "train", *flags)


def test_an_unknown_stage_names_the_nearest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["cliptune", "tunee"])
    with pytest.raises(SystemExit, match="Did you mean `tune`"):
        main()
    monkeypatch.setattr(sys, "argv", ["cliptune"])
    main()
    assert "evaluate" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupted_run_has_shown_its_epochs_and_saves_its_step(
    workers: str, tmp_path: Path, features: Path
) -> None:
    out = tmp_path / "run"
    words = ["--features", str(features), "--out", str(out), "--workers", workers]
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.train", *words, "--set", "epochs=4000", "batch_size=16"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout
    assert any(line.startswith("epoch   1/4000 | ") for line in process.stdout)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "run the same command again" in said
    assert not (out / "stop").exists()
    state = json.loads((out / "last" / "state.json").read_text())
    assert state["step"] >= 3 * len(state["rows"])
    verify(out / "last")
