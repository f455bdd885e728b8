"""The poller against real sockets: good pages, and every kind of bad one."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from jouled.api import EnginePage
from jouled.app.runtime import engines as runtime_engines
from jouled.app.runtime import pages
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.engines import EnginePoller
from jouled.model.engine import CounterSemantics, Engine, EngineSample, Latency, LatencyHistogram
from jouled.model.errors import SourceState
from jouled.model.parameters import Slo
from jouled.model.readings import SourceReport

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class LineCollector:
    """A page is `MODEL GENERATED`."""

    name: ClassVar[str] = "line"
    page_path: ClassVar[str] = "/metrics"
    version_path: ClassVar[str] = "/version"
    default_port: ClassVar[int] = 1
    semantics: ClassVar[CounterSemantics] = CounterSemantics()

    def recognises(self, argv: Sequence[str], title: str) -> bool:
        return False

    def port(self, argv: Sequence[str]) -> int:
        return 1

    def page(self, body: bytes) -> EnginePage:
        if body == b"bug":
            raise KeyError("bug")
        model, generated = body.decode().split(" ")
        return EnginePage(model=model, generation_tokens=int(generated))

    def version(self, body: bytes) -> str:
        return body.decode()


class HistogramCollector(LineCollector):
    """A page is `MODEL GENERATED`; its histogram of TTFTs has as many requests as tokens."""

    def latencies(self, body: bytes, wanted: Collection[Latency]) -> Mapping[Latency, LatencyHistogram]:
        assert set(wanted) == {"ttft"}
        generated = self.page(body).generation_tokens
        if generated == 666:
            raise ValueError("no histogram")
        return {"ttft": LatencyHistogram((0.25, 0.5), (0, 0, generated))}


class Engines:
    """A server with one handler for the page, and what the poller fed."""

    def __init__(self) -> None:
        self.fed: list[Engine | EngineSample | SourceReport] = []
        self._news = asyncio.Event()

    def feed(self, item: Engine | EngineSample | SourceReport) -> None:
        self.fed.append(item)
        self._news.set()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def samples(self) -> list[EngineSample]:
        return [item for item in self.fed if isinstance(item, EngineSample)]

    def reports(self) -> list[SourceReport]:
        return [item for item in self.fed if isinstance(item, SourceReport)]


@contextlib.asynccontextmanager
async def polled(
    handler: Handler,
    *,
    version: str = "1.2",
    engine: Engine | None = None,
    collector: LineCollector | None = None,
    slos: Sequence[Slo] = (),
) -> AsyncIterator[Engines]:
    async def answer_version(_request: web.Request) -> web.Response:
        return web.Response(text=version)

    application = web.Application()
    application.router.add_get("/metrics", handler)
    application.router.add_get("/version", answer_version)
    engines = Engines()
    async with TestServer(application) as server, pages.open_session() as session:
        engine = engine or Engine(name="line-1", url=str(server.make_url("")))
        clock = BootClock.equal_to_wall_now()
        collector = collector or LineCollector()
        poller = EnginePoller(collector, engine, clock, engines.feed, session, slos=slos, interval_seconds=0.05)
        task = asyncio.create_task(poller.run())
        try:
            yield engines
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def test_samples_model_and_version() -> None:
    generated = 0

    async def page(_request: web.Request) -> web.Response:
        nonlocal generated
        generated += 5
        return web.Response(text=f"tiny {generated}")

    async with polled(page) as engines:
        await engines.until(lambda: len(engines.samples()) >= 3)
        first = engines.samples()[0]
        assert (first.engine, first.model, first.generation_tokens) == ("line-1", "tiny", 5)
        assert engines.reports() == [report for report in engines.reports() if report.state is SourceState.OK]
        assert len(engines.reports()) == 1
        told = [item for item in engines.fed if isinstance(item, Engine)]
        assert (told[-1].model, told[-1].version) == ("tiny", "1.2")


async def test_a_sample_tells_what_the_engines_processes_used() -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="tiny 5")

    async with polled(page) as engines:
        await engines.until(engines.samples)
        assert engines.samples()[0].cpu_seconds is None, "nobody knows its process"
        url = next(item.url for item in engines.fed if isinstance(item, Engine))
        async with polled(page, engine=Engine(name="line-2", url=url, pid=os.getpid())) as known:
            await known.until(known.samples)
    used = known.samples()[0].cpu_seconds
    assert used is not None
    assert used > 0.0


async def test_histograms_are_read_where_an_slo_needs_them_and_a_limit_off_their_bounds_is_told_once(
    caplog, monkeypatch
) -> None:
    monkeypatch.setattr(runtime_engines, "LATENCIES_SECONDS", 0.0)
    pages_told = iter([5, 666, 7])

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=f"tiny {next(pages_told, 8)}")

    slos = (Slo("chat", ttft=300.0), Slo("on", ttft=500.0))
    with caplog.at_level(logging.WARNING):
        async with polled(page, collector=HistogramCollector(), slos=slos) as engines:
            await engines.until(lambda: len(engines.samples()) >= 5)
    counts = [[h.counts[-1] for h in sample.latencies.values()] for sample in engines.samples()[:4]]
    assert counts == [[5], [], [7], [8]], "a page with unreadable histograms is metered all the same"
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "SLO chat: ttft = 300 ms is none of the engine's bucket bounds (nearest: 250 and 500)" in said[0]
    assert "cannot be read: no histogram" in said[1]


async def test_histograms_are_not_read_at_every_look() -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="tiny 5")

    async with polled(page, collector=HistogramCollector(), slos=(Slo("on", ttft=500.0),)) as engines:
        await engines.until(lambda: len(engines.samples()) >= 3)
    assert [bool(sample.latencies) for sample in engines.samples()[:3]] == [True, False, False]


@pytest.mark.parametrize(
    ("collector", "slos"), [(LineCollector(), (Slo("chat", ttft=300.0),)), (HistogramCollector(), ())]
)
async def test_without_an_slo_or_histograms_none_are_read(collector, slos) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="tiny 5")

    async with polled(page, collector=collector, slos=slos) as engines:
        await engines.until(engines.samples)
    assert engines.samples()[0].latencies == {}


async def test_devices_are_those_on_which_its_processes_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_engines, "DEVICES_SECONDS", 0.0)
    monkeypatch.setattr(runtime_engines, "family_of", lambda pid: frozenset({pid, pid + 1}))
    answers = iter([(), ("gpu2", "gpu3"), ()])

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="tiny 5")

    application = web.Application()
    application.router.add_get("/metrics", page)
    engines = Engines()
    async with TestServer(application) as server, pages.open_session() as session:
        engine = Engine(name="line-1", url=str(server.make_url("")), pid=41)
        asked = []

        def devices_of(processes):
            asked.append(processes)
            return next(answers, ("gpu2", "gpu3"))

        clock = BootClock.equal_to_wall_now()
        poller = EnginePoller(
            LineCollector(), engine, clock, engines.feed, session, interval_seconds=0.02, devices_of=devices_of
        )
        task = asyncio.create_task(poller.run())
        await engines.until(lambda: len(asked) > 4)
        task.cancel()
    assert asked[0] == {41, 42}
    named = [item.devices for item in engines.fed if isinstance(item, Engine)]
    assert named[-1] == ("gpu2", "gpu3"), "that the driver tells nothing for a while changes nothing"
    assert poller.engine.model == "tiny"


async def test_devices_that_were_configured_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def page(_request: web.Request) -> web.Response:
        return web.Response(text="tiny 5")

    application = web.Application()
    application.router.add_get("/metrics", page)
    engines = Engines()
    async with TestServer(application) as server, pages.open_session() as session:
        engine = Engine(name="line-1", url=str(server.make_url("")), pid=41, devices=("gpu0",))
        clock = BootClock.equal_to_wall_now()
        poller = EnginePoller(
            LineCollector(), engine, clock, engines.feed, session, interval_seconds=0.02, devices_of=lambda _: ("gpu7",)
        )
        task = asyncio.create_task(poller.run())
        await engines.until(engines.samples)
        task.cancel()
    assert poller.engine.devices == ("gpu0",)


async def test_version_is_asked_again_after_a_restart() -> None:
    counters = iter([100, 200])
    asked = 0

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=f"tiny {next(counters, 3)}")

    async def version(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(text=str(asked))

    application = web.Application()
    application.router.add_get("/metrics", page)
    application.router.add_get("/version", version)
    engines = Engines()
    async with TestServer(application) as server, pages.open_session() as session:
        engine = Engine(name="line-1", url=str(server.make_url("")))
        clock = BootClock.equal_to_wall_now()
        poller = EnginePoller(LineCollector(), engine, clock, engines.feed, session, interval_seconds=0.02)
        task = asyncio.create_task(poller.run())
        await engines.until(lambda: any(isinstance(item, Engine) and item.version == "2" for item in engines.fed))
        task.cancel()
    assert asked == 2


async def garbage(_request: web.Request) -> web.Response:
    return web.Response(body=b"\xff\xfe<html>")


async def html(_request: web.Request) -> web.Response:
    return web.Response(text="<html><body>hello</body></html>", content_type="text/html")


async def missing(_request: web.Request) -> web.Response:
    raise web.HTTPNotFound


async def broken(_request: web.Request) -> web.Response:
    raise web.HTTPInternalServerError


async def elsewhere(_request: web.Request) -> web.Response:
    raise web.HTTPFound("http://127.0.0.1:1/")


async def huge(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        for _ in range(20):
            await response.write(b"x" * 1_000_000)
    return response


async def drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"x")
            await asyncio.sleep(0.02)
    return response


async def silent(_request: web.Request) -> web.Response:
    await asyncio.sleep(30)
    return web.Response()


async def hangs_up(request: web.Request) -> web.Response:
    assert request.transport is not None
    request.transport.close()
    return web.Response()


async def bug(_request: web.Request) -> web.Response:
    return web.Response(text="bug")


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (garbage, "not_a_page"),
        (html, "not_a_page"),
        (missing, "http_404"),
        (broken, "http_500"),
        (elsewhere, "http_302"),
        (huge, "too_large"),
        (drip, "timeout"),
        (silent, "timeout"),
        (hangs_up, "disconnected"),
        (bug, "crash"),
    ],
)
async def test_bad_page_is_a_reason(handler: Handler, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason == "timeout":
        monkeypatch.setattr(pages, "TIMEOUT_SECONDS", 0.3)
    async with polled(handler) as engines:
        await engines.until(lambda: len(engines.reports()) >= 2)
        assert {report.reason for report in engines.reports()} == {reason}
        assert {report.state for report in engines.reports()} == {SourceState.DOWN}
        assert not engines.samples()


async def test_unreachable_engine_is_refused(unused_tcp_port: int) -> None:
    engine = Engine(name="line-1", url=f"http://127.0.0.1:{unused_tcp_port}")
    async with polled(html, engine=engine) as engines:
        await engines.until(engines.reports)
        assert engines.reports()[0].reason == "refused"


async def test_recovers() -> None:
    answers = iter([missing])

    async def page(request: web.Request) -> web.StreamResponse:
        bad = next(answers, None)
        return await bad(request) if bad else web.Response(text="tiny 1")

    async with polled(page) as engines:
        await engines.until(lambda: len(engines.reports()) >= 2)
        assert [report.state for report in engines.reports()] == [SourceState.DOWN, SourceState.OK]


async def test_page_is_asked_for_uncompressed() -> None:
    encodings: list[str | None] = []

    async def page(request: web.Request) -> web.Response:
        encodings.append(request.headers.get("Accept-Encoding"))
        return web.Response(text="tiny 1")

    async with polled(page) as engines:
        await engines.until(engines.samples)
    assert encodings[0] == "identity"


def config_of(folder: Path, layers: int) -> None:
    folder.mkdir()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 100}
    (folder / "config.json").write_text(json.dumps({**sizes, "num_hidden_layers": layers}))


async def test_sizes_follow_the_model_and_never_what_was_configured(tmp_path: Path) -> None:
    config_of(tmp_path / "a", 3)
    config_of(tmp_path / "b", 5)
    models = iter([tmp_path / "a"] * 2)

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=f"{next(models, tmp_path / 'b')} 1")

    application = web.Application()
    application.router.add_get("/metrics", page)
    async with TestServer(application) as server:
        engine = Engine(name="line-1", url=str(server.make_url("")), kv_bytes_per_token=7.0)
        async with polled(page, engine=engine) as engines:
            await engines.until(lambda: any(isinstance(item, Engine) and item.layers == 5 for item in engines.fed))
    told = [item for item in engines.fed if isinstance(item, Engine)]
    assert [item.layers for item in told if item.model] == [3, 5]
    assert {item.kv_bytes_per_token for item in told} == {7.0}
    assert told[-1].sizes_from == "config_file"
