"""The real server: Ray Serve on a port, asked by a browser, by many clients at once and by slow
ones; swapped, killed, and started again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import cliptune
from tests import ROOT
from tests.browser import CHROMIUM, Page, browser
from tests.pipelines.serve.conftest import PHOTOS, name_of
from tests.tiny import caption, picture

AT_ONCE = 200
SLOW = 1_000


@contextmanager
def server(home: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    words = ["--run", "runs", "--images", "photos", "--index", "index", "--port", str(port)]
    with (
        (home / "errors.txt").open("w") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "pipelines.serve", *words],
            cwd=home,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as program,
    ):
        try:
            assert program.stdout is not None
            line = ""
            while not line.startswith("serving at"):
                line = program.stdout.readline()
                assert line, (home / "errors.txt").read_text()[-2000:]
            yield program
        finally:
            if program.poll() is None:
                program.terminate()
            program.wait(60)


def asked(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    """A request by a client that knows nothing of us: bytes as they are, else JSON."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {} if isinstance(body, bytes) else {"content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.slow
def test_a_browser_many_clients_and_a_kill(own: Path) -> None:
    """One start of the server for all that it must bear; it takes as long as all the rest."""
    port, query = free_port(), {"adapter": "projection", "text": caption(1), "top": 5}
    (own / "runs/lora").rename(own / "later")
    with server(own, port) as program:
        first = asked(port, "/v1/search", query)
        assert first[0] == 200
        if CHROMIUM:
            with browser() as page:
                in_the_browser(page, port, own)
        many_at_once(port)
        slow_clients(port, query)
        swapped(port, own)
        program.send_signal(signal.SIGKILL)
        program.wait(60)
    kept = times(own / "index")
    assert kept
    with server(own, port) as program:
        assert asked(port, "/v1/search", query) == first
        program.send_signal(signal.SIGINT)
        assert program.wait(60) == 0
    assert "(raylet)" not in (own / "errors.txt").read_text()
    assert times(own / "index") == kept
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def times(folder: Path) -> dict[Path, int]:
    """When each file of the index was written last."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {path: path.stat().st_mtime_ns for path in files}


def in_the_browser(page: Page, port: int, own: Path) -> None:
    """Type, see results, swap the adapter, see the order change; without a mouse."""
    page.go(f"http://127.0.0.1:{port}/")
    page.wait("document.activeElement.id === 'words' && first.options.length > 2")
    page.type(caption(1))
    page.press("Enter")
    orders = {}
    for name in ("projection", "zero_shot"):
        page.js(f"first.value = '{name}'; first.dispatchEvent(new Event('change'))")
        page.wait(f"document.querySelector('h2')?.textContent === '{name}'")
        orders[name] = shown(page)
        ask = {"adapter": name, "text": caption(1), "top": 24}
        found = asked(port, "/v1/search", ask)[1]
        assert orders[name] == [match["name"] for match in found["matches"]]
    assert orders["projection"] != orders["zero_shot"]
    page.wait("[...document.images].filter((one) => one.naturalWidth > 1).length === 12")
    page.js("second.value = 'projection'; second.dispatchEvent(new Event('change'))")
    page.wait("document.querySelectorAll('section').length === 2")
    assert shown(page) == orders["zero_shot"] + orders["projection"]
    page.press("ArrowDown")
    page.press("ArrowRight")
    assert page.js("document.activeElement.title") == orders["zero_shot"][1]
    page.press("s")
    page.wait("document.querySelector('h2').textContent === 'projection'")
    assert shown(page) == orders["projection"] + orders["zero_shot"]
    page.js("document.querySelector('.grid button').focus()")
    page.press("Enter")
    page.wait("large.open && large.textContent.includes('year')")
    page.press("m")
    page.wait(f"!large.open && said.textContent.includes('{orders['projection'][0]}')")
    assert len(shown(page)) == 2 * (PHOTOS - 1)
    page.js("filters.querySelector('[data-field=town]').value = 'Rome'")
    page.js("filters.dispatchEvent(new Event('change'))")
    page.wait("document.querySelectorAll('.grid li').length <= 12")
    bad = own / "bad.jpg"
    bad.write_bytes(b"no image")
    page.upload("#upload", bad)
    page.wait("said.className === 'bad' && said.textContent.includes('cannot be taken')")
    good = own / "good.jpg"
    good.write_bytes(picture(4))
    page.upload("#upload", good)
    page.wait("said.textContent.includes('good.jpg')")
    assert shown(page)[0] == name_of(4)
    refused = [text for text in page.errors if "415" not in text]  # the bad upload
    assert refused == []


def shown(page: Page) -> list[str]:
    return page.js("[...document.querySelectorAll('.grid button')].map((one) => one.title)")


def many_at_once(port: int) -> None:
    """None is lost, and each gets its own answer."""
    paths = [f"/v1/search/image?adapter={name}&top=1" for name in ("zero_shot", "projection")]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = [pool.submit(asked, port, paths[n % 2], picture(n % PHOTOS)) for n in range(AT_ONCE)]
        answers = [one.result() for one in sent]
    for n, (status, found) in enumerate(answers):
        assert (status, found["adapter"]) == (200, ("zero_shot", "projection")[n % 2])
        assert [match["name"] for match in found["matches"]] == [name_of(n % PHOTOS)]


def slow_clients(port: int, query: dict[str, Any]) -> None:
    """A thousand that never send their bodies' end do not keep the others from being served."""
    head = b"POST /v1/search/image HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\nx"
    with ExitStack() as open_ones:
        for _ in range(SLOW):
            one = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), 30))
            one.sendall(head)
        time.sleep(1)
        for _ in range(5):
            assert asked(port, "/v1/search", query)[0] == 200


def swapped(port: int, own: Path) -> None:
    """A run that came, and one that was trained on, are there without a restart; one that cannot be
    read changes nothing."""
    assert asked(port, "/v1/embed/text", {"adapter": "lora", "texts": ["a"]})[0] == 404
    before = asked(port, "/v1/embed/text", {"adapter": "soft", "texts": ["a"]})
    (own / "later").rename(own / "runs/lora")
    shutil.rmtree(own / "runs/soft")
    cliptune.train(
        json.loads((own / "runs/lora/run.json").read_text())["features"],
        own / "runs/soft",
        adapter="soft_prompt",
        set={"epochs": 2, "optim.lr": 0.3, "precision": "fp32"},
    )
    status, about = asked(port, "/v1/adapters/reload", b"")
    assert status == 200
    assert "lora" in [one["name"] for one in about["adapters"]]
    assert asked(port, "/v1/embed/text", {"adapter": "lora", "texts": ["a"]})[0] == 200
    after = asked(port, "/v1/embed/text", {"adapter": "soft", "texts": ["a"]})
    assert (before[0], after[0]) == (200, 200)
    assert before != after
    kept = (own / "runs/few/run.json").read_bytes()
    (own / "runs/few/run.json").write_text("{")
    status, said = asked(port, "/v1/adapters/reload", b"")
    assert (status, said["error"][:19]) == (409, "nothing has changed")
    assert asked(port, "/v1/embed/text", {"adapter": "soft", "texts": ["a"]}) == after
    (own / "runs/few/run.json").write_bytes(kept)
