"""The page in Chromium, over the interface in this process: its door, and how it fits a phone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import pytest
import uvicorn

from pipelines.serve.engine import Engine
from tests.browser import CHROMIUM, browser
from tests.pipelines.serve.test_app import TOKEN, served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@contextmanager
def listening(engine: Engine, token: str) -> Iterator[str]:
    """The page's address."""
    config = uvicorn.Config(
        served(engine, token),  # type: ignore[arg-type]
        ws="none",
        lifespan="off",
        log_level="error",
    )
    server = uvicorn.Server(config)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        thread = Thread(target=server.run, args=([one],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{one.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def test_the_door_and_a_narrow_screen(engine: Engine) -> None:
    with listening(engine, TOKEN) as url, browser() as page:
        page.do(
            "Emulation.setDeviceMetricsOverride",
            width=400,
            height=800,
            deviceScaleFactor=1,
            mobile=True,
        )
        page.go(url)
        page.wait("document.querySelector('#door')?.open")
        page.type("not the token")
        page.press("Enter")
        page.wait("door.open && document.querySelector('#door .bad').textContent")
        page.js("token.select()")
        page.type(TOKEN)
        page.press("Enter")
        page.wait("!door.open && second.options.length > 2")
        assert page.js("document.documentElement.scrollWidth") == 400
        page.js("second.value = 'projection'; words.focus()")
        page.do("Network.clearBrowserCookies")
        page.type("a dog")
        page.press("Enter")
        page.wait("door.open")  # for both adapters at once
        page.type(TOKEN)
        page.press("Enter")
        page.wait("document.querySelectorAll('section').length === 2")
        refused = [text for text in page.errors if "401" not in text]
        assert refused == []
