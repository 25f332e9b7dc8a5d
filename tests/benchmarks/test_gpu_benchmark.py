"""The card's benchmark, tiny and on a CPU: parts run to their end, and none stops another."""

from __future__ import annotations

import json
import os
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks.captions import CAPTIONS, captions
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import sheet, speed
from benchmarks.gpu.__main__ import PARTS, Args, Part
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sheet import Line, read, render, section, write
from benchmarks.models import SHAPES

CPU = Scale(torch.device("cpu"))
MACHINE = {"card": "A card", "seconds": 7}
# What a stand-in for a part does, in a process of its own.
KINDS = {
    "good": "    yield Line('a number', 2.0, 'x', least=1)",
    "bad": "    yield Line('a number', 2.0, 'x', most=1)",
    "raises": "    yield Line('before', 1.0)\n    raise ValueError('no kernel\\n  for this')",
    "needs": "    import no_such_module\n    yield Line('a number', 2.0)",
    "hangs": "    yield Line('before', 1.0)\n    import time\n    time.sleep(600)",
    "dies": "    yield Line('before', 1.0)\n    import os\n    os._exit(9)",
}


@pytest.fixture
def kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that end in all the ways there are."""
    for name, body in KINDS.items():
        text = f"from benchmarks.gpu.sheet import Line\ndef measure(scale):\n{body}\n"
        (tmp_path / f"part_{name}.py").write_text(text)
    parts = {name: Part(f"part_{name}", 1.0) for name in KINDS}
    parts["lacks"] = Part("part_good", 1.0, ("json", "no_such_module"))
    monkeypatch.setattr(command, "PARTS", parts)
    paths = (str(tmp_path), str(Path(command.__file__).parents[2]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def test_a_line_says_whether_it_is_within_its_bounds() -> None:
    assert Line("w", 1.0).verdict == "measured"
    assert Line("w", 1.0, least=1, most=1).verdict == "pass"
    assert Line("w", 0.9, least=1).verdict == "fail"
    assert Line("w", 1.1, most=1).verdict == "fail"
    assert Line("w", float("nan"), most=1).verdict == "fail"
    assert Line("w", why="no card").verdict == "not run"
    assert Line("w", why="it broke", broken=True).verdict == "fail"


def test_the_table_and_the_file_hold_all_lines(tmp_path: Path) -> None:
    lines = [
        Line("speed", 12345.6, "images/s", part="a"),
        Line("ratio", 0.5, "x", least=1, part="a"),
        Line("equal", float("inf"), most=1e-3, part="b"),
        Line("all of it", why="`ray` missing", part="c"),
    ]
    write(tmp_path / "gpu.json", MACHINE, lines)
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert stored.keys() == {"format", "machine", "rows"}
    assert stored["format"] == sheet.FORMAT
    assert [row["verdict"] for row in stored["rows"]] == ["measured", "fail", "fail", "not run"]
    assert stored["rows"][1] == {
        **{"part": "a", "what": "ratio", "value": 0.5, "unit": "x", "least": 1, "most": None},
        **{"why": "", "broken": False, "verdict": "fail"},
    }
    machine, found = read(tmp_path / "gpu.json")
    assert machine == MACHINE
    assert [line.verdict for line in found] == [line.verdict for line in lines]
    assert render(MACHINE, lines) == [
        "- card: A card",
        "- seconds: 7",
        "",
        "| part | what | measured | bound | verdict |",
        "| --- | --- | --- | --- | --- |",
        "| a | speed | 1.235e+04 images/s |  | measured |",
        "| a | ratio | 0.5 x | at least 1 | fail |",
        "| b | equal | inf | at most 0.001 | fail |",
        "| c | all of it |  |  | not run: `ray` missing |",
    ]


def test_the_page_says_that_no_card_was_at_hand_until_one_was(tmp_path: Path) -> None:
    assert "NOT run" in " ".join(section(tmp_path))
    write(tmp_path / "gpu.json", MACHINE, [Line("ratio", 2.0, "x", least=1, part="a")])
    page = section(tmp_path)
    assert "- card: A card" in page
    assert page[-1] == "| a | ratio | 2 x | at least 1 | pass |"
    assert "NOT run" not in " ".join(page)


def test_a_part_ends_alone_however_it_ends(
    tmp_path: Path, kinds: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert command.main(Args(10.0, ("raises", "dies", "lacks", "needs", "bad", "good"), out)) == 1
    said = capsys.readouterr().out
    rows = [
        "| raises | before | 1 |  | measured |",
        "| raises | the rest |  |  | fail: ValueError: no kernel for this |",
        "| dies | before | 1 |  | measured |",
        "| dies | the rest |  |  | fail: ended with 9 |",
        "| lacks | all of it |  |  | not run: `no_such_module` missing |",
        "| needs | the rest |  |  | not run: `no_such_module` missing |",
        "| bad | a number | 2 x | at most 1 | fail |",
        "| good | a number | 2 x | at least 1 | pass |",
    ]
    assert said.splitlines()[-len(rows) - 1 : -1] == rows
    machine, lines = read(out)
    assert machine["card"] == ("none" if not torch.cuda.is_available() else machine["card"])
    assert len(lines) == len(rows)
    assert command.main(Args(10.0, ("good",), out)) == 0


def test_a_part_that_hangs_is_cut_and_keeps_what_it_measured(
    kinds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(subprocess.Popen[bytes]):
        """Time is up once the part has measured something."""

        def wait(self, timeout: float | None = None) -> int:
            found = Path(self.args[-1])  # type: ignore[index]
            while timeout == 50.0 and not (found.is_file() and found.read_text()):
                pass
            return super().wait(0.01 if timeout == 50.0 else timeout)

    monkeypatch.setattr(command.subprocess, "Popen", Clock)
    assert [line.cells() for line in command.run("hangs", "cpu", 50.0)] == [
        ["hangs", "before", "1", "", "measured"],
        ["hangs", "the rest", "", "", "not run: out of time after 50 s"],
    ]
    assert command.run("good", "cpu", 0.5)[0].why == "out of time"


def test_all_parts_are_asked_for_unless_some_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.parse([]) == Args(8.0, tuple(PARTS), None)
    some = command.parse(["--parts", "speed", "waits", "--minutes", "2", "--out", "a.json"])
    assert some == Args(2.0, ("speed", "waits"), Path("a.json"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    out = command.parse([]).out
    assert out is not None
    assert out.parts[-2:] == ("benchmarks", "gpu.json")


@pytest.mark.parametrize("name", [name for name in PARTS if name not in ("search", "together")])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_part_runs_to_its_end(name: str) -> None:
    lines = list(import_module(PARTS[name].module).measure(CPU))
    assert lines
    assert not [line for line in lines if line.verdict == "fail"]
    for line in lines:
        assert (line.value is None) == (line.verdict == "not run") == bool(line.why), line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["search", "together"])
def test_a_part_that_starts_processes_runs_to_its_end(name: str) -> None:
    lines = list(import_module(PARTS[name].module).measure(CPU))
    assert len(lines) >= 5
    assert not [line for line in lines if line.verdict == "fail"]


def test_more_captions_than_the_file_has_begin_as_it_does() -> None:
    some, more = captions(CAPTIONS), captions(CAPTIONS + 40)
    assert len(more) == CAPTIONS + 40
    assert torch.equal(more.ids[: len(some.ids)], some.ids)
    assert len(more.unique()[0]) == len(more)


def test_operations_are_those_of_the_papers() -> None:
    """Two for each multiply-add that ViT's tables count: 17.6 G for B/16, 81 G for L/14."""
    assert speed.operations("B/16") / 2e9 == pytest.approx(17.0, rel=0.05)
    assert speed.operations("L/14") / 2e9 == pytest.approx(79, rel=0.05)
    assert SHAPES["L/14"]["vision"] == (1024, 24, 16)
