"""The report of captioners: their own baseline, each against each, and what they said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from pipelines.pages.numbers import Metric
from pipelines.report import __main__ as report
from pipelines.report.study import baseline_of
from pipelines.runs.baselines import WORDS
from tests.pipelines.report.test_report import make_result, make_study, reported, thumbnail, words
from trainables.adapters.registry import BASELINES
from trainables.errors import DataError

VALUES = {
    **{"cider_d": 1.1312, "cider": 1.2043, "bleu1": 0.7461, "bleu2": 0.5812, "bleu3": 0.4423},
    **{"bleu4": 0.3351, "rouge_l": 0.5583, "meteor_stem": 0.2512, "clip_score": 0.7724},
    **{"ref_clip_score": 0.8136, "sentence_bleu4": 0.2847, "repetition": 0.0919},
}
DIVERSITY = {"distinct_1": 0.0611, "distinct_2": 0.2122, "distinct_captions": 0.8733}
HOSTILE = "a <script>alert(1)</script> | `dog` [x](javascript:alert(1)) ![y](http://e.org/z.png)"


# -- a made-up run folder ---------------------------------------------------------------------


def _gaps(size: float) -> dict[str, Any]:
    """Paired differences of `size` by every metric; of repetition as much less."""
    made = {}
    for name in VALUES:
        by = -size if name == "repetition" else size
        gap = {"difference": by, "low": by - 0.0312, "high": by + 0.0334, "p": 0.004}
        gap["p_holm"] = 0.012
        made[f"{name}@1000"] = gap
    return made


def _row(name: str, gain: float | None, **more: Any) -> dict[str, Any]:
    metrics = {}
    for key, base in VALUES.items():
        value = base + (-1 if key == "repetition" else 1) * (gain or 0.0) / 10
        metrics[f"{key}@1000"] = {"value": value, "low": value - 0.0151, "high": value + 0.0152}
    row = {"name": name, "adapter": name, "trial": 3, "config": {}, "trainable_parameters": 7_901}
    row |= {"val": {"cider_d": 1.0987}, "epochs": 9, "seconds": 65.25, "metrics": metrics}
    row |= {"vs_baseline": {} if gain is None else _gaps(gain), "selected": False}
    return row | {"diversity": DIVERSITY | {"mean_words": 9.43}} | more


def captioned(kind: str, name: str, said: dict[str, str], frames: int = 1) -> dict[str, Any]:
    """A picture, or a clip of `frames`, with what each row said."""
    return {
        "id": name,
        "kind": kind,
        "thumbs": [thumbnail(40 * n) for n in range(frames)],
        "references": ["Two dogs run over wet sand.", "a pair of dogs playing at the beach"],
        "said": [
            {"name": row, "text": text, "cider_d": 2.5 - 0.4321 * n}
            for n, (row, text) in enumerate(said.items())
        ],
    }


def make_captions(gain: float = 0.1234, between: float = 0.0512) -> dict[str, Any]:
    """result.json of two captioners; `between`: how much the first is above the second."""
    said = {"prefix_captioner": "two dogs run on sand", "other": HOSTILE, "nearest_caption": ""}
    return make_result() | {
        "metric": "cider_d",
        "baseline": "nearest_caption",
        "rows": [
            _row("nearest_caption", None, trial=None, trainable_parameters=0),
            _row("prefix_captioner", gain, selected=True),
            _row("other", 0.0),
        ],
        "pairs": [{"a": "prefix_captioner", "b": "other", "metrics": _gaps(between)}],
        "gallery": [],
        "test_openings": [{"at": "2026-01-02", "by": "evaluate", "rows": ["other"]}],
        "captions": [
            captioned("best", "img-1", said),
            captioned("best", "clip-2", said, frames=4),
            captioned("worst", "img-3", said),
        ],
    }


def make_search(run: Path) -> Path:
    """A search of one captioner, whose baseline stands at 0.71 on val."""
    run.mkdir(parents=True)
    facts = {"format": "cliptune-study-1", "metric": "val/cider_d", "task": "captioning"}
    facts |= {"adapters": ["nearest_caption", "prefix_captioner"], "trials": 10, "rungs": []}
    (run / "study.json").write_text(json.dumps(facts))
    storage = JournalStorage(JournalFileBackend(str(run / "journal.log")))
    study = optuna.create_study(study_name="cliptune", storage=storage, direction="maximize")
    for i in range(10):
        curve = {epoch: 0.8 + 0.02 * i + 0.05 * epoch for epoch in (1, 2, 3)}
        trial = create_trial(
            state=TrialState.COMPLETE,
            value=curve[3],
            params={"prefix_captioner/optim.lr": 1e-4 * (i + 1)},
            distributions={"prefix_captioner/optim.lr": FloatDistribution(1e-5, 1e-2, log=True)},
            intermediate_values=curve,
            user_attrs={"config": {"name": "prefix_captioner"}, "best": curve[3], "epochs": 3},
        )
        study.add_trial(trial)
    (run / "nearest_caption").mkdir()
    (run / "nearest_caption" / "metrics.jsonl").write_text('{"epoch": 0, "val/cider_d": 0.71}\n')
    return run


def written(run: Path, result: dict[str, Any]) -> tuple[str, str]:
    (run / "result.json").write_text(json.dumps(result))
    return reported(run)


# -- the baseline has its own name ------------------------------------------------------------


def test_the_baseline_of_every_task_is_the_registrys() -> None:
    assert {task: baseline_of(task) for task in BASELINES} == BASELINES
    assert baseline_of(None) == "zero_shot"
    assert set(WORDS) == set(BASELINES.values())


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (0.1234, "prefix_captioner beats the nearest caption by 12.3 points of CIDEr-D on 1,000"),
        (0.0, "No adapter was shown to beat the nearest caption: prefix_captioner differs by 0.0"),
        (-0.1, "prefix_captioner is worse than the nearest caption by 10.0 points of CIDEr-D on"),
    ],
)
def test_the_headline_names_the_baseline(tmp_path: Path, gain: float, sentence: str) -> None:
    html, markdown = written(tmp_path, make_captions(gain))
    assert f"<h1>{sentence}" in html
    assert sentence in markdown.replace("\\", "")


def test_nothing_on_the_page_says_zero_shot(tmp_path: Path) -> None:
    result = make_captions()
    other = make_result()["gallery"]  # a gallery names the baseline too
    for text in written(make_search(tmp_path / "x"), result | {"gallery": other}):
        assert "the nearest caption" in text
        assert not re.search("zero.?shot", text, re.I)


def test_the_baseline_on_val_is_in_words_charts_and_grey(tmp_path: Path) -> None:
    html, markdown = reported(make_search(tmp_path / "x"))
    for text in (html, markdown):
        assert "The nearest caption stands at 71.0 on val: a difference of +42.0 points." in text
        assert "the nearest caption, the baseline" in text
    charts = re.findall(r"<svg .*?</svg>", html, re.S)
    assert sum(">the nearest caption<" in chart for chart in charts) == 3  # race, history, curves
    grey = '<span class="glyph" style="color: var(--muted)">●</span>nearest_caption'
    assert grey in html


def test_a_baseline_chosen_on_val_stays_the_choice(tmp_path: Path) -> None:
    result = make_captions()
    result["rows"][0]["selected"], result["rows"][1]["selected"] = True, False
    html, _ = written(tmp_path, result)
    assert "<h1>The nearest caption stays the choice: no adapter did better on val" in html


# -- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "label", "shown"),
    [
        ("cider_d@1000", "CIDEr-D", "113.1"),
        ("val/cider", "CIDEr", "120.4"),
        ("bleu4@1000", "BLEU-4", "33.5"),
        ("meteor_stem@1000", "METEOR (stems)", "25.1"),
        ("ref_clip_score@1000", "RefCLIPScore", "81.4"),
        ("sentence_bleu4@5", "mean sentence BLEU-4", "28.5"),
    ],
)
def test_caption_metrics_are_written_as_papers_print_them(key: str, label: str, shown: str) -> None:
    metric = Metric.of(key)
    name = key.removeprefix("val/").partition("@")[0]
    assert (metric.label, metric.show(VALUES[name])) == (label, shown)
    assert metric.points == " points"
    assert metric.higher_is_better


def test_of_repetition_less_is_better() -> None:
    assert not Metric.of("repetition@1000").higher_is_better


def test_every_number_appears_and_the_scale_is_told_once(tmp_path: Path) -> None:
    result = make_captions()
    html, markdown = written(make_search(tmp_path / "x"), result)
    wanted = {f"{100 * m[k]:.1f}" for r in result["rows"] for m in r["metrics"].values() for k in m}
    wanted |= {f"{100 * DIVERSITY[name]:.1f} %" for name in DIVERSITY} | {"9.4"}
    assert len(wanted) > 40
    for text in (words(html), markdown):
        missing = {n for n in wanted if not re.search(rf"(?<![\d.]){re.escape(n)}(?!\d)", text)}
        assert missing == set()
        assert text.count("times 100, as papers print them") == 1


def test_other_tasks_have_nothing_of_captions(tmp_path: Path) -> None:
    run = make_study(tmp_path / "x", [("lora", TrialState.COMPLETE, 3)] * 2)
    for text in (*reported(run), *written(run, make_result())):
        assert "times 100" not in text
        assert "Against each other" not in text
        assert "distinct" not in text
        assert "People wrote" not in text


# -- against each other -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("between", "sentence", "mark"),
    [
        (
            0.0512,
            "prefix_captioner is better than other by 5.1 points of CIDEr-D (95 % interval 2.0 to "
            "8.5, p = 0.004, Holm p = 0.012).",
            "better: prefix_captioner",
        ),
        (
            -0.0512,
            "other is better than prefix_captioner by 5.1 points of CIDEr-D (95 % interval 1.8 to "
            "8.2, p = 0.004, Holm p = 0.012).",
            "better: other",
        ),
        (
            0.0012,
            "No difference between prefix_captioner and other is shown: +0.1 points of CIDEr-D "
            "(95 % interval \N{MINUS SIGN}3.0 to +3.5, p = 0.004, Holm p = 0.012).",
            "no difference shown",
        ),
    ],
)
def test_rows_against_each_other(tmp_path: Path, between: float, sentence: str, mark: str) -> None:
    result = make_captions(between=between)
    html, markdown = written(tmp_path, result)
    assert f"<li>{sentence}</li>" in html
    assert f"- {sentence}" in markdown.replace("\\", "")
    for text in (html, markdown.replace("\\", "")):  # of repetition, less is better: the sign turns
        assert text.count(mark) == len(VALUES)


def test_a_lead_that_others_could_have_by_chance_is_not_called_one(tmp_path: Path) -> None:
    result = make_captions()
    for gap in result["pairs"][0]["metrics"].values():
        gap["p_holm"] = 0.06
    html, markdown = written(tmp_path, result)
    for text in (html, markdown.replace("\\", "")):
        assert "No difference between prefix_captioner and other is shown: +5.1 points" in text
        assert "better: prefix_captioner" not in text


def test_without_pairs_there_is_no_such_section(tmp_path: Path) -> None:
    result = make_captions()
    for pairs in ({"pairs": []}, {}):
        del result["pairs"]
        html, markdown = written(tmp_path, result | pairs)
        result |= {"pairs": []}
        assert 'id="pairs"' not in html
        assert "Against each other" not in html + markdown


# -- captions ---------------------------------------------------------------------------------


def test_captions_stand_beside_their_pictures_best_first(tmp_path: Path) -> None:
    html, markdown = written(tmp_path, make_captions())
    best, worst = (f"{kind} by CIDEr-D of prefix_captioner" for kind in ("Best", "Worst"))
    seen = re.findall(r"<h3>(\w+ by [^<]*)|<figcaption>((?:img|clip)-\d)", html)
    assert [a or b for a, b in seen] == [best, "img-1", "clip-2", worst, "img-3"]
    plain = markdown.replace("\\", "")
    places = [plain.index(text) for text in (best, "| img-1 ", "| clip-2 ", worst, "| img-3 ")]
    assert places == sorted(places)
    said = "| prefix_captioner (chosen on val) | two dogs run on sand | 250.0 |"
    assert plain.count(said) == 3
    assert "| reference | Two dogs run over wet sand. | |" in plain
    rows = re.findall(r"<tr( class=\"chosen\")?><td class=\"name\">.*?</tr>", html, re.S)
    assert [bool(chosen) for chosen in rows[-9:]] == [True, False, False] * 3
    assert words(html).count("206.8") == 3  # the second row's CIDEr-D


def test_a_clip_is_a_strip_of_its_frames_in_order(tmp_path: Path) -> None:
    result = make_captions()
    html, _ = written(tmp_path, result)
    strip = re.search(r'<figure class="film clip">(.*?)</figure>', html, re.S)
    assert strip
    frames = re.findall(r'<img src="([^"]+)" alt="clip-2, frame (\d) of 4"', strip[1])
    assert frames == [(uri, str(n)) for n, uri in enumerate(result["captions"][1]["thumbs"], 1)]
    assert html.count("<img ") == 6


def test_words_that_no_reference_has_are_marked(tmp_path: Path) -> None:
    result = make_captions()
    said = {"prefix_captioner": "Two dogs, run over the moon."}
    result["captions"] = [captioned("best", "img-1", said)]
    html, _ = written(tmp_path, result)
    assert "<bdi>Two dogs, run over the <u>moon.</u></bdi>" in html


def test_captions_are_inert(tmp_path: Path) -> None:
    result = make_captions()
    result["captions"][0]["references"] = [HOSTILE, "x\n# heading\n| a | b |"]
    result["captions"][0]["id"] = '"><script>alert(2)</script>'
    html, markdown = written(tmp_path, result)
    assert "<script" not in html + markdown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert r"\| \`dog\` \[x\](javascript:alert(1)) \!\[y\](http://e.org/z.png)" in markdown
    assert "\n# heading" not in markdown
    assert r"x \# heading \| a \| b \|" in markdown
    for target in re.findall(r"""<[^>]*(?:src|href)=["']?([^"'\s>]+)""", html):
        assert target.startswith(("#", "data:image/jpeg;base64,"))


def test_only_jpeg_frames_are_shown_and_an_empty_caption_is_told(tmp_path: Path) -> None:
    result = make_captions()
    evil = 'data:image/jpeg;base64,AAAA" onload="alert(1)'
    result["captions"] = [result["captions"][1] | {"thumbs": [evil, None, thumbnail(9)]}]
    html, _ = written(tmp_path, result)
    assert html.count("<img ") == 1
    assert html.count('<span class="blank">') == 2
    assert "onload" not in html
    assert html.count("<small>no words</small>") == 1


def test_many_references_are_folded(tmp_path: Path) -> None:
    result = make_captions()
    result["captions"] = result["captions"][:1]
    result["captions"][0]["references"] = [f"reference number {n}" for n in range(20)]
    html, markdown = written(tmp_path, result)
    assert "<summary>15 more</summary>" in html
    for text in (html, markdown):
        assert all(f"reference number {n}" in text for n in range(20))


def test_one_image_with_one_row(tmp_path: Path) -> None:
    result = make_captions()
    said = {"prefix_captioner": "two dogs"}
    result["captions"] = [captioned("worst", "img-1", said)]
    result["captions"][0]["said"][0]["cider_d"] = 0.0  # with one image every weight is 0
    result["data"]["images"], result["rows"], result["pairs"] = 1, result["rows"][1:2], []
    html, markdown = written(tmp_path, result)
    for text in (html, markdown):
        assert "on 1 test image (95 % interval" in text
        assert "Best by CIDEr-D" not in text
        assert "Worst by CIDEr-D" in text


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"baseline": "nearest"}, "unknown baseline `nearest`. Did you mean `nearest_caption`?"),
        ({"format": "cliptune-result-1"}, "run `cliptune evaluate` again"),
        ({"pairs": [{"a": "othr", "b": "other", "metrics": {}}]}, "unknown row `othr`. Did you"),
        ({"captions": [captioned("last", "x", {})]}, "unknown kind `last`. Did you mean `best`?"),
        ({"captions": [captioned("best", "x", {"y": ""})]}, "unknown row `y`."),
        ({"captions": [{"id": "x", "references": []}]}, "lacks the field `kind`"),
    ],
)
def test_faults_are_one_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(make_captions() | change))
    with pytest.raises(DataError, match=re.escape(sentence)) as caught:
        report.run(report.Args(tmp_path))
    assert f"`{path}`" in str(caught.value)
