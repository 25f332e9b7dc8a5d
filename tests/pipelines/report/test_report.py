"""The report: every number appears, nothing untrusted runs, unfinished searches are shown."""

from __future__ import annotations

import base64
import io
import json
import math
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from PIL import Image

from pipelines.pages import numbers
from pipelines.report import __main__ as report
from trainables.errors import DataError

SPACES = {
    "lora": {
        "optim.lr": FloatDistribution(1e-5, 1e-2, log=True),
        "adapter.rank": CategoricalDistribution((2, 4, 8)),
        "temperature.policy": CategoricalDistribution(("fixed", "learned")),
    },
    "soft_prompt": {
        "optim.lr": FloatDistribution(1e-4, 1e-1, log=True),
        "adapter.n_ctx": IntDistribution(1, 16),
    },
}
RUNGS = [1, 3, 9]
FAILURE = "Diverged: the loss was inf at step 40."


# -- a made-up run folder ---------------------------------------------------------------------


def _params(adapter: str, i: int) -> dict[str, Any]:
    lr = 10 ** (-4.5 + (i * 0.618) % 1 * 2)
    if adapter == "lora":
        return {
            "optim.lr": lr,
            "adapter.rank": (2, 4, 8)[i % 3],
            "temperature.policy": ("fixed", "learned")[i // 4 % 2],
        }
    return {"optim.lr": lr * 10, "adapter.n_ctx": 1 + i * 5 % 16}


def _trial(adapter: str, i: int, state: TrialState, epochs: int) -> optuna.trial.FrozenTrial:
    params = _params(adapter, i)
    top = 0.30 + 0.13 * ((i * 0.618) % 1) + (0.05 if adapter == "lora" else 0.0)
    curve = {e: 0.25 + (top - 0.25) * (1 - 0.6**e) - 0.004 * (e % 2) for e in range(1, epochs + 1)}
    attrs: dict[str, Any] = {"config": {"name": adapter, **params}, "recipe": i < 2}
    if i == 2:
        attrs |= {"origin": "prior", "source": "trial 7 of runs/<x>"}
    if state is TrialState.FAIL:
        attrs["reason"] = FAILURE
    elif state is not TrialState.RUNNING:
        attrs |= {"best": max(curve.values()), "epochs": epochs, "seconds": 7.25 * epochs}
        attrs["trainable_parameters"] = 196_608 if adapter == "lora" else 8_192
    spaces = {"adapter": CategoricalDistribution(tuple(SPACES))}
    spaces |= {f"{adapter}/{k}": d for k, d in SPACES[adapter].items()}
    return create_trial(
        state=state,
        value=max(curve.values()) if state is TrialState.COMPLETE else None,
        params={"adapter": adapter} | {f"{adapter}/{k}": v for k, v in params.items()},
        distributions=spaces,
        intermediate_values=curve,
        user_attrs=attrs,
    )


def make_study(run: Path, trials: list[tuple[str, TrialState, int]]) -> Path:
    """A run folder with a study of `trials`: (adapter, state, epochs)."""
    run.mkdir(parents=True)
    facts = {"format": "cliptune-study-1", "metric": "val/t2i_r1", "adapters": sorted(SPACES)}
    facts |= {
        "seed": 0,
        "trials": len(trials),
        "epochs": 9,
        "rungs": RUNGS,
        "created": "2026-01-01",
    }
    (run / "study.json").write_text(json.dumps(facts))
    storage = JournalStorage(JournalFileBackend(str(run / "journal.log")))
    study = optuna.create_study(study_name="cliptune", storage=storage, direction="maximize")
    study.add_trials([_trial(a, i, state, e) for i, (a, state, e) in enumerate(trials)])
    (run / "zero_shot").mkdir()
    (run / "zero_shot" / "metrics.jsonl").write_text('{"epoch": 1, "val/t2i_r1": 0.2875}\n')
    return run


def usual() -> list[tuple[str, TrialState, int]]:
    """24 trials of two adapters as ASHA leaves them: some complete, some pruned, one failed."""
    ends = {0: 9, 1: 3, 2: 1}
    made = []
    for i in range(24):
        epochs = ends[i // 2 % 3]
        state = TrialState.COMPLETE if epochs == 9 else TrialState.PRUNED
        made.append((sorted(SPACES)[i % 2], state, epochs))
    made[7] = (made[7][0], TrialState.FAIL, 0)
    return made


def thumbnail(shade: int) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (24, 18), (shade, 120, 255 - shade)).save(stream, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def _metrics(base: float) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for direction, pool, shift in (("t2i", 1000, 0.0), ("i2t", 5000, 0.1111)):
        for k, more in ((1, 0.0), (5, 0.25), (10, 0.35)):
            value = base + shift + more
            low, high = value - 0.0213, value + 0.0217
            made[f"{direction}_r{k}@{pool}"] = {"value": value, "low": low, "high": high}
        made[f"{direction}_medr@{pool}"] = {"value": 3.0, "low": 2.0, "high": 4.0}
        made[f"{direction}_mrr@{pool}"] = {"value": 0.512, "low": 0.501, "high": 0.523}
    return made


def _row(adapter: str, base: float, gain: float, **more: Any) -> dict[str, Any]:
    metrics = _metrics(base)
    gains = {
        key: {"difference": gain, "low": gain - 0.0221, "high": gain + 0.0219, "p": 0.0005}
        for key in metrics
    }
    row = {"name": adapter, "adapter": adapter, "trial": 3, "config": {"optim.lr": 0.00123}}
    row |= {"trainable_parameters": 196_608, "val": {"t2i_r1": 0.4567}, "epochs": 9}
    row |= {"seconds": 65.25, "metrics": metrics, "vs_baseline": gains, "selected": False}
    return row | more


def make_result() -> dict[str, Any]:
    zero = {"trial": None, "config": {}, "trainable_parameters": 0, "val": {}, "vs_baseline": {}}
    picture = {"id": "img-7", "score": 0.3217, "hit": False, "thumb": thumbnail(40)}
    hit = picture | {"id": "img-1", "score": 0.3456, "hit": True, "thumb": thumbnail(200)}
    return {
        "format": "cliptune-result-2",
        "created": "2026-01-02T03:04:05+00:00",
        "seconds": 12.5,
        "data": {
            "shards": "shards/flickr8k",
            "digest": "d1gest",
            "split": "test",
            "images": 1000,
            "captions": 5000,
            "quarantined": {"truncated image": 3, "empty caption": 17},
            "notes": {"exif_rotated": 23},
            "duplicated_image_rows": {"rows": 41, "groups": [], "warning": "41 rows repeat."},
            "truncated_captions": 29,
        },
        "backbone": {
            "name": "openai/clip-vit-base-patch32",
            "revision": "3d74acf",
            "fingerprint": "f1",
        },
        "metric": "t2i_r1",
        "baseline": "zero_shot",
        "protocol": ["All five captions of an image count.", "Ties count against the model."],
        "rows": [
            _row("zero_shot", 0.2961, 0.0, **zero, epochs=0, name="zero-shot"),
            _row("lora", 0.4196, 0.1235, selected=True),
            _row("soft_prompt", 0.3333, 0.0372, trainable_parameters=8_192),
        ],
        "gallery": [
            {
                "query": "a <script>alert(1)</script> dog | runs",
                "image_id": "img-1",
                "truth": thumbnail(200),
                "before": [picture] * 3 + [hit, picture],
                "after": [hit] + [picture] * 4,
            }
        ],
        "test_openings": [
            {
                "at": "2026-01-02",
                "by": "evaluate",
                "rows": ["zero-shot", "lora"],
                "digest": "d1gest",
            }
        ],
        "versions": {"torch": "2.13.0", "transformers": "5.20.0"},
        "hardware": {"cpu": "EPYC <9>", "cores": 2, "gpu": None, "ram_gib": 15.6},
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a study, a result, and its report."""
    run = make_study(tmp_path_factory.mktemp("runs") / "x", usual())
    (run / "result.json").write_text(json.dumps(make_result()))
    report.run(report.Args(run))
    return run


def reported(run: Path) -> tuple[str, str]:
    report.run(report.Args(run))
    return (run / "report.html").read_text(), (run / "report.md").read_text()


def words(html: str) -> str:
    """The text that a reader sees."""

    class Reader(HTMLParser):
        text: list[str] = []  # noqa: RUF012

        def handle_data(self, data: str) -> None:
            self.text.append(data)

    reader = Reader()
    reader.text = []
    reader.feed(html)
    return " ".join(" ".join(reader.text).split())


# -- what the page says -----------------------------------------------------------------------


def test_headline_answers_the_question(finished: Path) -> None:
    html, markdown = ((finished / name).read_text() for name in ("report.html", "report.md"))
    sentence = (
        "lora beats zero-shot by 12.3 points of text-to-image R@1 on 1,000 test images "
        "(95 % interval 10.1 to 14.5)."
    )
    assert f"<h1>{sentence}</h1>" in html
    assert markdown.startswith(f"# {sentence}\n")


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (0.0, "No adapter was shown to beat zero-shot: lora differs by 0.0 points"),
        (-0.1, "lora is worse than zero-shot by 10.0 points"),
    ],
)
def test_headline_does_not_claim_what_is_not_shown(
    tmp_path: Path, gain: float, sentence: str
) -> None:
    result = make_result()
    result["rows"] = [result["rows"][0], _row("lora", 0.3, gain, selected=True)]
    (tmp_path / "result.json").write_text(json.dumps(result))
    for text in reported(tmp_path):
        assert sentence in text


def test_an_adapter_that_was_not_chosen_on_val_wins_no_headline(tmp_path: Path) -> None:
    result = make_result()
    rows = [_row("lora", 0.3, 0.0, selected=True), _row("soft_prompt", 0.4, 0.1)]
    (tmp_path / "result.json").write_text(json.dumps(result | {"rows": [*rows]}))
    html, _ = reported(tmp_path)
    assert "The adapter chosen on val was not shown to beat zero-shot" in html
    assert "Above zero-shot on test, though not the one chosen on val: soft_prompt (+10.0)." in html


def test_zero_shot_with_a_searched_template_is_measured_against_the_baseline(
    tmp_path: Path,
) -> None:
    result = make_result()
    name = "zero_shot, own template"
    own = _row("zero_shot", 0.33, 0.05, name=name, selected=True)
    (tmp_path / "result.json").write_text(json.dumps(result | {"rows": [result["rows"][0], own]}))
    html, _ = reported(tmp_path)
    assert f"{name} beats zero-shot by 5.0 points" in html


def test_zero_shot_stands_beside_trials_as_they_were_measured(tmp_path: Path) -> None:
    """With folds, what `evaluate` measures, on val alone, is of fewer images than their values."""
    run, result = make_study(tmp_path / "x", usual()), make_result()
    result["rows"][0]["val"] = {"t2i_r1": 0.9876}
    (run / "result.json").write_text(json.dumps(result))
    html, _ = reported(run)
    assert "98.8 %" not in html


def test_a_likelihood_of_any_size_has_a_short_form() -> None:
    assert numbers.number(1.494e28, 3) == "1.5e+28"
    assert numbers.number(-1.494e28, 3) == "\N{MINUS SIGN}1.5e+28"
    assert numbers.number(123456.789, 3) == "123,456.789"
    assert numbers.number(math.nan, 3) == numbers.NONE


def test_an_epoch_is_a_whole_number(tmp_path: Path) -> None:
    """Adapters in closed form have one."""
    trials = [(sorted(SPACES)[0], TrialState.COMPLETE, 1)] * 2
    html, _ = reported(make_study(tmp_path / "x", trials))
    figure = html[html.index("on val by epoch,") :]
    ticks = re.findall(r">(\d+(?:\.\d+)?)</text>", figure[: figure.index("</svg>")])
    assert "1" in ticks
    assert not [tick for tick in ticks if tick.startswith("0.")]


def test_between_whole_values_no_broken_one_is_marked(tmp_path: Path) -> None:
    few = {0, 10, 13}  # of lengths 1, 3, 2
    names = ["soft_prompt" if i in few else "lora" for i in range(14)]
    run = make_study(tmp_path / "x", [(name, TrialState.COMPLETE, 9) for name in names])
    html, _ = reported(run)
    figure = html[html.index("by adapter.n_ctx") :]
    ticks = re.findall(r">([^<>]+)</text>", figure[: figure.index("</svg>")])
    assert [tick for tick in ticks if len(tick) == 1] == ["1", "2", "3"]
    assert not [tick for tick in ticks if re.fullmatch(r"\d\.\d", tick)]


def test_what_is_not_there_is_none_and_no_word_of_pythons(finished: Path) -> None:
    for text in reported(finished):
        assert "None" not in text
    assert "gpu none" in (finished / "report.md").read_text()
    assert numbers.setting(None) == "none"


def test_a_lower_rank_is_better() -> None:
    from pipelines.pages.checked import Estimate
    from pipelines.pages.intervals import verdict
    from pipelines.pages.numbers import Metric

    assert verdict(Estimate(-2.0, -3.0, -1.0), Metric.of("t2i_medr@1000")) == "better"
    assert verdict(Estimate(-2.0, -3.0, -1.0), Metric.of("t2i_mrr@1000")) == "worse"
    assert verdict(Estimate(-2.0, -3.0, 1.0), Metric.of("t2i_mrr@1000")) == "open"


def _expected(result: dict[str, Any]) -> set[str]:
    """Every number of the result as the report writes it."""
    seen = set()
    for row in result["rows"]:
        seen |= {f"{row['trainable_parameters']:,}", f"{row['seconds']:.1f} s"}
        seen |= {f"{100 * value:.1f} %" for value in row["val"].values()}
        for key, metric in row["metrics"].items():
            digits, scale = (3, 1) if "mrr" in key else (1, 1 if "medr" in key else 100)
            gain = row["vs_baseline"].get(key, {}) if row["adapter"] != "zero_shot" else {}
            seen |= {f"{scale * metric[k]:,.{digits}f}" for k in ("value", "low", "high")}
            seen |= {
                f"+{scale * gain[k]:.{digits}f}" for k in ("difference", "low", "high") if gain
            }
    data = result["data"]
    seen |= {f"{data[k]:,}" for k in ("images", "captions", "truncated_captions")}
    seen |= {str(n) for n in (*data["quarantined"].values(), *data["notes"].values())}
    seen |= {str(data["duplicated_image_rows"]["rows"]), "15.6", *result["versions"].values()}
    return seen


def test_every_number_of_the_result_appears(finished: Path) -> None:
    numbers = _expected(make_result())
    assert len(numbers) > 60
    html = words((finished / "report.html").read_text())
    markdown = (finished / "report.md").read_text()
    for number in numbers:
        whole = re.compile(rf"(?<![\d.]){re.escape(number)}(?!\d)")
        assert whole.search(html), f"{number} is missing in report.html"
        assert whole.search(markdown), f"{number} is missing in report.md"


def test_every_trial_and_reason_appears(finished: Path) -> None:
    html, markdown = (
        words((finished / "report.html").read_text()),
        (finished / "report.md").read_text(),
    )
    assert "7 complete, 16 stopped early, 1 failed" in html
    for number in range(24):
        assert re.search(rf"^\| {number} \| (lora|soft\\_prompt) ", markdown, re.M)
    assert FAILURE in html
    assert FAILURE in markdown
    assert html.count("trial 7 of runs/<x>") == 1
    assert len(re.findall(r"^\| 2 \|.* trial 7 of runs/", markdown, re.M)) == 1


def test_rungs_say_who_was_stopped_where(finished: Path) -> None:
    from pipelines.report.report_page import _rungs
    from pipelines.report.study import read_study

    found = {r.epoch: (r.reached, len(r.stopped)) for r in _rungs(read_study(finished))}
    assert found == {1: (23, 8), 3: (15, 8), 9: (7, 0)}
    assert "| epoch 3 | 15 | 8 | 42.1 % | 2 (34.8) " in (finished / "report.md").read_text()


def test_charts_are_all_there_and_their_colours_are_the_pages(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    charts = re.findall(r'<svg [^>]*aria-label="([^"]*)"', html)
    fields = sum(map(len, SPACES.values()))
    # The history, the race and the rungs; curves; bars.
    assert len(charts) == 3 + len(SPACES) + len(SPACES) + fields
    bodies = "".join(re.findall(r"<svg .*?</svg>", html, re.S))
    assert not re.search(r"#[0-9a-fA-F]{6}\b", bodies)
    assert set(re.findall(r"var\(--([\w-]+)\)", bodies)) <= set(re.findall(r"--([\w-]+):", html))
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


# -- what must not get through ----------------------------------------------------------------


def test_captions_are_text(finished: Path) -> None:
    html, markdown = ((finished / name).read_text() for name in ("report.html", "report.md"))
    assert "<script" not in html
    assert "a &lt;script&gt;alert(1)&lt;/script&gt; dog" in html
    assert "EPYC &lt;9&gt;" in html
    assert "<script" not in markdown
    assert r"dog \| runs" in markdown


@pytest.mark.parametrize(
    "uri",
    [
        "data:image/svg+xml;base64,AAAA",
        "data:image/jpeg;base64,AAAA\n",
        'data:image/jpeg;base64,AAAA" onload="alert(1)',
        "https://example.org/x.jpg",
        None,
    ],
)
def test_only_a_jpeg_data_uri_becomes_a_picture(tmp_path: Path, uri: str | None) -> None:
    result = make_result()
    result["gallery"][0]["truth"] = uri
    (tmp_path / "result.json").write_text(json.dumps(result))
    html, _ = reported(tmp_path)
    assert html.count("<img ") == 10  # the strips; the query's own picture is left blank
    assert "example.org" not in html
    assert "onload" not in html


def test_the_page_needs_no_network_and_no_script(finished: Path) -> None:
    html = (finished / "report.html").read_text()
    assert "default-src 'none'" in html
    assert not re.search(r"https?:|@import|<script|<link|<iframe", html)
    for target in re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", html):
        assert target.startswith(("#", "data:image/jpeg;base64,"))


# -- searches that are unfinished, empty, or failed -------------------------------------------


def test_without_a_result_only_val_is_reported(tmp_path: Path) -> None:
    html, markdown = reported(make_study(tmp_path / "x", usual()))
    for text in (html, markdown):
        assert "lora (trial 6) is best on val: 43.9 % text-to-image R@1." in text
        assert "Zero-shot stands at 28.7 % on val: a difference of +15.1 points." in text
        assert "that split is still sealed" in text
        assert "cliptune evaluate --run" in text
    assert 'id="gallery"' not in html


def test_a_running_search_is_reported_and_left_alone(tmp_path: Path) -> None:
    run = make_study(tmp_path / "x", [*usual()[:5], ("lora", TrialState.RUNNING, 2)])
    journal = run / "journal.log"
    with journal.open("a") as file:
        file.write('{"op_code": 4, "worker_')  # the writer is in the middle of a line
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in run.rglob("*") if p.is_file()}
    html, _ = reported(run)
    after = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in before}
    assert after == before
    assert {p.name for p in run.iterdir()} - {p.name for p in before} == {
        "report.html",
        "report.md",
        "zero_shot",
    }
    assert "is best on val so far" in html
    assert "1 running" in html


def test_a_study_without_trials(tmp_path: Path) -> None:
    html, markdown = reported(make_study(tmp_path / "x", []))
    for text in (html, markdown):
        assert "No trial has finished yet." in text
    assert "<svg" not in html


def test_all_trials_failed(tmp_path: Path) -> None:
    html, markdown = reported(make_study(tmp_path / "x", [("lora", TrialState.FAIL, 0)] * 4))
    for text in (html, markdown):
        assert "All 4 trials failed." in text
        assert f"Most frequent reason of failure (4 times): {FAILURE}" in text


def test_one_adapter_and_too_few_trials_for_importance(tmp_path: Path) -> None:
    html, _ = reported(make_study(tmp_path / "x", [("lora", TrialState.COMPLETE, 3)] * 5))
    assert "Importance needs at least 8 trials with a value; there are 5." in html


def test_a_result_without_a_study(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text(json.dumps(make_result()))
    html, _ = reported(tmp_path)
    assert "lora beats zero-shot" in html
    assert 'id="search"' not in html


# -- the rest ---------------------------------------------------------------------------------


def test_importance_tells_signal_from_chance() -> None:
    from pipelines.report.importance import importances
    from pipelines.report.study import Trial

    draw = random.Random(0)
    lr, noise = [draw.random() for _ in range(40)], [draw.random() for _ in range(40)]

    def trials(values: list[float]) -> list[Trial]:
        spaces = {"lr": FloatDistribution(0, 1), "noise": FloatDistribution(0, 1)}
        made = []
        for i, value in enumerate(values):
            params = {"lr": lr[i], "noise": noise[i]}
            rest = {"epochs": 1, "seconds": 1.0, "trainable_parameters": 1, "reason": ""}
            made.append(
                Trial(i, "lora", "complete", value, {}, params, spaces, recipe=False, **rest)
            )
        return made

    by_lr = {i.field: i.stands_out for i in importances(trials([-abs(x - 0.5) for x in lr]))}
    assert by_lr == {"lr": True, "noise": False}
    assert importances(trials([0.1] * 7)) == []
    few = importances(trials([float(n) for n in range(8)]))
    assert [i.chance for i in few] == [1, 1]  # chance finds more than all that is there


def test_where_all_trials_tie_no_field_stands_out_by_when_they_ran() -> None:
    """A search narrows: later trials have smaller values. Were ties told apart by number, the
    latest would be the best and that field the cause."""
    from pipelines.report.importance import importances, ranked
    from pipelines.report.study import Trial

    spaces = {"narrowed": FloatDistribution(0, 1), "free": FloatDistribution(0, 1)}
    claimed = 0
    for seed in range(4):
        draw = random.Random(seed)
        made = [
            Trial(
                *(i, "lora", "complete", 0.5, {}),
                {"narrowed": (23 - i) / 24 + 0.01 * draw.random(), "free": draw.random()},
                *(spaces,),
                recipe=False,
                epochs=1,
                seconds=1.0,
                trainable_parameters=1,
                reason="",
            )
            for i in range(24)
        ]
        assert {trial.number for trial in ranked(made)} == set(range(24))
        claimed += any(found.stands_out for found in importances(made))
    assert claimed <= 1


def test_equal_inputs_give_equal_bytes_and_a_second_call_does_nothing(
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(finished, tmp_path / "x")
    for name in ("report.html", "report.md"):
        (tmp_path / "x" / name).unlink()
    texts = []
    for folder in (finished, tmp_path / "x"):
        monkeypatch.chdir(folder.parent)
        texts.append(reported(Path("x")))
    assert texts[0] == texts[1]
    capsys.readouterr()
    report.run(report.Args(Path("x")))
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "must hold a study.json"),
        ({"result.json": "{"}, "is not valid JSON"),
        ({"result.json": '{"a": ' + 5000 * "1" + "}"}, "is not valid JSON"),
        ({"result.json": '{"format": "x"}'}, "is not of the format cliptune-result-2"),
        (
            {"result.json": '{"format": "cliptune-result-2", "baseline": "zero_shot"}'},
            "lacks the field `rows`",
        ),
        ({"study.json": "{}", "journal.log": "x\ny\n"}, "was altered: it is no JSON any more"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, files: dict[str, str], sentence: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(sentence)):
        report.run(report.Args(tmp_path))
