"""A stage says that all is up to date only where all that it wrote is there and whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.evaluate import __main__ as evaluate
from pipelines.explain import __main__ as explain
from pipelines.report import __main__ as report
from pipelines.shards import __main__ as shards
from pipelines.sweep import __main__ as sweep
from pipelines.train import __main__ as train
from tests.pipelines.evaluate import test_evaluate
from tests.pipelines.evaluate.test_evaluate import finished, store, study
from tests.pipelines.shards.test_shards import rows_of, table
from trainables.errors import CheckpointError, DataError
from trainables.files import read_json, read_jsonl, sha256_file

FIXTURES = (finished, store, study)
UP_TO_DATE = "is up to date: nothing to do."
CUT, GONE, TURNED = "cut", "gone", "turned"


def harm(path: Path, how: str) -> None:
    if how == GONE:
        path.unlink()
        return
    data = bytearray(path.read_bytes())
    if how == TURNED:
        data[len(data) // 2] ^= 1
    path.write_bytes(data if how == TURNED else data[: len(data) // 2])


def made_again(run: Callable[[], None], paths: list[Path], say: Callable[[], str]) -> None:
    """Each of the files, damaged in each way, is made again by the same command."""
    run()
    say()
    run()
    assert UP_TO_DATE in say()
    for path in paths:
        whole = sha256_file(path)
        for how in (CUT, GONE, TURNED):
            harm(path, how)
            run()
            said = say()
            assert UP_TO_DATE not in said, (path, how)
            assert path.name in said, (path, how)
            if path.suffix != ".json":  # those say when they were made
                assert sha256_file(path) == whole, (path, how)
            run()
            assert UP_TO_DATE in say(), (path, how)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().out


def test_sweep(study: Path, say: Callable[[], str]) -> None:
    args = sweep.Args(study, shares=(0.5,))
    paths = [study / "sweep.json", study / "sweep.html"]
    made_again(lambda: sweep.run(args), paths, say)


def test_report(study: Path, say: Callable[[], str]) -> None:
    test_evaluate.measured(study)
    paths = [study / "report.html", study / "report.md"]
    made_again(lambda: report.run(report.Args(study)), paths, say)


def test_shards(tmp_path: Path, say: Callable[[], str]) -> None:
    source = table(tmp_path, [*rows_of(3), *rows_of(2, "test", first=3)])
    out = tmp_path / "shards"
    args = shards.Args(str(source), out)
    shards.run(args)
    paths = [path for path in out.iterdir() if path.suffix != ".jsonl"]
    assert len(paths) > 1
    made_again(lambda: shards.run(args), paths, say)
    (out / "mine.txt").touch()
    harm(out / "manifest.json", CUT)
    with pytest.raises(DataError, match=r"manifest\.json"):
        shards.run(args)
    assert (out / "mine.txt").exists()


def test_what_was_measured_on_test_is_not_measured_again_in_silence(
    study: Path, say: Callable[[], str]
) -> None:
    test_evaluate.measured(study)
    path = study / "result.json"
    whole = path.read_bytes()
    for how in (CUT, TURNED):
        harm(path, how)
        for stage in (evaluate.run, report.run):
            args = evaluate.Args(study, bootstrap=100)
            with pytest.raises(DataError, match=r"result\.json.*Restore it, or remove it"):
                stage(args if stage is evaluate.run else report.Args(study))  # type: ignore[arg-type]
        path.write_bytes(whole)
    assert len(read_jsonl(study / "test_openings.jsonl")) == 1
    say()
    test_evaluate.measured(study)
    assert UP_TO_DATE in say()
    path.unlink()
    assert len(test_evaluate.measured(study)["test_openings"]) == 2


@pytest.mark.parametrize("how", [CUT, GONE, TURNED])
def test_train_looks_at_the_best_checkpoint(
    store: Path, tmp_path: Path, how: str, say: Callable[[], str]
) -> None:
    args = train.Args(store, tmp_path / "run", set=("epochs=1", "batch_size=12", "precision=fp32"))
    train.run(args)
    say()
    train.run(args)
    assert UP_TO_DATE in say()
    path = args.out / "best" / "adapter.safetensors"
    harm(path, how)
    with pytest.raises(CheckpointError, match=rf"{path}.*remove `{args.out}` and run the same"):
        train.run(args)
    shutil.rmtree(args.out)
    train.run(args)


def test_explain(tmp_path: Path, store: Path, say: Callable[[], str]) -> None:
    run = tmp_path / "run"
    train.run(train.Args(store, run, set=("epochs=1", "batch_size=12", "precision=fp32")))
    args = explain.Args((run,), draws=2)
    paths = [run / "explain" / name for name in ("explain.json", "explain.html", "explain.md")]
    explain.run(args)
    say()
    explain.run(args)
    assert UP_TO_DATE in say()
    for path, how in zip(paths, (CUT, TURNED, GONE), strict=True):
        harm(path, how)
        explain.run(args)
        assert path.name in say()
        assert set(read_json(paths[0])["pages"]) == {"explain.html", "explain.md"}
        explain.run(args)
        assert UP_TO_DATE in say()
