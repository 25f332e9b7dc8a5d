"""The REST interface, described by `/openapi.json`, and the page at `/`.

Flows in: a function that answers an `Ask`, and the gallery. Flows out: a FastAPI app. Images are
sent as they are, as the whole body; whatever fails is `{"error": "one sentence"}`.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteError

from pipelines.evaluate.gallery import jpeg
from pipelines.serve.asks import FAULT, Answer, Ask, Refused
from pipelines.serve.bodies import WHERE, Failure, Named, Search, Texts, Token, Top
from pipelines.serve.gallery import Gallery
from pipelines.serve.guard import COOKIE, same
from pipelines.use.model import ZERO_SHOT
from trainables.media.image_headers import BadImage
from trainables.media.images import decode
from trainables.metrics.calibration import Kind

PAGE = Path(__file__).parent / "page"
PARTS = (
    ("/", "page.html", "text/html"),
    ("/page.js", "page.js", "text/javascript"),
    ("/page.css", "page.css", "text/css"),
)
SIDES = (256, 1024)  # of a picture's longest side, pixels
KEPT = 2_000  # small pictures, about 15 KB each
WHOLE = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class Routes:
    """The interface over `answer`, `about` and `reload`, which the engine gives."""

    def __init__(
        self,
        answer: Callable[[Ask], Awaitable[Answer | Refused]],
        about: Callable[[], Awaitable[Answer]],
        reload: Callable[[], Awaitable[Answer | Refused]],
        gallery: Gallery,
        token: str = "",
    ) -> None:
        self.answer, self.about, self.reload = answer, about, reload
        self.gallery, self.token = gallery, token
        self.small = lru_cache(KEPT)(self.picture)

    async def _asked(self, ask: Ask) -> Answer:
        return told(await self.answer(ask))

    async def adapters(self) -> Answer:
        """What is served: adapters, and the fields that `where` takes."""
        return await self.about()

    async def again(self) -> Answer:
        """Read the runs again: new ones, those that were trained on, without those that are gone.
        Until it is done the old ones answer."""
        return told(await self.reload())

    async def embed_text(self, body: Texts) -> Answer:
        """Texts as vectors of unit length."""
        return await self._asked(Ask("embed", body.adapter, tuple(body.texts)))

    async def embed_image(self, request: Request, adapter: Named = ZERO_SHOT) -> Answer:
        """An image as a vector of unit length."""
        return await self._asked(Ask("embed", adapter, image=await sent(request)))

    async def search(self, body: Search) -> Answer:
        """The images nearest to words, or to an image that is served; best first."""
        if (body.text is None) == (body.image is None):
            raise HTTPException(400, "`text` or `image` must be given, one of them.")
        texts = () if body.text is None else (body.text,)
        like, top, where = body.image or "", body.top, body.where
        return await self._asked(
            Ask("search", body.adapter, texts, like=like, top=top, where=where)
        )

    async def search_image(
        self,
        request: Request,
        adapter: Named = ZERO_SHOT,
        top: Top = 12,
        where: str = "{}",
    ) -> Answer:
        """The images nearest to an image that is sent. `where` is JSON."""
        try:
            only = WHERE.validate_json(where)
        except ValidationError as error:
            at = {"loc": ("query", "where")}
            raise RequestValidationError([one | at for one in error.errors()]) from None
        return await self._asked(
            Ask("search", adapter, image=await sent(request), top=top, where=only)
        )

    async def classify(
        self,
        request: Request,
        adapter: Named,
        top: Top = 3,
        classes: Annotated[list[str], Query(max_length=1_000)] = [],  # noqa: B006
        template: str = "",
        confidence: float | None = None,
        sets: Kind = "split",
    ) -> Answer:
        """The likeliest classes of an image and, at a `confidence`, the set that may be right."""
        return await self._asked(
            Ask(
                "classify",
                adapter,
                image=await sent(request),
                top=top,
                classes=tuple(classes),
                template=template,
                confidence=confidence,
                sets=sets,
            )
        )

    async def caption(self, request: Request, adapter: Named) -> Answer:
        """A caption for an image."""
        return await self._asked(Ask("caption", adapter, image=await sent(request)))

    async def image(self, name: str, side: int = SIDES[0]) -> Response:
        """An image that is served, as a JPEG of at most `side` pixels."""
        if side not in SIDES:
            raise HTTPException(400, f"`side` must be one of {SIDES}, got {side}.")
        try:
            draw = self.small if side == SIDES[0] else self.picture
            data = await asyncio.to_thread(draw, name, side)
        except KeyError:
            raise HTTPException(404, f"no image is called `{name[:200]}`.") from None
        except BadImage as error:
            raise HTTPException(404, f"`{name[:200]}`: {error}") from None
        return Response(data, media_type="image/jpeg", headers={"cache-control": "private"})

    def picture(self, name: str, side: int) -> bytes:
        return jpeg(decode(self.gallery.read(name)), side)

    async def session(self, body: Token) -> Response:
        """Give the page's browser the token, in a cookie that no script can read."""
        if not same(body.token, self.token):
            raise HTTPException(401, "that is not the token.")
        answer = JSONResponse({})
        answer.set_cookie(COOKIE, body.token, httponly=True, samesite="strict")
        return answer


def app_of(routes: Routes) -> FastAPI:
    """The app of `routes`, whose names and words are those of `/openapi.json`."""
    failure: dict[int | str, dict[str, Any]] = {"4XX": {"model": Failure, "description": "Refused"}}
    app = FastAPI(title="cliptune", version="1", docs_url=None, redoc_url=None, responses=failure)
    app.get("/v1/adapters")(routes.adapters)
    app.post("/v1/adapters/reload")(routes.again)
    app.post("/v1/embed/text")(routes.embed_text)
    app.post("/v1/embed/image", openapi_extra=WHOLE)(routes.embed_image)
    app.post("/v1/search")(routes.search)
    app.post("/v1/search/image", openapi_extra=WHOLE)(routes.search_image)
    app.post("/v1/classify", openapi_extra=WHOLE)(routes.classify)
    app.post("/v1/caption", openapi_extra=WHOLE)(routes.caption)
    app.get("/v1/images/{name:path}", response_class=Response)(routes.image)
    app.post("/v1/session")(routes.session)
    for path, name, kind in PARTS:
        app.get(path, include_in_schema=False)(_part(name, kind))
    app.exception_handler(StarletteError)(_failed)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(Exception)(_broken)
    return app


def told(found: Answer | Refused) -> Answer:
    if isinstance(found, Refused):
        raise HTTPException(found.status, found.error)
    return found


async def sent(request: Request) -> bytes:
    """The image, which is the whole body."""
    body = await request.body()
    if not body:
        raise HTTPException(400, "the body must be the bytes of an image, got none.")
    return body


def _part(name: str, kind: str) -> Callable[[], Awaitable[Response]]:
    data = (PAGE / name).read_bytes()

    async def answer() -> Response:
        return Response(data, media_type=kind)

    return answer


async def _failed(_: Request, error: StarletteError) -> JSONResponse:
    return failed(str(error.detail), error.status_code, error.headers)


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    where = ".".join(str(one) for one in first["loc"][1:]) or str(first["loc"][0])
    rule = first["msg"].removeprefix("Value error, ")
    return failed(f"`{where}`: {rule}, got {reprlib.repr(first['input'])}.", 400)


async def _broken(_: Request, __: Exception) -> JSONResponse:
    return failed(FAULT, 500)


def failed(error: str, status: int, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """What a client sent may be no text, and is told back: half a character is escaped."""
    said = error.encode(errors="backslashreplace").decode()
    return JSONResponse({"error": said}, status, headers)
