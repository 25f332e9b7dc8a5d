"""What a command says when something goes wrong that nobody put into words."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines import cli
from pipelines.console import safe
from pipelines.door import MACHINE, expected, sentence
from tests import ROOT
from trainables.errors import DataError


class Wrapped(Exception):
    """As Ray wraps what a worker raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("a worker died")
        self.cause = cause


@pytest.mark.parametrize("number", sorted(MACHINE))
def test_what_the_machine_says_names_the_file(number: int) -> None:
    said = sentence(OSError(number, os.strerror(number), "/data/x.jpg"))
    assert said == f"`/data/x.jpg` {MACHINE[number]}."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "`a` and `b`: Invalid"),
        (OSError("odd"), "a file: odd."),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
            "Save the file as UTF-8.",
        ),
        (MemoryError(), "not enough memory: MemoryError."),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "not enough memory: RuntimeError"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "not enough memory: Runtime"),
        (Wrapped(DataError("`x.json` is torn.")), "`x.json` is torn."),
        (
            Wrapped(OSError(errno.ENOSPC, "", "/runs/a")),
            "`/runs/a` does not fit: the disk is full.",
        ),
        (
            KeyError("metric"),
            "cliptune did not expect this: KeyError: 'metric', at an unknown place",
        ),
    ],
)
def test_a_sentence_says_what_it_means(error: Exception, words: str) -> None:
    assert words in sentence(error)
    assert expected(error) == ("did not expect" not in words)


def stage(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(_: object) -> None:
        raise error

    fake = SimpleNamespace(
        Args=pytest.importorskip("pipelines.space.__main__").Args, run=run, __doc__="x"
    )
    monkeypatch.setattr(cli.importlib, "import_module", lambda _: fake)


def test_what_ray_lost_is_nobodys_fault_and_goes_on() -> None:
    from ray.exceptions import ActorDiedError, NodeDiedError, RayActorError

    for error in (ActorDiedError(), NodeDiedError("node 7 is gone.")):
        assert expected(error)
        assert sentence(error).startswith(
            f"Ray lost a process or a machine: {type(error).__name__}"
        )
        assert sentence(error).endswith("the same command goes on from there.")
    assert not expected(RayActorError(actor_init_failed=True))  # its own code raised


LEFT = """
import atexit, os
from types import SimpleNamespace

from ray.exceptions import ActorDiedError

from pipelines import cli
from pipelines.space.__main__ import Args

def lost(_):
    raise ActorDiedError()

atexit.register(lambda: os._exit(1))  # as Ray's C++ may, in its goodbye to what is gone
cli.importlib.import_module = lambda _: SimpleNamespace(Args=Args, run=lost, __doc__="x")
cli.stage_main("space", ["--adapter", "coop"])
"""


def test_a_lost_ray_has_no_last_word() -> None:
    done = subprocess.run([sys.executable, "-c", LEFT], text=True, capture_output=True, check=False)
    assert done.stderr.startswith("error: Ray lost a process or a machine: ActorDiedError")
    assert done.returncode == 2


def test_a_users_mistake_ends_with_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage(monkeypatch, IsADirectoryError(errno.EISDIR, "Is a directory", "/data"))
    with pytest.raises(SystemExit) as ended:
        cli.stage_main("space", ["--adapter", "lora"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: `/data` is a folder, where a file is needed.\n"


def test_a_fault_of_ours_ends_with_1_and_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stage(monkeypatch, KeyError("metric"))
    with pytest.raises(SystemExit) as ended:
        cli.stage_main("space", ["--adapter", "lora"])
    assert ended.value.code == 1
    first, second = capsys.readouterr().err.splitlines()
    (log,) = tmp_path.glob("cliptune-*.log")
    assert first == (
        "error: cliptune did not expect this: KeyError: 'metric', at " + first.rpartition("at ")[2]
    )
    assert "tests/pipelines/test_door.py:" in first
    assert second == f"The traceback is in {log}; `--debug` shows it."
    assert "Traceback (most recent call last)" in log.read_text()
    with pytest.raises(KeyError):
        cli.stage_main("space", ["--debug", "--adapter", "lora"])


def piped(work: str, line: str) -> subprocess.CompletedProcess[str]:
    """What a line of the shell gave, in which `$WORK` is `work`."""
    return subprocess.run(
        line,
        shell=True,
        env={**os.environ, "WORK": work, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_reader_that_leaves_ends_what_is_said_and_not_the_work(tmp_path: Path) -> None:
    """As `| head -1` does."""
    work = (
        "from pathlib import Path\n"
        "from pipelines.console import say\n"
        "for n in range(20000):\n    say(f'line {n}')\n"
        f"Path({str(tmp_path / 'done')!r}).touch()\n"
    )
    found = piped(work, f'{sys.executable} -c "$WORK" | head -1')
    assert (found.stdout, found.stderr) == ("line 0\n", "")
    assert (tmp_path / "done").exists()


def test_a_reader_of_all_that_leaves_does_not_end_the_work_either(tmp_path: Path) -> None:
    """As `2>&1 | head -1` does, beside a progress bar."""
    work = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tqdm import tqdm\n"
        "from pipelines import cli\n"
        "def run(stage, words):\n"
        "    for _ in tqdm(range(20000), mininterval=0, miniters=1): pass\n"
        f"    Path({str(tmp_path / 'done')!r}).touch()\n"
        "    raise OSError(28, 'full', 'x')\n"
        "cli._run = run\n"
        "cli.stage_main('space')\n"
    )
    found = piped(
        work, f'({sys.executable} -c "$WORK"; echo $? > {tmp_path}/code) 2>&1 | head -c 1'
    )
    assert found.stderr == ""
    assert (tmp_path / "done").exists()
    assert (tmp_path / "code").read_text() == "2\n"


def test_who_is_interrupted_twice_leaves_at_once(tmp_path: Path) -> None:
    """A second Ctrl-C while Ray ends."""
    (tmp_path / "ray.py").write_text(
        "import signal\n"
        "def is_initialized(): return True\n"
        "def shutdown(): signal.raise_signal(signal.SIGINT)\n"
    )
    work = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import ray\n"
        "from pipelines import cli\n"
        "def run(stage, words): raise KeyboardInterrupt('all is saved.')\n"
        "cli._run = run\n"
        "cli.stage_main('space')\n"
    )
    found = piped(work, f'{sys.executable} -c "$WORK"')
    assert (found.returncode, found.stderr) == (130, "interrupted: all is saved.\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("left\u202eright", r"left\u202eright"),
        ("\x9b2J", r"\x9b2J"),
        ("\udcff.jpg", r"\udcff.jpg"),
        ("caf\u00e9 \u4f60 \u0928\u0940", "caf\u00e9 \u4f60 \u0928\u0940"),
        ("a\u200cb", "a\u200cb"),
    ],
)
def test_no_name_moves_the_terminals_cursor(text: str, shown: str) -> None:
    assert safe(text) == shown
