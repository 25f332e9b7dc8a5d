"""The interface in this process, without Ray: what passes the guard, and how things are said."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx2
import pytest
from PIL import Image

from pipelines.serve import fields
from pipelines.serve.app import Routes, app_of
from pipelines.serve.asks import FAULT, Answer, Ask, Refused
from pipelines.serve.engine import Engine
from pipelines.serve.guard import COOKIE, Guard, Limits
from tests.pipelines.serve.conftest import PHOTOS, name_of
from tests.pipelines.serve.test_serve import free_port
from tests.tiny import caption, picture

JSON = {"content-type": "application/json"}
TOKEN = "a-token-of-the-tests"
DEEP = '{"a":' * 3_000 + "1" + "}" * 3_000
LISTS = '{"text": "a", "where": {"year": ' + "[" * 900 + "]" * 900 + "}}"
HALF = {  # of a character, which no UTF-8 has
    "where": r'{"text": "a", "where": {"town": "\ud800", "\ud800": 1}}',
    "adapter": r'{"text": "a", "adapter": "\ud800"}',
    "image": r'{"image": "\ud800"}',
    "token": r'{"token": "\ud800"}',
}


def served(engine: Engine, token: str = "", limits: Limits | None = None) -> Guard:
    async def answer(ask: Ask) -> Answer | Refused:
        return engine.answer([ask])[0]

    async def about() -> Answer:
        found = [one.about() for one in engine.shelf.adapters.values()]
        table = engine.gallery.fields
        return {"adapters": found, "images": PHOTOS, "fields": fields.about(table)}

    async def reload() -> Refused:
        return Refused("nothing has changed: no run is there.", 409)

    return Guard(app_of(Routes(answer, about, reload, engine.gallery, token)), token, limits)


def ask(app: Guard, method: str, path: str, host: str = "localhost:8000", **how: Any) -> Any:
    """One request: an httpx response."""

    async def go() -> Any:
        transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, path, **how)

    return asyncio.run(go())


def error(answer: Any, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


@pytest.mark.parametrize(
    ("path", "ask_of"),
    [
        ("/v1/search/image?adapter=soft&top=3", Ask("search", "soft", image=picture(2), top=3)),
        (
            '/v1/search/image?adapter=soft&where={"town":"Rome"}',
            Ask("search", "soft", image=picture(2), where={"town": "Rome"}),
        ),
        ("/v1/embed/image?adapter=lora", Ask("embed", "lora", image=picture(2))),
        (
            "/v1/classify?adapter=few&top=2&confidence=0.6&sets=adaptive",
            Ask("classify", "few", image=picture(2), top=2, confidence=0.6, sets="adaptive"),
        ),
        (
            "/v1/classify?adapter=soft&classes=dog&classes=cat&template=a {}.",
            Ask(
                *("classify", "soft"),
                **{"image": picture(2), "top": 3, "classes": ("dog", "cat"), "template": "a {}."},  # type: ignore[arg-type]
            ),
        ),
        ("/v1/caption?adapter=words", Ask("caption", "words", image=picture(2))),
    ],
)
@pytest.mark.parametrize("kind", ["image/jpeg", "application/json", None])
def test_an_image_is_the_whole_body(
    path: str, ask_of: Ask, kind: str | None, engine: Engine
) -> None:
    headers = {"content-type": kind} if kind else {}
    answer = ask(served(engine), "POST", path, content=picture(2), headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.json() == json.loads(json.dumps(engine.answer([ask_of])[0]))


def test_words_and_what_is_served(engine: Engine) -> None:
    app = served(engine)
    body = {"adapter": "projection", "text": caption(2), "top": 2, "where": {"folder": "a"}}
    found = ask(app, "POST", "/v1/search", json=body).json()
    expected = Ask("search", "projection", (caption(2),), top=2, where={"folder": "a"})
    assert found == engine.answer([expected])[0]
    like = ask(app, "POST", "/v1/search", json={"image": name_of(3)}).json()
    assert like == engine.answer([Ask("search", "zero_shot", like=name_of(3))])[0]
    texts = ask(app, "POST", "/v1/embed/text", json={"adapter": "soft", "texts": ["a", "b"]})
    assert texts.json() == engine.answer([Ask("embed", "soft", ("a", "b"))])[0]
    about = ask(app, "GET", "/v1/adapters").json()
    assert [one["name"] for one in about["adapters"]] == list(engine.shelf.adapters)
    assert about["fields"][2] == {"name": "town", "type": "string", "values": ["Oslo", "Rome"]}


def test_pictures_are_small_and_without_what_the_original_knows(engine: Engine) -> None:
    answer = ask(served(engine), "GET", f"/v1/images/{name_of(1)}")
    with Image.open(io.BytesIO(answer.content)) as image:
        assert (image.format, max(image.size) <= 256) == ("JPEG", True)
        assert not image.getexif()
    assert answer.headers["cache-control"] == "private"


def test_only_small_pictures_are_kept(engine: Engine) -> None:
    async def none(*_: object) -> Any:
        raise AssertionError

    routes = Routes(none, none, none, engine.gallery)
    for side in (256, 256, 1024):
        assert ask(Guard(app_of(routes)), "GET", f"/v1/images/{name_of(1)}?side={side}").content
    kept = routes.small.cache_info()
    assert (kept.hits, kept.currsize) == (1, 1)


def test_a_fault_of_ours_is_a_sentence_too(engine: Engine) -> None:
    async def broken(*_: object) -> Any:
        raise RuntimeError("gone")

    async def go() -> Any:
        app = Guard(app_of(Routes(broken, broken, broken, engine.gallery)))
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/v1/adapters")

    answer = asyncio.run(go())
    assert error(answer, 500) == FAULT
    assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize(
    ("method", "path", "how", "status", "sentence"),
    [
        ("GET", "/v1/nothing", {}, 404, "Not Found"),
        ("GET", "/v1/search", {}, 405, "Method Not Allowed"),
        ("GET", "/docs", {}, 404, "Not Found"),
        ("GET", "/v1/images/..%2f..%2fmetadata.csv", {}, 404, "no image is called"),
        ("GET", f"/v1/images/{name_of(1)}?side=9999", {}, 400, "`side` must be one of"),
        ("POST", "/v1/search", {"content": b"{", "headers": JSON}, 400, "JSON decode error"),
        ("POST", "/v1/search", {"json": {}}, 400, "`text` or `image` must be given"),
        ("POST", "/v1/search", {"json": {"txt": "a"}}, 400, "`txt`: Extra inputs"),
        ("POST", "/v1/search", {"json": {"text": "a", "top": 0}}, 400, "`top`: Input should be"),
        ("POST", "/v1/search", {"json": {"text": "a", "top": 10**9}}, 400, "got 1000000000"),
        ("POST", "/v1/search", {"json": {"text": "a", "adapter": "x"}}, 404, "unknown adapter `x`"),
        ("POST", "/v1/embed/text", {"json": {"texts": []}}, 400, "`texts`: List should have"),
        ("POST", "/v1/embed/text", {"json": {"texts": ["x" * 10_001]}}, 400, "at most 10000"),
        ("POST", "/v1/search/image", {"content": b""}, 400, "must be the bytes of an image"),
        ("POST", "/v1/search/image", {"content": b"PK\3\4 a ZIP"}, 415, "not an image"),
        ("POST", "/v1/search/image?where=[]", {"content": b"x"}, 400, "`where`: Input should be"),
        ("POST", f"/v1/search/image?where={DEEP}", {"content": b"x"}, 400, "`where`: "),
        (
            "POST",
            "/v1/search",
            {"content": LISTS, "headers": JSON},
            400,
            "`where`: a field has a value",
        ),
        ("POST", "/v1/search", {"content": HALF["where"], "headers": JSON}, 400, r"\ud800"),
        ("POST", "/v1/search", {"content": HALF["adapter"], "headers": JSON}, 400, r"\ud800"),
        ("POST", "/v1/search", {"content": HALF["image"], "headers": JSON}, 400, r"\ud800"),
        ("POST", "/v1/session", {"content": HALF["token"], "headers": JSON}, 401, "not the token"),
        ("POST", "/v1/search", {"json": {"image": ""}}, 400, "`image`: String should have"),
        (
            "POST",
            "/v1/search",
            {"json": {"text": "a", "where": {"x": [1] * 1_001}}},
            400,
            "at most",
        ),
        ("POST", "/v1/search", {"json": {"text": "a", "adapter": "x" * 256}}, 400, "at most 255"),
        ("POST", "/v1/classify?adapter=few&sets=all", {"content": b"x"}, 400, "`sets`: Input"),
        ("POST", "/v1/classify?adapter=soft", {"content": picture(1)}, 400, "`classes` must name"),
        ("POST", "/v1/adapters/reload", {}, 409, "nothing has changed"),
        ("POST", "/v1/search", {"headers": {"origin": "http://evil.example"}}, 403, "origin"),
        ("GET", "/", {"host": "evil.example"}, 421, "the host `evil.example`"),
        ("GET", "/", {"headers": {"host": "[::1"}}, 400, "`Host` and `Origin` must be"),
        ("POST", "/v1/search", {"headers": {"origin": "http://["}}, 400, "must be addresses"),
        ("POST", "/v1/search", {"content": b"x" * 1_100_000}, 413, "at most 1 MiB"),
    ],
)
def test_mistakes_are_one_sentence(
    method: str, path: str, how: dict[str, Any], status: int, sentence: str, engine: Engine
) -> None:
    app = served(engine, limits=Limits(body=2**20))
    answer = ask(app, method, path, **how)
    assert sentence in error(answer, status)
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_image_of_many_pixels_is_refused_by_its_header(engine: Engine) -> None:
    """300 megapixels, in a file of a few hundred bytes that holds none of them."""
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (20_000).to_bytes(4, "big") + (15_000).to_bytes(4, "big")
    data[29:33] = crc32(data[12:29]).to_bytes(4, "big")
    answer = ask(served(engine), "POST", "/v1/search/image", content=bytes(data))
    assert "300.0 megapixels is above the limit of 64" in error(answer, 415)


def test_a_page_without_foreign_scripts(engine: Engine) -> None:
    app = served(engine)
    page = ask(app, "GET", "/")
    policy = page.headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "script-src 'self';" in policy
    assert "http" not in page.text.replace("http-equiv", "")
    for name in ("page.js", "page.css"):
        assert f'"/{name}"' in page.text
        part = ask(app, "GET", f"/{name}", headers={"range": "bytes=nothing"})
        assert part.status_code == 200
    assert ask(app, "DELETE", "/page.js").headers["allow"] == "GET"


def test_a_token_is_asked_for(engine: Engine) -> None:
    app = served(engine, TOKEN)
    far = {"host": "gpu-box:8000"}
    assert "a token is needed" in error(ask(app, "GET", "/v1/adapters", **far), 401)
    assert ask(app, "GET", "/", **far).status_code == 200
    for given in ("", "Bearer wrong", f"Basic {TOKEN}", "Bearer ünï".encode()):
        assert ask(app, "GET", "/v1/adapters", headers={"authorization": given}, **far).is_error
    bearer = {"authorization": f"Bearer {TOKEN}"}
    assert ask(app, "GET", "/v1/adapters", headers=bearer, **far).status_code == 200
    assert "not the token" in error(ask(app, "POST", "/v1/session", json={"token": "no"}), 401)
    entered = ask(app, "POST", "/v1/session", json={"token": TOKEN}, **far)
    cookie = entered.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}={TOKEN};")
    assert {"HttpOnly", "SameSite=strict"} <= {part.strip() for part in cookie.split(";")}
    shown = {"cookie": cookie.partition(";")[0]}
    assert ask(app, "GET", "/v1/adapters", headers=shown, **far).status_code == 200


def slow_body(parts: int, seconds: float) -> Callable[[], AsyncIterator[bytes]]:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(parts):
            yield b"x" * 1000
            await asyncio.sleep(seconds)

    return body


def test_bodies_that_come_too_slowly_or_too_many_at_once(engine: Engine) -> None:
    app = served(engine, limits=Limits(body=10_000, held=12_000, seconds=0.3))
    answer = ask(app, "POST", "/v1/search/image", content=slow_body(2, 9.0)())
    assert "must be here in 0.3 s" in error(answer, 408)
    assert app.held == 0

    async def many() -> list[Any]:
        transport = httpx2.ASGITransport(app=app)  # type: ignore[arg-type]
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            sends = [
                client.post("/v1/search/image", content=slow_body(6, 0.01)()) for _ in range(4)
            ]
            return await asyncio.gather(*sends)

    answers = asyncio.run(many())
    assert {answer.status_code for answer in answers} == {415, 503}  # no image; no room
    full = next(answer for answer in answers if answer.status_code == 503)
    assert "try again" in error(full, 503)
    assert full.headers["retry-after"] == "1"
    assert app.held == 0


def test_the_interface_is_described(engine: Engine) -> None:
    about = ask(served(engine), "GET", "/openapi.json").json()
    paths = about["paths"]
    assert set(paths) == {
        *("/v1/adapters", "/v1/adapters/reload", "/v1/embed/text", "/v1/embed/image"),
        *("/v1/search", "/v1/search/image", "/v1/classify", "/v1/caption"),
        *("/v1/images/{name}", "/v1/session"),
    }
    for path in ("/v1/classify", "/v1/caption", "/v1/search/image", "/v1/embed/image"):
        assert "image/*" in paths[path]["post"]["requestBody"]["content"]
    for ways in paths.values():
        for one in ways.values():
            assert one["description"]
            assert "Failure" in str(one["responses"]["4XX"])
            assert "422" not in one["responses"]


def test_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.cli import stage_main

    both = ["--images", str(tmp_path), "--store", str(tmp_path)]
    for words, sentence in (
        (["--run", "x"], "`--images` or `--store` must say what is searched, got neither"),
        (["--run", "x", *both], "got both"),
        (["--run", "x", *both[:2], "--host", "0.0.0.0"], "give a `--token`"),
        (["--run", "x", *both[:2], "--token", "short"], "must be 16 or more"),
        (["--run", "x", *both[:2], "--port", "0"], "`--port` must be"),
        (["--run", "x", *both[:2], "--host", "203.0.113.7", "--token", TOKEN], "must be free on"),
        (["--run", str(tmp_path), *both[:2], "--port", str(free_port())], "holds no image"),
    ):
        with pytest.raises(SystemExit) as stop:
            stage_main("serve", words)
        assert stop.value.code == 2
        assert sentence in capsys.readouterr().err
