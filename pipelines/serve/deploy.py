"""The server on Ray Serve: one deployment holds the adapters, one the interface.

Flows in: a `Plan`. Flows out: a server that runs until it is told to end. Requests that come
together are answered together: `serve.batch` gathers them while the batch before is computed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.serve.asks import FAULT, Answer, Ask, Refused
from pipelines.serve.gallery import Gallery, Photos, Stored

if TYPE_CHECKING:
    from pipelines.serve.shelf import Shelf

APP = "cliptune"  # in Ray Serve
TOGETHER = 32  # requests in one batch
AT_ONCE = 4_096  # requests that may be waiting, slow ones among them


@dataclass(frozen=True)
class Plan:
    """What is served, and where."""

    runs: tuple[Path, ...]
    images: Path | None
    store: Path | None
    home: Path  # of the indexes
    host: str
    port: int
    token: str = ""
    approximate: bool = False

    def gallery(self) -> Gallery:
        if self.images is not None:
            return Photos(self.images)
        assert self.store is not None
        return Stored(self.store)

    def outside(self, said: str) -> str:
        """A sentence as other machines may hear it: without the folders of this one."""
        for run in self.runs:
            said = said.replace(f"`{run.parent}/", "`")
        return re.sub("`/[^`]*/", "`", said)


class Adapters:
    """The models, in one process."""

    def __init__(self, plan: Plan) -> None:
        from pipelines.serve import fields
        from pipelines.serve.engine import Engine
        from pipelines.serve.shelf import loads_once

        self.plan, self.gallery = plan, plan.gallery()
        self.fields = fields.about(self.gallery.fields)
        self.load = loads_once()  # the frozen model stays, whatever is swapped
        self.engine = Engine(self._shelf(), self.gallery)
        self.loading = asyncio.Lock()

    def _shelf(self) -> Shelf:
        from pipelines.serve.shelf import load_shelf

        plan = self.plan
        return load_shelf(plan.runs, self.gallery, plan.home, self.load, plan.approximate)

    async def answer(self, asks: list[Ask]) -> list[Answer | Refused]:
        return await asyncio.to_thread(self._answer, asks)

    def _answer(self, asks: list[Ask]) -> list[Answer | Refused]:
        try:
            return self.engine.answer(asks)
        except Exception:  # a fault of ours: whoever asks next is answered again
            traceback.print_exc(file=sys.stderr)
            return [Refused(FAULT, 500) for _ in asks]

    async def about(self) -> Answer:
        return {
            "adapters": [one.about() for one in self.engine.shelf.adapters.values()],
            "images": len(self.gallery.names),
            "fields": self.fields,
        }

    async def reload(self) -> Answer | Refused:
        """The runs as they are now. Those that answer go on until these are ready."""
        from trainables.errors import CliptuneError

        async with self.loading:
            try:
                self.engine.shelf = await asyncio.to_thread(self._shelf)
            except CliptuneError as error:
                return Refused(f"nothing has changed: {self.plan.outside(str(error))}", 409)
        return await self.about()


class Front:
    """The interface, in a process of its own: pictures and uploads do not wait for the models."""

    def __init__(self, plan: Plan, adapters: Any) -> None:
        self.plan, self.adapters = plan, adapters

    def __serve_build_asgi_app__(self) -> Any:
        from pipelines.serve.app import Routes, app_of
        from pipelines.serve.guard import Guard

        def call(name: str) -> Callable[..., Any]:
            return getattr(self.adapters, name).remote

        ways = (call("answer"), call("about"), call("reload"))
        app = app_of(Routes(*ways, self.plan.gallery(), self.plan.token))
        return Guard(app, self.plan.token)


def start(plan: Plan) -> None:
    """Start the server in the Ray that this process is connected to."""
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = LoggingConfig(log_level="ERROR", enable_access_log=False)
    serve.start(http_options=HTTPOptions(host=plan.host, port=plan.port), logging_config=quiet)

    class Batched(Adapters):
        answer = serve.batch(
            max_batch_size=TOGETHER, batch_wait_timeout_s=0.005, max_concurrent_batches=1
        )(Adapters.answer)

    adapters = serve.deployment(Batched, name="adapters", max_ongoing_requests=AT_ONCE)
    front = serve.deployment(serve.ingress()(Front), name="front", max_ongoing_requests=AT_ONCE)
    serve.run(front.bind(plan, adapters.bind(plan)), name=APP, logging_config=quiet)


def stop() -> None:
    """End the server. What else a cluster serves goes on; the Ray of this machine is ours."""
    import ray
    from ray import serve

    if "RAY_ADDRESS" in os.environ and APP in serve.status().applications:
        serve.delete(APP)
    ray.shutdown()
