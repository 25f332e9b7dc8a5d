"""Headless Chromium, driven through its DevTools protocol: what a user sees and types.

Flows in: a page's address. Flows out: values of its scripts, keys pressed in it, pictures of it.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", "--window-size=1200,900"),
)
KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "ArrowDown": ("", 40), "ArrowRight": ("", 39)}


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)
        self.errors: list[str] = []  # what the page's console complained of
        for domain in ("Page", "Runtime", "DOM", "Log"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **params: Any) -> Any:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv(timeout=30))
            if message.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(message["params"]["exceptionDetails"]))
            elif message.get("method") == "Log.entryAdded":
                entry = message["params"]["entry"]
                self.errors += [entry["text"]] if entry["level"] == "error" else []
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]

    def go(self, url: str) -> None:
        self.do("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        found = self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> Any:
        """The expression's value, once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            assert time.monotonic() < end, f"{expression} never was; {self.errors}"
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        self.do("Input.insertText", text=text)

    def press(self, key: str) -> None:
        text, code = KEYS.get(key, (key, ord(key[0])))
        about = {"key": key, "windowsVirtualKeyCode": code} | ({"text": text} if text else {})
        self.do("Input.dispatchKeyEvent", type="keyDown", **about)
        self.do("Input.dispatchKeyEvent", type="keyUp", **about)

    def upload(self, selector: str, path: Path) -> None:
        root = self.do("DOM.getDocument")["root"]["nodeId"]
        node = self.do("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.do("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def shot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.do("Page.captureScreenshot")["data"]))


@contextmanager
def browser() -> Iterator[Page]:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        program = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = _port(Path(folder) / "DevToolsActivePort", program)
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = json.load(answer)
            url = next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")
            with connect(url, max_size=None, proxy=None) as socket:
                yield Page(socket)
        finally:
            program.kill()
            program.wait()


def _port(path: Path, program: subprocess.Popen[bytes]) -> int:
    end = time.monotonic() + 60
    while not path.is_file() or not path.read_text().count("\n"):
        assert program.poll() is None
        assert time.monotonic() < end, "Chromium did not start"
        time.sleep(0.05)
    return int(path.read_text().split()[0])
