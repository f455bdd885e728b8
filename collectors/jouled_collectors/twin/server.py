"""The twin as a process: the node in step with the real clock, its pages, its meters and its truth over HTTP."""

import asyncio
import contextlib
import os
import signal
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Struct

from jouled_collectors.twin.load import Load
from jouled_collectors.twin.node import Node, priors
from jouled_collectors.twin.pages import CONTENT_TYPE, VLLM_VERSION, EnginePage
from jouled_collectors.twin.scheduler import Truth
from jouled_collectors.twin.spans import SpanExporter, span_of
from jouled_collectors.twin.truth import Sums, books, request_view

STATE_FILE = "twin.json"
_TICK_SECONDS = 0.2
_SLICE_NS = 1_000_000_000
_KEPT_NS = 7_200_000_000_000
_TRUTH_PAGE = 5000
_HOST = "127.0.0.1"


class TwinOptions(Struct, frozen=True, kw_only=True):
    """How to run. port 0: any free one. spans_url: where to send spans; empty: nowhere, until told by POST /spans.

    linger_seconds: the twin ends when nobody has asked it anything for so long. state_directory: where to say where
    it listens.
    """

    port: int = 0
    spans_url: str = ""
    seed: int = 1
    load: Load = Load()
    linger_seconds: float = 1800.0
    state_directory: Path | None = None


def core_now_ns(offset_ns: int) -> int:
    """The twin's clock: boot time plus an offset that made it Unix time when the twin started."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + offset_ns


class Twin:
    """A node that lives in real time, and who has asked it last."""

    def __init__(self, options: TwinOptions) -> None:
        self.options = options
        self.last_asked = time.monotonic()
        self._offset_ns = time.time_ns() - core_now_ns(0)
        self.node = Node(options.seed, options.load, core_now_ns(self._offset_ns))
        self.exporters = {name: SpanExporter(name, options.spans_url) for name in self.node.engines}
        created_seconds = self.node.start_ns / 1e9
        self.pages = {name: EnginePage(engine, created_seconds) for name, engine in self.node.engines.items()}
        self._sums = {name: Sums() for name in self.node.engines}
        self._ended: list[Truth] = []

    async def catch_up(self) -> None:
        """Bring the node to now, in slices that let others in between."""
        now_ns = core_now_ns(self._offset_ns)
        while self.node.now_ns < now_ns:
            self._take(self.node.advance(min(self.node.now_ns + _SLICE_NS, now_ns)))
            if self.node.now_ns < now_ns:
                await asyncio.sleep(0)

    async def live(self) -> None:
        """Keep step with the clock, asked or not, until cancelled."""
        while True:
            await self.catch_up()
            await asyncio.sleep(_TICK_SECONDS)

    async def unasked(self) -> None:
        """Wait until nobody has asked for the time to linger."""
        rest = self.options.linger_seconds
        while rest > 0:
            await asyncio.sleep(rest)
            rest = self.last_asked + self.options.linger_seconds - time.monotonic()

    def send_spans_to(self, url: str) -> None:
        """Send spans there from now on, waiting ones included."""
        for exporter in self.exporters.values():
            exporter.url = url

    def truth(self, since_ns: int, limit: int) -> dict[str, Any]:
        """Books up to now and the requests that ended after `since_ns`, a page of about `limit` of them.

        `more`: ask again with `next_since_ns`. Requests that end in one step come on one page.
        """
        first = bisect_right(self._ended, since_ns, key=_end_ns)
        last = min(first + limit, len(self._ended))
        if last > first:
            last = bisect_right(self._ended, _end_ns(self._ended[last - 1]), key=_end_ns)
        page = self._ended[first:last]
        return {
            **books(self.node, self._sums),
            "seed": self.options.seed,
            "load": self.options.load.share,
            "requests": {truth.request.arrival.id: request_view(truth) for truth in page},
            "next_since_ns": _end_ns(page[-1]) if page else since_ns,
            "more": last < len(self._ended),
        }

    def readings(self) -> dict[str, Any]:
        """What all meters show now."""
        node = self.node
        shown = {name: node.shown(name, node.now_ns) for name in node.devices}
        return {"t_ns": node.now_ns, "started_ns": node.start_ns, "readings": shown}

    def description(self, url: str) -> dict[str, Any]:
        """The node's devices and engines, as an operator would configure them."""
        engines = [
            {
                "name": engine.spec.name,
                "type": "vllm",
                "url": f"{url}/engines/{engine.spec.name}",
                "devices": engine.spec.devices,
                **priors(engine.spec),
            }
            for engine in self.node.engines.values()
        ]
        return {
            "pid": os.getpid(),
            "url": url,
            "spans_url": next(iter(self.exporters.values())).url,
            "seed": self.options.seed,
            "load": self.options.load.share,
            "started_ns": self.node.start_ns,
            "devices": [self.node.describe(name, tell_idle=True) for name in self.node.devices],
            "engines": engines,
        }

    def _take(self, ended: list[Truth]) -> None:
        wall_minus_core_ns = time.time_ns() - core_now_ns(self._offset_ns)
        for truth in ended:
            self._sums[truth.engine].add(truth)
            exporter = self.exporters[truth.engine]
            if exporter.url and not truth.aborted:
                exporter.put(span_of(truth, wall_minus_core_ns))
        self._ended += ended
        if self._ended and _end_ns(self._ended[0]) < self.node.now_ns - 2 * _KEPT_NS:
            del self._ended[: bisect_right(self._ended, self.node.now_ns - _KEPT_NS, key=_end_ns)]


def _end_ns(truth: Truth) -> int:
    return truth.request.last_token_ns


def application(twin: Twin) -> web.Application:
    """Routes of the twin. Every answer is about the moment in which it is asked."""

    @web.middleware
    async def asked(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        twin.last_asked = time.monotonic()
        await twin.catch_up()
        return await handler(request)

    app = web.Application(middlewares=[asked])
    handlers = _Handlers(twin)
    app.router.add_get("/healthz", handlers.node)
    app.router.add_get("/node", handlers.node)
    app.router.add_get("/devices", handlers.devices)
    app.router.add_get("/truth", handlers.truth)
    app.router.add_post("/spans", handlers.spans)
    app.router.add_get("/engines/{engine}/metrics", handlers.metrics)
    app.router.add_get("/engines/{engine}/version", handlers.version)
    app.cleanup_ctx.append(lambda app: _background(app, twin))
    return app


async def _background(_app: web.Application, twin: Twin) -> AsyncIterator[None]:
    """The node's life and the exporters, for as long as the application is up."""
    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(twin.live())]
        tasks += [asyncio.create_task(exporter.run(session)) for exporter in twin.exporters.values()]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Handlers:
    def __init__(self, twin: Twin) -> None:
        self._twin = twin

    async def node(self, request: web.Request) -> web.Response:
        return _json(self._twin.description(str(request.url.origin())))

    async def devices(self, _request: web.Request) -> web.Response:
        return _json(self._twin.readings())

    async def truth(self, request: web.Request) -> web.Response:
        try:
            since_ns = int(request.query.get("since_ns", "0"))
            limit = max(int(request.query.get("limit", str(_TRUTH_PAGE))), 1)
        except ValueError:
            raise web.HTTPBadRequest(text="since_ns and limit are whole numbers\n") from None
        return _json(self._twin.truth(since_ns, limit))

    async def spans(self, request: web.Request) -> web.Response:
        try:
            target = msgspec.json.decode(await request.read(), type=_Target)
        except msgspec.DecodeError as error:
            raise web.HTTPBadRequest(text=f'expected {{"url": "http://…"}}: {error}\n') from None
        self._twin.send_spans_to(target.url)
        return _json({"spans_url": target.url})

    async def metrics(self, request: web.Request) -> web.Response:
        page = self._twin.pages.get(request.match_info["engine"])
        if page is None:
            raise web.HTTPNotFound
        return web.Response(body=page.render(), headers={"Content-Type": CONTENT_TYPE})

    async def version(self, request: web.Request) -> web.Response:
        if request.match_info["engine"] not in self._twin.pages:
            raise web.HTTPNotFound
        return _json({"version": VLLM_VERSION})


class _Target(Struct, frozen=True):
    url: str


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def serve(options: TwinOptions, on_listening: Callable[[str], None]) -> None:
    """Run the twin until it gets SIGTERM or SIGINT, or nobody has asked it anything for the time to linger."""
    twin = Twin(options)
    runner = web.AppRunner(application(twin), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, _HOST, options.port)
        await site.start()
        host, port = runner.addresses[0][:2]
        url = f"http://{host}:{port}"
        with _announced(options.state_directory, url):
            on_listening(url)
            await _ended(twin)
    finally:
        await runner.cleanup()


async def _ended(twin: Twin) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    waits = [asyncio.create_task(stop.wait()), asyncio.create_task(twin.unasked())]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)


@contextlib.contextmanager
def _announced(directory: Path | None, url: str) -> Any:
    """Say in the state directory where the twin listens, and take it back at the end."""
    if directory is None:
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / STATE_FILE
    written = directory / f"{STATE_FILE}.{os.getpid()}"
    written.write_bytes(msgspec.json.encode({"pid": os.getpid(), "url": url}))
    written.replace(path)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, msgspec.DecodeError):
            if msgspec.json.decode(path.read_bytes()).get("pid") == os.getpid():
                path.unlink()
