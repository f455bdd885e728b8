"""Real databases that sinks write to, a stub for what those never answer, and what they should hold in the end."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from msgspec.structs import replace
from tests.support.snapshots import snapshot
from tests.support.tools import free_port, tool

from jouled.model.points import Points
from jouled.outputs.metrics.points import packed, unpacked
from jouled.outputs.sinks.counts import SinkCounts
from jouled.outputs.sinks.place import Place, Receiver
from jouled.outputs.sinks.runner import Runner
from jouled.outputs.store import Behind

_DEADLINE_SECONDS = 30.0
Series = tuple[str, frozenset[tuple[str, str]]]
Samples = list[tuple[int, float]]
"""Unix milliseconds and value, oldest first."""


class Database:
    """A server that runs for one test."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self._session = session

    async def get(self, path: str, **parameters: str) -> str:
        async with self._session.get(self.url + path, params=parameters, raise_for_status=True) as answer:
            return await answer.text()

    async def ready(self, path: str) -> None:
        async with asyncio.timeout(_DEADLINE_SECONDS):
            while True:
                try:
                    await self.get(path)
                except (aiohttp.ClientConnectionError, aiohttp.ClientResponseError):
                    await asyncio.sleep(0.02)
                else:
                    return

    @staticmethod
    def check(found: Mapping[Series, Samples], expected: Mapping[Series, Samples]) -> None:
        """Every series that is expected is there, with these samples and no other."""
        assert not set(expected) - set(found)
        for series, samples in expected.items():
            assert [time for time, _ in found[series]] == [time for time, _ in samples], series
            assert [v for _, v in found[series]] == pytest.approx([v for _, v in samples], rel=1e-12), series


class Victoria(Database):
    """VictoriaMetrics, which keeps one sample for each series and millisecond."""

    async def series(self, **labels: str) -> dict[Series, Samples]:
        """All that it holds of the series with these labels."""
        await self.get("/internal/force_flush")
        wanted = ",".join(f'{name}="{value}"' for name, value in {"__name__!": "", **labels}.items())
        found = {}
        for line in (await self.get("/api/v1/export", **{"match[]": f"{{{wanted}}}"})).splitlines():
            row = json.loads(line)
            name = row["metric"].pop("__name__")
            samples = sorted(zip(row["timestamps"], row["values"], strict=True))
            found[name, frozenset(row["metric"].items())] = samples
        return found


class Prometheus(Database):
    """Prometheus with its receiver for remote write, and with room for exemplars."""

    async def series(self) -> dict[Series, Samples]:
        """All that it holds."""
        answer = json.loads(await self.get("/api/v1/query", query='{__name__=~".+"}[1h]'))
        found = {}
        for row in answer["data"]["result"]:
            name = row["metric"].pop("__name__")
            found[name, frozenset(row["metric"].items())] = [(round(t * 1000), float(v)) for t, v in row["values"]]
        return found


class Stub:
    """An HTTP server that answers as `judge` says: status, text and headers for the body and the request."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[web.Request] = []
        self.bodies: list[bytes] = []
        self.judge: Callable[[bytes], tuple[int, str] | tuple[int, str, Mapping[str, str]]] = lambda _: (204, "")
        self.hold: asyncio.Event | None = None

    async def answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests.append(request)
        self.bodies.append(body)
        if self.hold is not None:
            await self.hold.wait()
        status, text, *headers = self.judge(body)
        return web.Response(status=status, text=text or None, headers=headers[0] if headers else None)


@asynccontextmanager
async def _running(made: type, ready: str, *command: str | Path) -> AsyncIterator[Any]:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    address = next(word for word in map(str, command) if "listen" in word.lower()).partition("=")[2]
    try:
        async with aiohttp.ClientSession() as session:
            database = made(f"http://{address}", session)
            await database.ready(ready)
            yield database
    finally:
        process.kill()
        await process.wait()


@pytest.fixture
async def victoria(tmp_path: Path) -> AsyncIterator[Victoria]:
    command = [
        tool("victoria-metrics"),
        f"-httpListenAddr=127.0.0.1:{free_port()}",
        f"-storageDataPath={tmp_path}/victoria",
        "-dedup.minScrapeInterval=1ms",
    ]
    async with _running(Victoria, "/health", *command) as database:
        yield database


@pytest.fixture
async def start_prometheus(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[Prometheus]]]:
    """Starts Prometheus with a configuration."""
    running = AsyncExitStack()

    async def start(configuration: str = "global: {}") -> Prometheus:
        (tmp_path / "prometheus.yml").write_text(configuration)
        command = [
            tool("prometheus"),
            f"--web.listen-address=127.0.0.1:{free_port()}",
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/prometheus",
            "--web.enable-remote-write-receiver",
            "--enable-feature=exemplar-storage",
        ]
        prometheus: Prometheus = await running.enter_async_context(_running(Prometheus, "/-/ready", *command))
        return prometheus

    async with running:
        yield start


@pytest.fixture
async def stub(aiohttp_server) -> AsyncIterator[Stub]:
    made = Stub()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_post("/{path:.*}", made.answer)
    server = await aiohttp_server(app)
    made.url = f"http://127.0.0.1:{server.port}"
    yield made
    if made.hold is not None:
        made.hold.set()


@pytest.fixture
def opened() -> Callable[..., Any]:
    """Opens a sink; the caller closes it with `async with`."""

    @asynccontextmanager
    async def opening(sink: Any, settings: Any, node: str = "node17") -> AsyncIterator[Any]:
        made = sink.open(settings, node)
        try:
            yield made
        finally:
            await made.close()

    return opening


@pytest.fixture
def now_ns() -> int:
    """This second: what databases take as neither too old nor in the future."""
    return time.time_ns() // 1_000_000_000 * 1_000_000_000


@pytest.fixture
def moments(now_ns: int) -> list[Points]:
    """Five moments of the hand-made node, a second apart, whose counters grow; VictoriaMetrics shows none of 30 s."""
    return [unpacked(number, packed(_grown(number, now_ns), "1.0", 0)) for number in range(1, 6)]


def _grown(number: int, now_ns: int) -> Any:
    made = snapshot()
    counters = {name: {labels: value + number for labels, value in of.items()} for name, of in made.counters.items()}
    return replace(made, t_ns=now_ns - (60 - number) * 1_000_000_000, wall_minus_core_ns=0, counters=counters)


@pytest.fixture
def plain_series() -> Callable[[Sequence[Points]], dict[Series, Samples]]:
    """What counters, gauges, infos and state sets a database should hold."""

    def expected(moments: Sequence[Points]) -> dict[Series, Samples]:
        found: dict[Series, Samples] = {}
        for moment in moments:
            for family in moment.families:
                for labels, value in family.values.items():
                    named = frozenset((n, v) for n, v in zip(family.labels, labels, strict=True) if v)
                    found.setdefault((family.name, named), []).append((moment.t_ns // 1_000_000, value))
        return found

    return expected


@pytest.fixture
def run_once() -> Callable[..., Awaitable[tuple[Runner, SinkCounts]]]:
    """One step of a runner with these records and a time limit."""

    async def run(kind: str, records: Sequence[Any], send: Any, timeout_seconds: float) -> tuple[Runner, SinkCounts]:
        counts = SinkCounts()

        async def read(after: int, most: int) -> Behind[Any]:
            return Behind(records, [])

        made = Runner(
            "tested",
            kind,
            read=read,
            send=send,
            most=len(records),
            timeout_seconds=timeout_seconds,
            place=Place(0, 0, 0.0),
            receiver=Receiver(),
            counts=counts,
            wall_ns=time.time_ns,
        )
        await made.step()
        return made, counts

    return run
