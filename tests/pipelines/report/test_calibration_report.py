"""What the report says of probabilities and conformal sets: no more than chance leaves."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.evaluate.calibration import Images, about
from pipelines.report import __main__ as report
from tests.pipelines.report.test_report import make_result, reported, words
from trainables.errors import DataError
from trainables.metrics.calibration import calibrate
from trainables.metrics.conformal import spread
from trainables.statistics.bootstrap import Bootstrap

HOSTILE = "<script>alert(1)</script> | lora"


def measured(val: int = 76, test: int = 300, seed: int = 0, same: bool = True) -> dict[str, Any]:
    """What `evaluate` writes of one row, of random scores among three classes."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(val + test) % 3
    scores = torch.rand(val + test, 3, generator=random) / 10
    scores[torch.arange(val + test), labels] += 0.05
    images = Images(labels[val:], torch.arange(test), Bootstrap(test, 200))
    return about(scores[val:], images, calibrate(scores[:val], labels[:val], 20.0), same)


def classified(*found: dict[str, Any] | None) -> dict[str, Any]:
    """The baseline and the chosen row, of which `found` was measured."""
    result = make_result()
    result["rows"] = result["rows"][: len(found)]
    for row, calibration in zip(result["rows"], found, strict=True):
        if calibration:
            row["calibration"] = calibration
    return result


def pages(folder: Path, result: dict[str, Any]) -> tuple[str, str]:
    """The section in the HTML, and in the Markdown; empty where there is none."""
    (folder / "result.json").write_text(json.dumps(result))
    html, markdown = reported(folder)
    section = re.search(r'<section id="probabilities">.*?</section>', html, re.S)
    said = re.search(r"^## Probabilities$.*?(?=^## )", markdown, re.M | re.S)
    return section[0] if section else "", said[0] if said else ""


def believed(ece: float, by_chance: float, nll: float = 0.5, right: float = 0.8) -> dict[str, Any]:
    """Of 100 images in one bin."""
    return {
        "ece": ece,
        "ece_by_chance": by_chance,
        "nll": {"value": nll, "low": nll - 0.0311, "high": nll + 0.0322},
        "brier": {"value": 0.3007, "low": 0.2789, "high": 0.3215},
        "bins": [{"images": 100, "confidence": right + ece, "accuracy": right}],
    }


def calibrated(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    scale = {"before": 100.0, "after": 43.2}
    return {"val_images": 76, "scale": scale, "before": before, "after": after}


def _expected(found: dict[str, Any]) -> Iterator[str]:
    """Every number of a row as the report writes it."""
    yield f"{found['val_images']}"
    for time in ("before", "after"):
        one = found[time]
        yield f"{found['scale'][time]:.3g}"
        yield f"{one['ece']:.3f}"
        yield f"{one['ece_by_chance']:.3f}"
        for name in ("nll", "brier"):
            yield from (f"{one[name][key]:.3f}" for key in ("value", "low", "high"))
        for each in one["bins"]:
            yield str(each["images"])
            yield from (f"{100 * each[key]:.1f} %" for key in ("confidence", "accuracy"))
    for held in found["sets"]:
        yield f"{100 * held['coverage']['value']:.1f} %"
        yield from (f"{100 * held['coverage'][key]:.1f}" for key in ("low", "high"))
        yield from (f"{held['size'][key]:.2f}" for key in ("value", "low", "high"))
        yield f"{100 * held['empty']:.1f} %"


def test_every_number_of_the_result_appears(tmp_path: Path) -> None:
    result = classified(measured(seed=1), measured(seed=2))
    expected = {n for row in result["rows"] for n in _expected(row["calibration"])}
    assert len(expected) > 60
    html, markdown = pages(tmp_path, result)
    for number in expected:
        whole = re.compile(rf"(?<![\d.]){re.escape(number)}(?!\d)")
        assert whole.search(words(html)), f"{number} is missing in report.html"
        assert whole.search(markdown), f"{number} is missing in report.md"


def test_numbers_stand_in_their_own_cells(tmp_path: Path) -> None:
    found = measured()
    _, markdown = pages(tmp_path, classified(found))
    after, held = found["after"], found["sets"][1]
    assert (held["kind"], held["time"]) == ("split", "after")

    def interval(one: dict[str, float], digits: int, scale: int = 1, unit: str = "") -> str:
        value, low, high = (f"{scale * one[k]:.{digits}f}" for k in ("value", "low", "high"))
        return f"{value}{unit} ({low} to {high})"

    row = (
        f"| zero-shot, after the temperature | 76 | {found['scale']['after']:.3g} | "
        f"{after['ece']:.3f} (true: below {after['ece_by_chance']:.3f}) | "
        f"{interval(after['nll'], 3)} | {interval(after['brier'], 3)} |"
    )
    assert row in markdown
    row = (
        f"| zero-shot | split | after | {interval(held['coverage'], 1, 100, ' %')} | "
        f"{interval(held['size'], 2)} | {100 * held['empty']:.1f} % |"
    )
    assert row in markdown


def test_an_older_result_has_no_section(tmp_path: Path) -> None:
    assert pages(tmp_path, make_result()) == ("", "")
    assert 'href="#probabilities"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (0.02, 0.03, "No fault of lora's probabilities is shown, before or after the temperature"),
        (0.12, 0.03, "lora's probabilities are off by more than chance explains; after the temp"),
        (
            0.03,
            0.12,
            "No fault of lora's probabilities is shown; after the temperature fitted on v",
        ),
        (0.12, 0.11, "lora's probabilities are off by more than chance explains, before and after"),
        (0.04, 0.04, "No fault of lora's probabilities is shown, before or after the temperature"),
    ],
)
def test_probabilities_are_off_only_above_chance(
    tmp_path: Path, before: float, after: float, sentence: str
) -> None:
    found = calibrated(believed(before, 0.04), believed(after, 0.04))
    html, markdown = pages(tmp_path, classified(None, found))
    assert sentence in words(html)
    assert sentence in markdown
    for name, ece in (("Before, ", before), ("After, ", after)):
        line = next(line for line in markdown.splitlines() if line.startswith(f"- {name}"))
        assert line.endswith(": too sure." if ece > 0.04 else "in 95 of 100 cases.")


def test_too_little_confidence_is_told_from_too_much(tmp_path: Path) -> None:
    modest = believed(0.12, 0.04)
    modest["bins"][0] = {"images": 100, "confidence": 0.68, "accuracy": 0.8}
    mixed = copy.deepcopy(modest)
    mixed["bins"] = [
        {"images": 50, "confidence": 0.5, "accuracy": 0.62},
        {"images": 50, "confidence": 0.9, "accuracy": 0.78},
    ]
    _, markdown = pages(tmp_path, classified(None, calibrated(modest, mixed)))
    assert "in 95 of 100 cases: not sure enough." in markdown
    assert "in 95 of 100 cases: off in both directions." in markdown


def test_a_temperature_that_makes_it_worse_is_said_to(tmp_path: Path) -> None:
    worse = calibrated(believed(0.02, 0.04, 0.4), believed(0.03, 0.04, 0.5))
    html, markdown = pages(tmp_path, classified(None, worse))
    assert re.findall(r'<span class="bad">↑ ([^<]*)</span>', html) == ["0.030", "0.500"]
    assert (
        "On test NLL rises from 0.400 to 0.500, Brier stays at 0.301, and ECE rises from 0.020 to "
        "0.030. By NLL and ECE the temperature makes the probabilities worse on these images."
    ) in markdown
    better = calibrated(believed(0.03, 0.04, 0.5), believed(0.02, 0.04, 0.4))
    html, markdown = pages(tmp_path, classified(None, better))
    assert 'class="bad"' not in html
    assert "On test NLL falls from 0.500 to 0.400" in markdown
    assert "worse" not in markdown


def test_a_diagram_of_the_chosen_row_and_of_the_baseline(tmp_path: Path) -> None:
    result = classified(measured(seed=1), measured(seed=2), measured(seed=3))
    html, _ = pages(tmp_path, result)
    labels = re.findall(r'<svg [^>]*aria-label="accuracy by probability on test, ([^:]*):', html)
    assert labels == ["lora", "zero-shot"]
    drawn = re.findall(r"<svg .*?</svg>", html, re.S)
    for chart, row in zip(drawn, (result["rows"][1], result["rows"][0]), strict=True):
        for time, hue in (("before", "04"), ("after", "08")):
            dots = chart.count(f"stroke: var(--hue-{hue})")
            assert dots >= len(row["calibration"][time]["bins"])
        assert not re.search(r"#[0-9a-fA-F]{6}\b", chart)
    ids = re.findall(r' id="([^"]+)"', (tmp_path / "report.html").read_text())
    assert len(ids) == len(set(ids))


def test_names_are_text(tmp_path: Path) -> None:
    result = classified(measured(seed=1), measured(seed=2))
    result["rows"][1]["name"] = HOSTILE
    result["rows"][1]["calibration"]["without"] = [f"`{HOSTILE}` has no image in val."]
    html, markdown = pages(tmp_path, result)
    for text in (html, markdown):
        assert "<script" not in text
    assert f"{HOSTILE}'s probabilities" in words(html)
    assert r"\| lora, after the temperature |" in markdown


def test_the_baseline_alone(tmp_path: Path) -> None:
    html, markdown = pages(tmp_path, classified(measured(), None))
    assert html.count("<svg ") == 1
    assert "zero-shot's probabilities" in markdown
    assert "lora" not in markdown


def test_new_classes_have_no_sets(tmp_path: Path) -> None:
    html, markdown = pages(tmp_path, classified(measured(same=False), measured(same=False)))
    for text in (html, markdown):
        assert "There are no conformal sets: these classes are not those that val has." in text
        assert "coverage" not in text.lower()


@pytest.mark.parametrize(("val", "test"), [(1, 1), (1, 40), (76, 1)])
def test_one_image(tmp_path: Path, val: int, test: int) -> None:
    html, markdown = pages(tmp_path, classified(measured(val, test), measured(val, test)))
    for text in (words(html), markdown):
        assert not re.search(r"\b(nan|inf)\b", text, re.I)
        assert ("A val of 1 image is too small" in text) == (val == 1)
        assert ("From one val of 76 images" in text) == (val == 76)


def test_what_val_promises_and_how_far_one_val_is_from_it(tmp_path: Path) -> None:
    _, markdown = pages(tmp_path, classified(measured(), measured()))
    low, high = spread(76, 0.9) or (0.0, 0.0)
    assert f"between {100 * low:.1f} % and {100 * high:.1f} % in 95 of 100 cases" in markdown
    assert "at least 90 % of the sets hold the right class" in markdown
    assert "arXiv:2412.06082" in markdown


def test_reasons_for_no_sets_stand_once_with_their_rows(tmp_path: Path) -> None:
    result = classified(measured(20), measured(20), measured())
    (reason,) = result["rows"][0]["calibration"]["without"]
    html, markdown = pages(tmp_path, result)
    assert words(html).count(reason) == markdown.count(reason) == 1
    assert f"zero-shot, lora: {reason}" in words(html)
    html, _ = pages(tmp_path, result | {"rows": result["rows"][:2]})
    assert f"zero-shot, lora: {reason}" not in words(html)
    assert reason[1:] in words(html)


def _set(at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    result = classified(measured(), measured())
    part = result["rows"][1]["calibration"]
    for key in at[:-1]:
        part = part[key]
    if value is None:
        del part[at[-1]]
    else:
        part[at[-1]] = value
    return result


@pytest.mark.parametrize(
    ("at", "value", "sentence"),
    [
        (("before", "ece"), math.nan, "`lora.calibration.before.ece` must be a number of at least"),
        (("after", "nll", "low"), "0.1", "`lora.calibration.after.nll.low` must be a number"),
        (("after", "ece"), True, "`lora.calibration.after.ece` must be a number"),
        (
            ("after", "brier", "high"),
            3.0,
            "brier.high` must be a number of at least 0 and at most 2",
        ),
        (("scale", "after"), math.inf, "`lora.calibration.scale.after` must be a number"),
        (("scale",), None, "`lora.calibration` lacks the field `scale`"),
        (("before", "ece_by_chance"), None, "`lora.calibration.before` lacks the field `ece_by_ch"),
        (("val_images",), 0, "`lora.calibration.val_images` must be a whole number of at least 1"),
        (("val_images",), 7.0, "`lora.calibration.val_images` must be a whole number"),
        (("before", "bins"), [], "`lora.calibration.before.bins` must hold at least one bin"),
        (("before", "bins"), {}, "`lora.calibration.before.bins` must be a list, got {}"),
        (("before", "bins", 0, "accuracy"), 1.2, "bins[0].accuracy` must be a number"),
        (("confidence",), None, "`lora.calibration` lacks the field `confidence`"),
        (("without",), None, "`lora.calibration` lacks the field `without`"),
        (("without",), [3], "`lora.calibration.without[0]` must be a text, got 3"),
        (("sets", 0, "kind"), "wide", "must be one of split, adaptive, class-wise, got 'wide'"),
        (("sets", 0, "coverage"), 0.9, "sets[0].coverage` must be an object, got 0.9"),
        (("sets", 0), None, "`lora.calibration.sets` lacks the split sets before the temperature"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, at: tuple[Any, ...], value: Any, sentence: str
) -> None:
    (tmp_path / "result.json").write_text(json.dumps(_set(at, value)))
    with pytest.raises(DataError, match=re.escape(sentence)) as raised:
        report.run(report.Args(tmp_path))
    assert str(tmp_path / "result.json") in str(raised.value)


def test_the_spread_of_one_val_is_that_of_many() -> None:
    """Of 2,000 vals whose misfits are even, the true coverage of each is its threshold, or a rank
    less: images that are taken for unlike val would have been held, all or none."""
    found = torch.rand(2000, 40, generator=torch.Generator().manual_seed(0)).sort(1).values
    rank = math.ceil(41 * 0.9)
    low, high = spread(40, 0.9) or (0.0, 0.0)
    assert float((found[:, rank - 1] < low).double().mean()) == pytest.approx(0.025, abs=0.01)
    assert float((found[:, rank] > high).double().mean()) == pytest.approx(0.025, abs=0.01)
