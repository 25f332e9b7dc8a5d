"""What stands between the network and the server: who may ask, how much, and for how long.

Flows in: HTTP requests, as ASGI has them. Flows out: those that may pass, with their whole body,
which is small enough and came in time; the others get one sentence. Every answer forbids framing
and foreign scripts.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any, TypeAlias
from urllib.parse import urlsplit

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

COOKIE = "cliptune-token"
OPEN = ("/", "/page.js", "/page.css", "/v1/session")  # what is there before a token is
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


@dataclass(frozen=True)
class Limits:
    """What one request, and all at once, may take."""

    body: int = 20 * 2**20  # bytes of an upload
    held: int = 256 * 2**20  # bytes of all uploads at once
    seconds: float = 20.0  # in which a body must be here


@dataclass(frozen=True)
class Stop(Exception):
    """An answer in the place of the app's."""

    status: int
    error: str


class Guard:
    """The app, behind its limits. With a `token` every request must have it, in its
    `Authorization: Bearer` or in the page's cookie; without one the `Host` must be this machine's
    own name, so that no page elsewhere reaches the server by a name that it chose."""

    def __init__(self, app: App, token: str = "", limits: Limits | None = None) -> None:
        self.app, self.token = app, token
        self.limits = limits or Limits()
        self.held = 0  # bytes of bodies that are here, or on their way

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, guarded(send))
        else:
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Message, receive: Receive, send: Send) -> None:
        mine = 0
        try:
            self._admit(scope)
            body = bytearray()
            async with asyncio.timeout(self.limits.seconds):
                async for part in _parts(receive):
                    mine += len(part)
                    self.held += len(part)
                    self._room(mine)
                    body += part
            await self.app(scope, _given(bytes(body), receive), send)
        except TimeoutError:
            await _say(send, 408, f"the body must be here in {self.limits.seconds:g} s.")
        except ConnectionError:
            return  # the client has gone
        except Stop as stop:
            await _say(send, stop.status, stop.error)
        finally:
            self.held -= mine

    def _admit(self, scope: Message) -> None:
        """Raise `Stop` for who may not ask, or says at once that it is too much."""
        headers = {
            key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]
        }
        host, origin = headers.get("host", ""), headers.get("origin", "")
        try:
            name, page = urlsplit(f"//{host}").hostname or "", urlsplit(origin).netloc
        except ValueError:
            raise Stop(400, "`Host` and `Origin` must be addresses.") from None
        if not self.token and name not in LOCAL:
            raise Stop(421, f"this server answers to localhost, got the host `{host[:100]}`.")
        if scope["method"] != "GET" and origin and page != host:
            raise Stop(403, f"requests from `{origin[:100]}` are not taken: another origin.")
        if self.token and scope["path"] not in OPEN and not same(_offered(headers), self.token):
            raise Stop(401, "a token is needed: `Authorization: Bearer TOKEN`.")
        length = headers.get("content-length", "0")
        self._room(int(length) if length.isdecimal() else 0)

    def _room(self, size: int) -> None:
        if size > self.limits.body:
            raise Stop(413, f"the body must be at most {self.limits.body // 2**20} MiB.")
        if self.held > self.limits.held:
            raise Stop(503, "too much is being uploaded at once: try again in a second.")


def same(one: str, other: str) -> bool:
    """In a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(errors="surrogatepass"), other.encode())


def _offered(headers: dict[str, str]) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return token.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return cookie.value if cookie else ""


async def _parts(receive: Receive) -> Any:
    """The body's parts as they come. Raises `ConnectionError` where the client goes first."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


def _given(body: bytes, receive: Receive) -> Receive:
    """A `receive` that has the whole body, and then what else there is to hear."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def hear() -> Message:
        return first.pop() if first else await receive()

    return hear


def guarded(send: Send) -> Send:
    """`send` with the headers that every answer has."""

    async def say(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = {key.lower(): value for key, value in message.get("headers", [])}
            own = {key.encode(): value.encode() for key, value in HEADERS.items()}
            own |= {} if b"cache-control" in headers else {b"cache-control": b"no-store"}
            message["headers"] = [*message.get("headers", []), *own.items()]
        await send(message)

    return say


async def _say(send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    headers += [(b"retry-after", b"1")] if status == 503 else []
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
