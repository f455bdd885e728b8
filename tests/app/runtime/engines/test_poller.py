"""The poller against real sockets: good pages, and every kind of bad one."""

import asyncio
import contextlib
import json
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from jouled.api import EngineFacts, EnginePage
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.engines import pages
from jouled.app.runtime.engines.poller import EnginePoller
from jouled.core.attribution.census import Monotone
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


class TalkativeCollector(LineCollector):
    """A page is `MODEL GENERATED` and then words `NAME=VALUE` of facts, of `counts` and of `joules`."""

    energy_path: ClassVar[str] = "/energy"

    def page(self, body: bytes) -> EnginePage:
        model, generated, *words = body.decode().split(" ")
        told = dict(word.split("=") for word in words)
        semantics = {"finish": CounterSemantics(generation_at="finish")}.get(told.pop("counts", ""))
        facts = EngineFacts(**told)
        return EnginePage(model=model, generation_tokens=int(generated), facts=facts, semantics=semantics)

    def facts(self, argv: Sequence[str], environ: Mapping[str, str]) -> EngineFacts:
        if "bug" in argv:
            raise KeyError("bug")
        words = [
            word.split("=") for word in argv if "=" in word and word.split("=")[0] in EngineFacts.__struct_fields__
        ]
        return EngineFacts(**dict(words))

    def energy_joules(self, body: bytes) -> float:
        return float(body)


class ModelsCollector(LineCollector):
    """A page is `NAME=GENERATED` for each of the server's models; one without models does not tell the counter."""

    def page(self, body: bytes) -> EnginePage:
        if not body:
            return EnginePage()
        told = dict(word.split("=") for word in body.decode().split())
        counts = {name: int(generated) for name, generated in told.items()}
        return EnginePage(generation_tokens=sum(counts.values()), counts_by_model={"generation": counts})


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
    token_file: str = "",
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
        poller = EnginePoller(
            collector, engine, clock, engines.feed, session, slos=slos, interval_seconds=0.05, token_file=token_file
        )
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
    monkeypatch.setattr("jouled.app.runtime.engines.poller.LATENCIES_SECONDS", 0.0)
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
    monkeypatch.setattr("jouled.app.runtime.engines.poller.DEVICES_SECONDS", 0.0)
    monkeypatch.setattr("jouled.app.runtime.engines.poller.family_of", lambda pid: frozenset({pid, pid + 1}))
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


async def test_what_a_model_takes_along_is_told_and_a_restart_is_not_taken_for_it() -> None:
    told = [
        ("a=10 b=5", 0),
        ("a=12 b=5", 0),
        ("b=6", 12),  # a is unloaded
        ("a=0 b=6", 0),
        ("a=3 b=6 c=1", 0),
        ("a=1 b=6 c=1", 3),  # a was unloaded and loaded again in between
        ("a=1 b=0 c=0", 7),
        ("a=0 b=0 c=0", 0),  # the server began anew
        ("a=2 b=9", 0),
        ("", 0),  # all were unloaded
    ]
    bodies = iter([body for body, _ in told])

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=next(bodies, ""))

    async with polled(page, collector=ModelsCollector()) as engines:
        await engines.until(lambda: len(engines.samples()) >= len(told))
    departed = [sample.departed_counts.get("generation", 0) for sample in engines.samples()]
    assert departed[: len(told)] == [tokens for _, tokens in told]


async def increases(*bodies: str) -> list[int]:
    """By how much the core takes the engine's tokens to have grown, page by page."""

    async def page(_request: web.Request) -> web.Response:
        return web.Response(text=bodies[min(len(engines.samples()), len(bodies) - 1)])

    async with polled(page, collector=ModelsCollector()) as engines:
        await engines.until(lambda: len(engines.samples()) >= len(bodies))
    counter = Monotone()
    samples = engines.samples()[: len(bodies)]
    return [counter.take(each.generation_tokens, each.departed_counts.get("generation", 0)) for each in samples]


async def test_a_model_gone_while_the_page_lacked_the_counter_makes_no_restart() -> None:
    assert await increases("a=5000 b=900", "", "b=910", "b=915") == [0, 0, 10, 5]


async def test_all_models_gone_and_others_in_their_place() -> None:
    assert await increases("a=10 b=0", "b=0 c=12", "d=30", "", "e=50", "f=7") == [0, 12, 30, 0, 50, 7]


async def test_what_another_process_counts_says_nothing_of_the_one_before() -> None:
    bodies = iter(["a=10 b=1000", "a=11 b=0"])

    async def page(_request: web.Request) -> web.Response:
        if engines.samples():
            poller.moved_to(None)
        return web.Response(text=next(bodies, "a=12 b=0"))

    application = web.Application()
    application.router.add_get("/metrics", page)
    engines = Engines()
    async with TestServer(application) as server, pages.open_session() as session:
        engine = Engine(name="line-1", url=str(server.make_url("")))
        clock = BootClock.equal_to_wall_now()
        poller = EnginePoller(ModelsCollector(), engine, clock, engines.feed, session, interval_seconds=0.02)
        task = asyncio.create_task(poller.run())
        await engines.until(lambda: len(engines.samples()) >= 2)
        task.cancel()
    assert [sample.departed_counts for sample in engines.samples()[:2]] == [{}, {}]


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


class Process:
    """A process with these arguments, as it was started."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments

    async def __aenter__(self) -> int:
        program = (sys.executable, "-c", "import sys; sys.stdin.read()")
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*program, *self._arguments, stdin=pipe)
        return self._process.pid

    async def __aexit__(self, *_: object) -> None:
        self._process.stdin.close()
        await self._process.wait()


def told_of(engines: Engines, **wanted: object) -> Callable[[], bool]:
    """Whether the engine was told to be like this."""
    told = [item for item in engines.fed if isinstance(item, Engine)]
    return bool(told) and all(getattr(told[-1], name) == value for name, value in wanted.items())


@pytest.mark.parametrize(
    ("configured", "page", "argv", "wanted"),
    [
        ({}, "", (), {"role": "unified", "precision": "", "parallelism": "", "kv_connector": "", "speculation": ""}),
        (
            {},
            "",
            ("role=decode", "precision=fp8", "parallelism=tp4", "kv_connector=nixl", "speculation=eagle"),
            {
                "role": "decode",
                "precision": "fp8",
                "parallelism": "tp4",
                "kv_connector": "nixl",
                "speculation": "eagle",
            },
        ),
        (
            {},
            " role=prefill precision=bf16",
            ("role=decode", "precision=fp8"),
            {"role": "prefill", "precision": "bf16"},
        ),
        ({"precision": "int4"}, " precision=bf16", ("precision=fp8",), {"precision": "int4"}),
        ({"version": "7"}, " version=8", ("version=9",), {"version": "7"}),
        ({}, " version=8", ("version=9",), {"version": "8"}),
        ({"model": "mine"}, "", ("model=other",), {"model": "mine"}),
        ({}, " counts=finish", (), {"counter_semantics": CounterSemantics(generation_at="finish")}),
        ({}, "", ("bug",), {"model": "tiny", "role": "unified"}),
    ],
)
async def test_what_an_engine_is_by_configuration_page_and_arguments(configured, page, argv, wanted) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=f"tiny 5{page}")

    application = web.Application()
    application.router.add_get("/metrics", answer)
    async with TestServer(application) as server, Process(*argv) as pid:
        engine = Engine(name="line-1", url=str(server.make_url("")), pid=pid, **configured)
        async with polled(answer, engine=engine, collector=TalkativeCollector()) as engines:
            await engines.until(engines.samples)
    first_sample = next(place for place, item in enumerate(engines.fed) if isinstance(item, EngineSample))
    known = [engine, *(item for item in engines.fed[:first_sample] if isinstance(item, Engine))][-1]
    assert {name: getattr(known, name) for name in wanted} == wanted, "what it is goes before what it counts"


async def test_a_configured_role_goes_before_what_the_page_says() -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="tiny 5 role=decode")

    application = web.Application()
    application.router.add_get("/metrics", answer)
    engines = Engines()
    async with TestServer(application) as server, pages.open_session() as session:
        engine = Engine(name="line-1", url=str(server.make_url("")))
        poller = EnginePoller(
            TalkativeCollector(), engine, BootClock.equal_to_wall_now(), engines.feed, session, role="unified"
        )
        task = asyncio.create_task(poller.run())
        await engines.until(engines.samples)
        task.cancel()
    assert poller.engine.role == "unified"


async def test_another_process_is_looked_at_anew() -> None:
    """An engine comes back with other arguments and another model: nothing of before stays."""
    text = "tiny 100"

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text=text)

    application = web.Application()
    application.router.add_get("/metrics", answer)
    engines = Engines()
    async with (
        TestServer(application) as server,
        pages.open_session() as session,
        Process("speculation=eagle", "parallelism=tp2") as before,
        Process("parallelism=tp4") as after,
    ):
        engine = Engine(name="line-1", url=str(server.make_url("")), pid=before)
        clock = BootClock.equal_to_wall_now()
        poller = EnginePoller(TalkativeCollector(), engine, clock, engines.feed, session, interval_seconds=0.02)
        task = asyncio.create_task(poller.run())
        await engines.until(lambda: told_of(engines, speculation="eagle", parallelism="tp2"))
        text = "other 300"
        poller.moved_to(after)
        await engines.until(lambda: told_of(engines, model="other", speculation="", parallelism="tp4", pid=after))
        task.cancel()


async def test_the_energy_that_an_engine_meters_itself_is_told_with_a_sample(monkeypatch) -> None:
    monkeypatch.setattr("jouled.app.runtime.engines.poller.ENERGY_SECONDS", 0.0)
    answers = iter(["12.5", "13.5", "no number"])
    asked = 0

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="tiny 5")

    async def energy(_request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.Response(text=next(answers))

    application = web.Application()
    application.router.add_get("/metrics", answer)
    application.router.add_get("/energy", energy)
    engines = Engines()
    async with TestServer(application) as server, pages.open_session() as session:
        engine = Engine(name="line-1", url=str(server.make_url("")))
        clock = BootClock.equal_to_wall_now()
        poller = EnginePoller(TalkativeCollector(), engine, clock, engines.feed, session, interval_seconds=0.02)
        task = asyncio.create_task(poller.run())
        await engines.until(lambda: len(engines.samples()) >= 6)
        task.cancel()
    told = [sample.reported_energy_joules for sample in engines.samples()[:6]]
    assert told == [12.5, 13.5, None, None, None, None]
    assert asked == 3, "one that does not tell is left alone for a while"
    assert [report.state for report in engines.reports()] == [SourceState.OK]


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


async def stalls(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 100
    await response.prepare(request)
    await response.write(b"tiny 5")
    await asyncio.sleep(30)
    return response


async def locked(_request: web.Request) -> web.Response:
    raise web.HTTPUnauthorized


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
        (stalls, "timeout"),
        (locked, "http_401"),
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


async def key_wanted(request: web.Request) -> web.Response:
    if request.headers.get("Authorization") != "Bearer s3cr3t":
        return web.Response(status=401)
    return web.Response(text="tiny 5")


async def test_a_page_that_asks_for_a_key_gets_it_anew_each_time(tmp_path: Path) -> None:
    token = tmp_path / "engine.token"
    async with polled(key_wanted, token_file=str(token)) as engines:
        await engines.until(engines.reports)
        report = engines.reports()[0]
        assert (report.state, report.reason) == (SourceState.DENIED, "token_unreadable")
        assert str(token) in report.message
        token.write_text("s3cr3t\n")
        await engines.until(engines.samples)
    assert not [report for report in engines.reports() if "s3cr3t" in report.message]


async def test_a_page_that_asks_for_a_key_tells_how_to_name_one() -> None:
    async with polled(key_wanted) as engines:
        await engines.until(engines.reports)
        assert "token_file" in engines.reports()[0].mend


async def test_a_redirect_is_told_with_where_it_leads() -> None:
    async with polled(elsewhere) as engines:
        await engines.until(engines.reports)
        assert "leads on to http://127.0.0.1:1/, which is not followed" in engines.reports()[0].message


@pytest.mark.parametrize("bad", [stalls, silent, drip, locked, huge, garbage, hangs_up, bug])
async def test_a_bad_engine_costs_another_nothing(bad: Handler) -> None:
    """While one answer is on its way, or after one that failed, the other engine is read as ever."""
    generated, asked = 0, asyncio.Event()

    async def good(_request: web.Request) -> web.Response:
        nonlocal generated
        generated += 5
        return web.Response(text=f"tiny {generated}")

    async def observed(request: web.Request) -> web.StreamResponse:
        asked.set()
        return await bad(request)

    async with polled(observed) as others, polled(good) as engines:
        await asked.wait()
        before = len(engines.samples())
        await engines.until(lambda: len(engines.samples()) >= before + 5)
        assert not others.samples()
    told = [sample.generation_tokens for sample in engines.samples()]
    assert told == [5 * count for count in range(1, len(told) + 1)], "no page was left out"
    assert [report.state for report in engines.reports()] == [SourceState.OK]


async def test_a_page_of_five_megabytes_is_read_beside_the_loop(monkeypatch) -> None:
    threads = []

    class PaddedCollector(LineCollector):
        def page(self, body: bytes) -> EnginePage:
            threads.append(threading.current_thread())
            return super().page(body.strip())

    async def page(_request: web.Request) -> web.Response:
        return web.Response(body=b"tiny 5" + b" " * 5_000_000)

    async with polled(page, collector=PaddedCollector()) as engines:
        await engines.until(lambda: len(engines.samples()) >= 2)
    assert threading.main_thread() not in threads
    assert engines.samples()[0].generation_tokens == 5


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
