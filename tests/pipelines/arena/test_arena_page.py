"""The arena's page: what it claims, that every number is there, and that nothing untrusted runs."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipelines.arena.arena_page import render, write_page
from pipelines.arena.statistics import standings
from tests.arena import SKILLS, answers, arena, cell, failed, large


@pytest.fixture(scope="module")
def pages() -> tuple[str, str]:
    return render(large())


def words(html: str) -> str:
    """The text that a reader sees, each piece apart."""

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.text: list[str] = []

        def handle_data(self, data: str) -> None:
            self.text.append(data)

    reader = Reader()
    reader.feed(html)
    return " ".join(" ".join(reader.text).split())


def both(cells: list[Any], **more: Any) -> tuple[str, str]:
    html, markdown = render(arena(cells, **more))
    return words(html), markdown.replace("\\", "")


def test_both_files_are_written(tmp_path: Path) -> None:
    paths = write_page(large(), tmp_path)
    assert paths == [tmp_path / "arena.html", tmp_path / "arena.md"]
    assert [path.read_text() for path in paths] == list(render(large()))


# -- what it claims ---------------------------------------------------------------------------


def test_a_lead_that_the_images_show_is_a_win() -> None:
    cells = [
        cell("coop", correct="1" * 90 + "0" * 10),
        cell("zero_shot", correct="1" * 50 + "0" * 50),
    ]
    for text in both(cells):
        assert (
            "On pets, 16 shots: coop is best: 90.0 % accuracy, 40.0 points ahead of zero_shot"
            in text
        )
        assert "one seed" in text


def test_a_lead_that_may_be_chance_is_none() -> None:
    cells = [cell("coop", correct="1010101011"), cell("zero_shot", correct="0101010111")]
    for text in both(cells):
        assert "coop and zero_shot are equally good: 60.0 % accuracy" in text
    cells = [cell("coop", correct="1110101011"), cell("zero_shot", correct="0101010111")]
    for text in both(cells):
        assert (
            "coop has the highest mean, 70.0 % accuracy, but its lead over zero_shot is not" in text
        )
        assert "is best" not in text


def test_equal_means_are_both_named() -> None:
    for text in both([cell("coop", correct="10"), cell("lora", correct="01")]):
        assert "coop and lora are equally good: 50.0 % accuracy." in text


def test_means_of_different_seeds_are_not_called_tested() -> None:
    cells = [cell("coop", seed=1, correct="11"), cell("lora", seed=2, correct="01")]
    for text in both(cells):
        assert "its lead over lora cannot be tested, as they share no seed" in text


def test_the_headline_follows_the_ranks(pages: tuple[str, str]) -> None:
    sentence = (
        "lora has the best average rank (1.0) over 5 data sets (10 of 17 comparisons); "
        "it is not told apart from linear_probe, tip_adapter and soft_prompt."
    )
    assert f"<h1>{sentence}</h1>" in pages[0]
    assert pages[1].startswith("# " + sentence.replace("_", r"\_") + "\n")
    assert "Base to new classes, highest mean in 5 comparisons: lora on 5" in pages[0]


def test_too_few_comparisons_to_rank_are_counted_instead() -> None:
    cells = [
        cell(name, dataset, correct=answers(skill, 400, 1))
        for dataset in ("x", "y")
        for name, skill in (("coop", 0.8), ("zero_shot", 0.3))
    ]
    for text in both(cells):
        assert "coop has the highest mean in 2 of 2 comparisons, and the test images show" in text
        assert "Ranks are not tested with 2 data sets and 2 adapters; 5 and 3 are needed" in text


def test_several_with_as_many_highest_means_are_not_called_best() -> None:
    cells = [
        cell(name, dataset, correct=answers(skill if dataset == "x" else 1 - skill, 40, 1))
        for dataset in ("x", "y")
        for name, skill in (("coop", 0.52), ("lora", 0.48))
    ]
    for text in both(cells):
        assert "each have the highest mean in 1 of 2 comparisons" in text
        assert "and the test images show a lead in 0." in text
        assert "is best" not in text


def test_failures_are_told_with_their_reasons() -> None:
    cells = [cell("coop", correct="10"), failed("lora", "Diverged: <inf> | step 4.", seed=1)]
    html, markdown = render(arena(cells))
    assert "1 of 2 runs failed: lora once." in html
    assert "Diverged: &lt;inf&gt; | step 4." in html
    assert "1 of 2 runs failed: lora once." in markdown
    assert r"Diverged: &lt;inf> \| step 4." in markdown


def test_an_arena_that_has_only_begun() -> None:
    waiting = failed("lora", "") | {"state": "pending", "reason": None}
    for text in both([waiting]):
        assert "No run of the arena has ended with a number yet." in text
        assert "1 run still to come: every number may yet change." in text
    for text in both([], adapters=["lora"]):
        assert "No run of the arena has ended with a number yet." in text


# -- what it shows ----------------------------------------------------------------------------


def _number(value: float) -> str:
    return f"{100 * value:.1f}".replace("-", "\N{MINUS SIGN}")


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + _number(value)


def test_every_number_of_the_standings_appears(pages: tuple[str, str]) -> None:
    html, markdown = words(pages[0]), pages[1]
    wanted = set()
    for table in standings(large()):
        for row in table.rows:
            wanted |= {_number(v) for v in row.mean.values()}
            wanted |= {"± " + _number(v) for v in row.spread.values()}
            wanted |= {_number(v) for c in row.per_class.values() for v in c.values()}
            if row.next:
                gap = row.next.gap
                wanted.add(f"{_signed(gap.low)} to {_signed(gap.high)}")
                wanted.add(_signed(gap.difference))
    wanted |= {f"{size:,}" for _, _, size in SKILLS.values()}
    assert len(wanted) > 300
    for number in wanted:
        assert number in html
        assert number in markdown


def test_the_calibration_error_stands_before_and_after_vals_temperature() -> None:
    cells = [
        cell("coop", seed=seed, correct="1" * 90 + "0" * 10, ece={"all": {"before": b, "after": a}})
        for seed, b, a in ((1, 0.12, 0.02), (2, 0.16, 0.03))
    ]
    cells.append(cell("lora", seed=1, correct="1" * 80 + "0" * 20))  # of an older arena
    for text in both(cells):
        assert "ECE → calibrated" in text
        assert text.count("14.0 → 2.5") == 1
    halves = {"base": {"before": 0.2, "after": 0.1}, "new": {"before": 0.3, "after": 0.4}}
    for text in both([cell("coop", correct={"base": "10", "new": "11"}, ece=halves)]):
        assert "20.0 → 10.0" in text
    for text in both([cell("lora")]):
        assert "→" not in text


def test_one_shot_is_one() -> None:
    html, _ = render(arena([cell(a, seed=1, correct="10", shots=1) for a in ("coop", "lora")]))
    assert "accuracy, 1 shot<" in html.lower()


def test_base_alone_is_marked(pages: tuple[str, str]) -> None:
    assert "linear_probe ranked by base" in words(pages[0])
    assert r"| linear\_probe (ranked by base) |" in pages[1]


def test_published_numbers_stand_apart_with_their_source(pages: tuple[str, str]) -> None:
    html, markdown = words(pages[0]), pages[1]
    value = "base 93.7, new 95.3, harmonic mean 94.5"
    assert f"{value} ViT-B/16; PromptKD images/exp_results.png" in html
    assert f"{value} (ViT-B/16; PromptKD images/exp" in markdown
    assert pages[0].count('data-label="published"') == len(SKILLS)  # one table has such a column
    for text in (html, markdown):
        assert "sun397, base to new classes, 16 shots" in text  # published, not run here
    without = render({**large(), "literature": []})[0]
    tables = re.compile(r"<svg .*?</svg>", re.S)
    assert tables.findall(without) == tables.findall(pages[0])  # they enter no chart


def test_budget_and_backbone_are_named(pages: tuple[str, str]) -> None:
    for text in (words(pages[0]), pages[1]):
        for word in ("trials", "tiny/clip", "f1ngerprint", "r1"):
            assert word in text


def test_every_table_of_the_markdown_has_straight_rows(pages: tuple[str, str]) -> None:
    for block in re.findall(r"(?:^\|.*\n)+", pages[1], re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1
        assert len(block.splitlines()) > 2


# -- the charts -------------------------------------------------------------------------------


def test_charts_are_there_and_their_colours_are_the_pages(pages: tuple[str, str]) -> None:
    html = pages[0]
    charts = re.findall(r'<svg [^>]*aria-label="([^"]*)"', html)
    ranked = [c for c in charts if c.startswith("average ranks")]
    assert [c.rpartition(", ")[2] for c in ranked] == ["all classes", "base to new classes"]
    assert sum(" by seconds a run" in c for c in charts) == 3  # one a protocol
    assert sum(" by trainable parameters" in c for c in charts) == 3
    assert sum(" by data set" in c for c in charts) == 4  # two of them for the two shots of `all`
    bodies = "".join(re.findall(r"<svg .*?</svg>", html, re.S))
    assert not re.search(r"#[0-9a-fA-F]{6}\b", bodies)
    assert set(re.findall(r"var\(--([\w-]+)\)", bodies)) <= set(re.findall(r"--([\w-]+):", html))
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_diagram_names_every_adapter_and_the_difference(pages: tuple[str, str]) -> None:
    (first, *_) = re.findall(r'<svg [^>]*aria-label="average ranks.*?</svg>', pages[0], re.S)
    for name in SKILLS:
        assert f">{name}</text>" in first
    assert ">critical difference 4.03</text>" in first


def test_many_adapters_and_long_names_can_be_drawn() -> None:
    names = [f"adapter_with_a_very_long_name_{i:02}" for i in range(20)]
    cells = [
        cell(name, dataset, correct=answers(0.2 + 0.03 * i, 200, 1), seconds=10.0**i)
        for dataset in "vwxyz"
        for i, name in enumerate(names)
    ]
    html, _ = render(arena(cells))
    (diagram,) = re.findall(r'<svg [^>]*aria-label="average ranks.*?</svg>', html, re.S)
    shown = re.findall(r">(adapter_…_name_\d\d)</text>", diagram)
    assert len(set(shown)) == 20
    (headline,) = re.findall(r"<h1>(.*)</h1>", html)
    assert headline.count("adapter_") == 4  # the best and three of those that are as good
    assert re.search(r"name_\d\d and \d+ others\.$", headline)


def test_costs_that_are_all_zero_or_unknown_are_no_obstacle() -> None:
    for seconds in (0.0, None):
        cells = [cell(name, seconds=seconds, trainable_parameters=0) for name in ("a", "b")]
        html, _ = render(arena(cells))
        assert ("by seconds a run" in html) == (seconds is not None)


# -- what must not get through ----------------------------------------------------------------


def test_the_page_needs_no_network_and_no_script(pages: tuple[str, str]) -> None:
    assert "default-src 'none'" in pages[0]
    assert not re.search(r"https?:|@import|<script|<link|<iframe", pages[0])
    for target in re.findall(r"""(?:src|href)=["']?([^"'\s>]+)""", pages[0]):
        assert target.startswith("#")


def test_names_are_text() -> None:
    evil = "<script>alert(1)</script>"
    each = cell("coop", evil, correct="10", per_class={"all": {evil: 0.5}})
    for text in render(arena([each], backbone={"name": evil})):
        assert "<script" not in text
    html, _ = render(arena([each]))
    assert html.count("&lt;script&gt;") >= 2


def test_equal_arenas_give_equal_bytes(pages: tuple[str, str]) -> None:
    assert render(large()) == pages
