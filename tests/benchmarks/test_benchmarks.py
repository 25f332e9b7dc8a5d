"""The benchmarks' own rules, on a clock that the tests turn: nothing here is timed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import captioning, captions, fused, images, models, naive, ranks, search
from benchmarks.harness import Case, Limit, Outputs, Result, Row, difference, measure
from benchmarks.models import PREPROCESS
from benchmarks.table import Entry, Machine, Seconds, Table
from benchmarks.text import padded
from trainables.adapters.registry import make_config
from trainables.config import read_fields, to_json
from trainables.errors import ConfigError
from trainables.features.split import SplitFeatures
from trainables.files import read_json, write_json
from trainables.media.images import decode
from trainables.models import decoding
from trainables.models.backbone import Backbone
from trainables.models.image_tower import embed_images
from trainables.models.load import load_backbone
from trainables.models.text_plan import Prompt
from trainables.models.text_tower import embed_text
from trainables.training.loop import Run

MACHINE = Machine("A CPU", "avx2 yes", 1, "2.0 (MKL)", "3.11")


class FakeCPU:
    """A clock that variants wind on by what they are said to cost."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def variant(
        self, name: str, seconds: Sequence[float], outputs: Outputs
    ) -> Callable[[], Outputs]:
        costs = iter(seconds)
        last = seconds[-1]

        def run() -> Outputs:
            self.now += next(costs, last)
            self.calls.append(name)
            return outputs

        return run


def row_of(
    baseline: Sequence[float],
    ours: Sequence[float],
    got: Outputs | None = None,
    tolerance: float = 1e-5,
    once: bool = False,
) -> tuple[Row, FakeCPU]:
    cpu, expected = FakeCPU(), {"out": torch.tensor([1.0, -2.0])}
    case = Case(
        cpu.variant("baseline", baseline, expected),
        cpu.variant("ours", ours, expected if got is None else got),
        lambda: cpu.now,
    )
    return Row("family/row", "a row", 4.0, lambda: case, tolerance, once), cpu


def quiet(line: str) -> None:
    del line


def test_the_ratio_is_the_median_over_rounds_and_the_first_call_warms_up() -> None:
    row, cpu = row_of([99, 8, 10, 12, 10, 10], [9, 2, 2, 2, 2, 2])
    result = measure(row, 5, quiet)
    assert (result.ratio, result.rounds, result.error) == (5.0, 5, 0.0)
    assert (result.baseline_seconds, result.our_seconds) == (10, 2)
    assert result.low <= 5.0 <= result.high
    assert (result.low, result.high) == (4.0, 6.0)
    assert result.verdict(row) == "reached"
    assert result.verdict(replace(row, target=5.1)) == "not reached"
    assert cpu.calls == ["ours", "baseline"] * 6


def test_a_quick_variant_is_repeated_until_it_can_be_timed() -> None:
    row, cpu = row_of([1.0], [0.1])
    result = measure(row, 2, quiet)
    assert result.ratio == pytest.approx(10)
    assert result.our_seconds == pytest.approx(0.1)
    assert cpu.calls.count("ours") == 1 + 2 * 3  # 3 of 0.1 s are the first to last 0.25 s
    assert cpu.calls.count("baseline") == 1 + 2


def test_a_row_of_minutes_runs_once() -> None:
    row, cpu = row_of([100.0], [10.0], once=True)
    result = measure(row, 5, quiet)
    assert cpu.calls == ["ours", "baseline"]
    assert (result.ratio, result.low, result.high, result.rounds) == (10, 10, 10, 1)


def test_progress_is_told() -> None:
    told: list[str] = []
    measure(row_of([8.0], [2.0])[0], 2, told.append)
    assert told == [f"family/row: round {n} of 2, 4.00x, 0.0e+00 in out" for n in (1, 2)]


@pytest.mark.parametrize(
    "got",
    [
        {"out": torch.tensor([1.0, -2.001])},
        {"out": torch.tensor([1.0, math.nan])},
        {"out": torch.tensor([1.0])},
        {"other": torch.tensor([1.0, -2.0])},
        {},
    ],
)
def test_unequal_variants_fail_however_fast(got: Outputs) -> None:
    row, _ = row_of([100.0], [1.0], got)
    assert measure(row, 2, quiet).verdict(row) == "FAILED: unequal"


def test_a_difference_within_the_tolerance_passes() -> None:
    row, _ = row_of([100.0], [1.0], {"out": torch.tensor([1.0, -2.001])}, tolerance=1e-3)
    result = measure(row, 2, quiet)
    assert result.error == pytest.approx(0.0005, rel=1e-3)
    assert result.verdict(row) == "reached"


def test_unsteady_ratios_fail() -> None:
    row, _ = row_of([10, 10, 14, 10, 14, 12], [1])
    assert measure(row, 5, quiet).verdict(row) == "FAILED: spread of 33%"


def test_difference_is_that_of_the_worst_tensor() -> None:
    expected = {"a": torch.tensor([1.0, 4.0]), "b": torch.tensor([10, 20])}
    assert difference(expected, expected)[0] == 0.0
    ours = {"a": torch.tensor([1.0, 4.4]), "b": torch.tensor([10, 21])}
    assert difference(ours, expected) == (pytest.approx(0.1), "a")
    assert difference(expected, ours | {"a": torch.tensor([math.inf, 4.4])}) == (math.inf, "a")
    zero = {"a": torch.zeros(2)}
    assert difference(zero, zero)[0] == 0.0
    assert difference({"a": torch.ones(2)}, zero)[0] == math.inf


def result_of(**changes: float) -> Result:
    return replace(Result(5.2, 5.0, 5.4, 0.02, 3e-6, 4.0, 0.8, 5), **changes)


def test_the_page_shows_results_and_hides_those_of_failed_rows(tmp_path: Path) -> None:
    rows = [
        replace(row_of([1], [1])[0], name=f"family/{name}")
        for name in ("good", "slow", "unequal", "unsteady", "missing")
    ]
    table = Table(tmp_path, MACHINE)
    table.entries = {
        "family/good": Entry(result_of(), 0.5),
        "family/slow": Entry(result_of(ratio=3.9), 0.5),
        "family/unequal": Entry(result_of(error=1e-2), 0.5),
        "family/unsteady": Entry(result_of(spread=0.2), 0.5),
    }
    table.write(rows, [])
    page = (tmp_path / "RESULTS.md").read_text()
    lines = {name: next(x for x in page.splitlines() if f"/{name}`" in x) for name in
             ("good", "slow", "unequal", "unsteady", "missing")}  # fmt: skip
    assert "A CPU" in page
    assert "a GPU" in page
    assert lines["good"] == (
        "| `family/good` | a row | 4x | 5.20x | 5.00 to 5.40 | 4 → 0.8 | 5 | 0.5 "
        "| 3.0e-06 of 1e-05 | reached |"
    )
    assert lines["slow"].endswith("| not reached |")
    assert lines["unequal"].endswith("| 1.0e-02 of 1e-05 | FAILED: unequal |")
    assert lines["unsteady"].endswith("| FAILED: spread of 20% |")
    assert "5.20" not in lines["unequal"] + lines["unsteady"]
    assert lines["missing"].endswith("| not run |")
    assert len({line.count("|") for line in lines.values()}) == 1


def test_the_page_shows_limits(tmp_path: Path) -> None:
    limits = [Limit(f"over/{name}", "a limit", 0.5, float) for name in ("kept", "broken", "new")]
    table = Table(tmp_path, MACHINE)
    table.seconds = {"over/kept": Seconds(0.5, 1.0), "over/broken": Seconds(0.6, 1.0)}
    table.write([], limits)
    assert Table(tmp_path, MACHINE).seconds == table.seconds
    lines = [x for x in (tmp_path / "RESULTS.md").read_text().splitlines() if "`over/" in x]
    assert lines == [
        "| `over/kept` | a limit | 0.5 s | 0.5 s | 1.0 | kept |",
        "| `over/broken` | a limit | 0.5 s | 0.6 s | 1.0 | not kept |",
        "| `over/new` | a limit | 0.5 s | | | not run |",
    ]


def test_rows_stay_until_measured_again_on_the_same_machine(tmp_path: Path) -> None:
    row = row_of([1], [1])[0]
    table = Table(tmp_path, MACHINE)
    table.entries["family/row"] = Entry(result_of(), 0.5)
    table.write([row], [])
    assert Table(tmp_path, MACHINE).entries == table.entries
    assert Table(tmp_path, replace(MACHINE, cpu="Another")).entries == {}


def test_the_stored_page_is_what_the_stored_results_give() -> None:
    """Neither is edited by hand."""
    folder = Path(command.__file__).parent
    stored = json.loads((folder / "results.json").read_text())
    table = Table(folder, Machine(**stored["machine"]))
    assert {name: asdict(entry) for name, entry in table.entries.items()} == stored["rows"]
    assert {name: asdict(one) for name, one in table.seconds.items()} == stored["limits"]
    assert (
        table.render(command.all_rows(), command.all_limits())
        == (folder / "RESULTS.md").read_text()
    )


def test_the_command_runs_the_rows_asked_for_and_fails_where_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = row_of([8.0], [1.0])[0]
    bad = replace(row_of([8.0], [1.0], {})[0], name="family/bad")
    monkeypatch.setattr(command, "HERE", tmp_path)
    limit = Limit("family/limit", "a limit", 0.5, lambda: 0.7)
    monkeypatch.setattr(command, "all_rows", lambda: [good, bad])
    monkeypatch.setattr(command, "all_limits", lambda: [limit])
    threads = torch.get_num_threads()
    try:
        assert command.main(command.Args(("family/row",), rounds=2)) == 0
        assert command.main(command.Args((), rounds=2)) == 1
    finally:
        torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "FAILED: unequal" in said
    assert "family/limit: 0.7 s, allowed 0.5 s: not kept" in said
    assert set(json.loads((tmp_path / "results.json").read_text())["rows"]) == {
        "family/row",
        "family/bad",
    }


def test_rows_are_chosen_by_name_or_family() -> None:
    rows = command.all_rows()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert command.select(rows, ()) == rows
    assert [row.name for row in command.select(rows, ("text/coop",))] == ["text/coop"]
    family = [name for name in names if name.startswith("images/")]
    assert [row.name for row in command.select(rows, ("images",))] == family
    with pytest.raises(ConfigError, match="text/coop"):
        command.select(rows, ("text/coopp",))


def test_texts_are_those_of_the_generator() -> None:
    assert captions.FILE.read_text() == captions.render(captions.generate())
    assert captions.render(captions.generate(1)) != captions.render(captions.generate())


def test_texts_are_as_long_as_real_ones() -> None:
    lengths = captions.captions(captions.CAPTIONS).lengths.double()
    quantiles = lengths.quantile(torch.tensor([0.95, 0.99], dtype=torch.float64))
    assert float(lengths.mean()) == pytest.approx(15.8, abs=0.15)
    torch.testing.assert_close(quantiles, torch.tensor([24.0, 33.0]).double(), rtol=0, atol=1)
    prompts = captions.class_prompts()
    assert len(prompts) == 37
    assert int(prompts.lengths.sum()) == 80 + 3 * 37  # CLIP cuts the 37 names into 80 pieces


def test_the_padded_text_encoder_is_the_text_tower(backbone: Backbone) -> None:
    tokens, _ = backbone.tokenize(["a red dog", "a photo of a green boat near the sea"])
    shared = torch.randn(4, backbone.text_width, generator=torch.Generator().manual_seed(0))
    each = torch.randn(2, 4, backbone.text_width, generator=torch.Generator().manual_seed(1))
    for ctx in (shared, each):
        ours = embed_text(backbone, tokens, Prompt(ctx))
        torch.testing.assert_close(padded(backbone.model, tokens, ctx), ours, rtol=0, atol=1e-4)


def test_drawn_pictures_decode_to_the_same_bytes_both_ways() -> None:
    for size in images.SIZES[:2]:
        data = images.jpeg(images.noise(3, *size))
        assert 50_000 < len(data) < 250_000
        ours = PREPROCESS.apply(decode(data))
        assert torch.equal(images.pil(data), ours)
        assert ours.float().std() > 20


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows' models and pools, small enough for a test."""
    for shape in models.SHAPES.values():
        monkeypatch.setitem(shape, "joint", 16)
        for tower in ("text", "vision"):
            monkeypatch.setitem(shape, tower, (32, 4, 4))
    monkeypatch.setattr(ranks, "IMAGES", 60)
    monkeypatch.setattr(ranks, "WIDTH", 16)
    monkeypatch.setattr(images, "COUNT", 2)
    monkeypatch.setattr(fused, "STEPS", 3)
    for name, size in {"n_embd": 32, "n_layer": 2, "n_head": 4}.items():
        monkeypatch.setitem(captioning.SHAPE, name, size)
    monkeypatch.setattr(captioning, "PICTURES", 3)
    monkeypatch.setattr(captioning, "WORDS", 6)


@pytest.mark.parametrize("row", [r for r in command.all_rows() if not r.once], ids=lambda r: r.name)
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_every_rows_variants_agree_and_start_anew_at_each_call(row: Row, small: None) -> None:
    case = row.make()
    expected = case.baseline()
    for _ in range(2):
        assert difference(case.ours(), expected)[0] <= 10 * row.tolerance
    assert difference(case.baseline(), expected)[0] == 0
    assert all(float(out.double().abs().max()) > 0 for out in expected.values())


def test_captions_are_the_same_one_by_one_and_at_once_wherever_they_end(small: None) -> None:
    case = captioning.decoding()
    expected = case.baseline()["tokens"]
    assert expected.shape == (3, 6)
    assert len(expected.unique(dim=0)) == 3
    assert torch.equal(case.ours()["tokens"], expected)
    lm, how = (
        captioning.gpt2(),
        decoding.Decoding("beam", captioning.BEAMS, max_tokens=captioning.WORDS),
    )
    prefix = models.normal(3, captioning.LENGTH, lm.width, seed=1)
    lengths = set()
    for end in expected[:, 2].tolist():
        rows = [captioning.one_by_one(lm.model, one[None], end) for one in prefix]
        assert decoding.decode(lm, prefix, how, end, keep_end=True) == rows
        lengths |= {len(row) for row in rows}
    assert len(lengths) > 1


def test_captions_are_padded_as_clipcap_does() -> None:
    tokens = captioning.words(captions.CAPTIONS)
    longer = captions.captions(captions.CAPTIONS)
    assert torch.equal(tokens.lengths, longer.lengths - 1)
    assert captions.SOT not in tokens.ids
    assert (tokens.ids[tokens.offsets[1:] - 1] == captions.EOT).all()
    lengths = tokens.lengths.double()
    assert captioning.padded_length() == int(lengths.mean() + 10 * lengths.std()) < 84


def test_a_naive_trial_is_a_run_of_the_engine(tmp_path: Path, small: None) -> None:
    names = ["pug", "beagle", "boxer", "saint bernard"]
    files = []
    for number in range(12):
        path = tmp_path / names[number % 4] / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(images.jpeg(images.noise(number, 260, 230)))
        files.append(str(path))
    texts = [f"a photo of a {Path(file).parent.name}." for file in files]
    clip = models.save(tmp_path / "clip", "B/32", texts, layers=2)
    backbone = load_backbone(str(clip))
    with torch.no_grad():
        pixels = torch.stack([images.pil(Path(file).read_bytes()) for file in files])
        embeds = embed_images(backbone, pixels)
    rows = torch.arange(12)
    features = SplitFeatures(files, embeds, None, backbone.tokenize(texts)[0], rows, rows)
    fixed = {"batch_size": 5, "epochs": 3, "adapter.n_ctx": 3, "adapter.init": "a photo"}
    config = make_config("soft_prompt", read_fields(search.FIXED) | fixed)
    run = Run(config, backbone, features, features, tmp_path / "run", "val/t2i_mrr")
    ours = [run.advance() for _ in range(2)]
    job = tmp_path / "job.json"
    write_json(
        job,
        {"clip": str(clip), "train": files, "val": files, "config": to_json(config), "epochs": 2},
    )
    threads = torch.get_num_threads()
    try:
        naive.main(job)
    finally:
        torch.set_num_threads(threads)
    theirs = read_json(job.with_suffix(".rows.json"))
    assert len(theirs) == 2
    for row, other in zip(ours, theirs, strict=True):
        assert row["train/loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["val/t2i_mrr"] == pytest.approx(other["val"], rel=1e-5)


def test_a_process_tree_counts_what_a_command_leaves_behind(tmp_path: Path) -> None:
    burn = "import time\nwhile time.process_time() < 0.5: pass"
    parent = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {burn!r}])"
    # In a process of its own: a tree waits for all children that its process has.
    script = f"""
        import sys
        from pathlib import Path
        from benchmarks.processes import ProcessTree
        tree = ProcessTree()
        tree.run([sys.executable, "-c", {parent!r}], env={{}}, cwd=Path())
        assert tree.seconds() >= 0.5, tree.seconds()
        tree.run([sys.executable, "-m", "no_such_module"], env={{}}, cwd=Path())
    """
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert found.stderr.rstrip().endswith("No module named no_such_module")
    assert "RuntimeError" in found.stderr
