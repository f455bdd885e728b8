"""Engines that come, go, come back, and make place for others."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable

import pytest
from tests.support.engine_process import engine_port, engine_process

from jouled.api import EnginePage
from jouled.app.config import EngineConfig
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.engines import pages
from jouled.app.runtime.engines.discovery import find_engines
from jouled.app.runtime.engines.engine_processes import read_processes
from jouled.app.runtime.engines.pollers import EnginePollers
from jouled.app.runtime.engines.processes import start_ticks
from jouled.model.engine import Engine, EngineSample
from jouled.model.errors import SourceState
from jouled.model.readings import SourceReport
from jouled_collectors.engines.vllm import VllmCollector

DISCOVER = "jouled.app.runtime.engines.pollers.discover_engines"
COLLECTORS = {"vllm": VllmCollector()}


class Heard:
    """What was fed."""

    def __init__(self) -> None:
        self.items: list[object] = []
        self._news = asyncio.Event()

    def feed(self, item: object) -> str:
        self.items.append(item)
        self._news.set()
        return ""

    def states(self, source: str) -> list[SourceState]:
        return [item.state for item in self.items if isinstance(item, SourceReport) and item.source == source]

    def samples(self, engine: str) -> int:
        return sum(isinstance(item, EngineSample) and item.engine == engine for item in self.items)

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self._news.clear()
                with contextlib.suppress(TimeoutError):  # what is only logged is no news
                    await asyncio.wait_for(self._news.wait(), 0.05)


@contextlib.asynccontextmanager
async def pollers(
    monkeypatch: pytest.MonkeyPatch,
    port: int,
    *,
    configured: tuple[EngineConfig, ...] = (),
    look_seconds: float = 0.05,
) -> AsyncIterator[tuple[Heard, EnginePollers]]:
    """Pollers of the engines with this port in their arguments; others on this machine are none of ours."""

    def discover(collectors):
        return find_engines([each for each in read_processes(collectors) if str(port) in each.argv], collectors)

    class Often(EngineConfig, frozen=True, kw_only=True):
        interval_seconds: float = 0.05

    monkeypatch.setattr("jouled.app.runtime.engines.pollers.LOOK_SECONDS", look_seconds)
    monkeypatch.setattr(DISCOVER, discover)
    monkeypatch.setattr("jouled.app.runtime.engines.discovery.EngineConfig", Often)
    heard = Heard()
    async with pages.open_session() as session:
        found = EnginePollers(COLLECTORS, BootClock.equal_to_wall_now(), heard.feed, session)
        async with asyncio.TaskGroup() as group:
            found.start(group, configured, discover=True)
            try:
                yield heard, found
            finally:
                found.stop()


async def test_an_engine_that_is_gone_is_absent_and_back_with_another_process(monkeypatch) -> None:
    port = engine_port()
    name = f"vllm-{port}"
    async with pollers(monkeypatch, port) as (heard, found):
        with engine_process("--port", str(port)) as first:
            await heard.until(lambda: heard.samples(name))
            first.kill()
            await heard.until(lambda: SourceState.ABSENT in heard.states(name))
        assert [engine.pid for engine in found.engines()] == [first.pid], "the only one of its type stays known"
        assert found.askable() == [], "its port may be somebody else's"
        before = heard.samples(name)
        with engine_process("--port", str(port)) as second:
            await heard.until(lambda: heard.samples(name) > before and heard.states(name)[-1] is SourceState.OK)
            assert [engine.pid for engine in found.engines()] == [second.pid]
            assert found.askable() == found.engines()


async def test_whoever_takes_the_port_of_an_engine_that_is_gone_is_asked_nothing(monkeypatch) -> None:
    port = engine_port()
    name = f"vllm-{port}"
    async with pollers(monkeypatch, port) as (heard, _):
        with engine_process("--port", str(port)) as engine:
            await heard.until(lambda: heard.samples(name))
            engine.kill()
            asked: list[bytes] = []

            async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                asked.append(await reader.read(100))
                writer.close()

            server = await asyncio.start_server(stranger, "127.0.0.1", port)
            async with server:
                await heard.until(lambda: SourceState.ABSENT in heard.states(name))
                looks = 0

                def looked(collectors):
                    nonlocal looks
                    looks += 1
                    return find_engines([], collectors)

                monkeypatch.setattr(DISCOVER, looked)
                await heard.until(lambda: looks > 5)
    assert asked == []


async def test_an_engine_that_fails_is_identified_again_before_it_is_asked_again(monkeypatch) -> None:
    port = engine_port()
    name = f"vllm-{port}"
    with engine_process("--port", str(port)) as engine:
        async with pollers(monkeypatch, port, look_seconds=3600.0) as (heard, _):
            await heard.until(lambda: heard.samples(name))
            # It lives on, and serves something else from now on.
            monkeypatch.setattr(DISCOVER, lambda collectors: find_engines([], collectors))
            monkeypatch.setattr(VllmCollector, "page", no_page)
            await heard.until(lambda: SourceState.ABSENT in heard.states(name))
            assert heard.states(name) == [SourceState.OK, SourceState.DOWN, SourceState.ABSENT]
            assert start_ticks(engine.pid) is not None


def no_page(*_: object) -> EnginePage:
    raise ValueError("no page of vLLM")


async def test_one_that_moved_to_another_port_is_the_only_one_of_its_type(monkeypatch) -> None:
    port, other = engine_port(), engine_port()
    # Both command lines hold the first number, by which this test tells its engines from others.
    async with pollers(monkeypatch, port) as (heard, found):
        with engine_process("--port", str(port)) as first:
            await heard.until(lambda: heard.samples(f"vllm-{port}"))
            first.kill()
        with engine_process("--seed", str(port), "--port", str(other)):
            await heard.until(lambda: heard.samples(f"vllm-{other}"))
            await heard.until(lambda: SourceState.ABSENT in heard.states(f"vllm-{port}"))
            assert [engine.name for engine in found.engines()] == [f"vllm-{other}"]


async def test_a_configured_engine_gets_its_process_and_others_are_only_told_of(monkeypatch, caplog) -> None:
    port, other = engine_port(), engine_port()
    config = EngineConfig(name="chat", type="vllm", url=f"http://localhost:{port}", interval_seconds=0.05)
    with (
        engine_process("--port", str(port)) as named,
        engine_process("--seed", str(port), "--port", str(other)) as unnamed,
    ):
        async with pollers(monkeypatch, port, configured=(config,)) as (heard, found):
            await heard.until(lambda: [engine.pid for engine in found.engines()] == [named.pid])
            await heard.until(lambda: heard.samples("chat"))
            await heard.until(
                lambda: f"process {unnamed.pid} is a vllm engine that no [[engines]] names" in caplog.text
            )
        assert f'[[engines]]\ntype = "vllm"\nurl = "http://127.0.0.1:{other}"' in caplog.text
        assert {item.name for item in heard.items if isinstance(item, Engine)} == {"chat"}
        assert unnamed.asked == []


async def test_a_configured_process_stays_as_long_as_it_lives(monkeypatch) -> None:
    port = engine_port()
    config = EngineConfig(
        name="chat", type="vllm", url=f"http://127.0.0.1:{port}", pid=os.getpid(), interval_seconds=0.05
    )
    with engine_process("--port", str(port)):
        async with pollers(monkeypatch, port, configured=(config,)) as (heard, found):
            await heard.until(lambda: heard.samples("chat") > 3)
            assert [engine.pid for engine in found.engines()] == [os.getpid()]


async def test_a_configured_engine_is_asked_whatever_is_found(monkeypatch) -> None:
    port = engine_port()
    config = EngineConfig(name="chat", type="vllm", url=f"http://127.0.0.1:{port}", interval_seconds=0.05)
    async with pollers(monkeypatch, port, configured=(config,)) as (heard, _):
        await heard.until(lambda: heard.states("chat") == [SourceState.DOWN])
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", port)
        async with server:
            await heard.until(lambda: len(heard.states("chat")) > 1)
    assert SourceState.ABSENT not in heard.states("chat")


async def test_engines_are_known_once_they_were_looked_for(monkeypatch) -> None:
    port = engine_port()
    with engine_process("--port", str(port)):
        async with pollers(monkeypatch, port, look_seconds=60.0) as (heard, found):
            assert not found.are_known
            await heard.until(lambda: found.are_known)
            assert [engine.name for engine in found.engines()] == [f"vllm-{port}"]


async def test_configured_engines_are_known_at_once_and_a_look_that_hangs_is_not_waited_for(monkeypatch) -> None:
    engine = EngineConfig(name="a", type="vllm", url="http://127.0.0.1:1")
    async with pollers(monkeypatch, 1, configured=(engine,), look_seconds=60.0) as (_, found):
        assert found.are_known
    async with pollers(monkeypatch, 1, look_seconds=0.0) as (_, found):
        assert found.are_known


async def test_a_look_that_fails_stops_no_polling(monkeypatch, caplog) -> None:
    port = engine_port()
    name = f"vllm-{port}"
    looks = []

    def fails(collectors):
        looks.append(len(looks))
        raise RuntimeError("a process that nobody thought of")

    with engine_process("--port", str(port)):
        async with pollers(monkeypatch, port) as (heard, _):
            await heard.until(lambda: heard.samples(name))
            monkeypatch.setattr(DISCOVER, fails)
            await heard.until(lambda: len(looks) > 1)
            before = heard.samples(name)
            await heard.until(lambda: heard.samples(name) > before)
    assert "looking for engines failed unexpectedly" in caplog.text


async def test_any_number_of_programs_called_as_engines_are_is_bounded(monkeypatch, caplog) -> None:
    port = engine_port()
    monkeypatch.setattr("jouled.app.runtime.engines.pollers.MOST_FOUND", 1)
    with engine_process("--port", str(port)) as first:
        async with pollers(monkeypatch, port) as (heard, found):
            await heard.until(lambda: heard.samples(f"vllm-{port}"))
            other = engine_port()
            with engine_process(str(port), "--port", str(other)):
                await heard.until(lambda: "more than 1 engines run here" in caplog.text)
                assert [engine.pid for engine in found.engines()] == [first.pid]
                first.kill()
                await heard.until(lambda: heard.samples(f"vllm-{other}"))


async def test_notes_on_ever_new_processes_fill_neither_journal_nor_memory(caplog) -> None:
    async with pages.open_session() as session:
        pollers = EnginePollers(COLLECTORS, BootClock.equal_to_wall_now(), Heard().feed, session)
        for look in range(3):
            pollers._tell([f"process {pid} of look {look} is none" for pid in range(1_500)])
        assert len(caplog.records) == 3 * 21
        assert caplog.records[-1].getMessage() == "and 1480 more of the kind: `jouled check` lists them"
        assert len(pollers._notes) == 1_500
        pollers._tell(["process 1499 of look 2 is none"])
        assert len(caplog.records) == 3 * 21, "it was said before"
        assert len(pollers._notes) == 1_000


async def test_engines_that_hang_take_no_place_from_others() -> None:
    async with pages.open_session() as session:
        assert session.connector is not None
        assert session.connector.limit == 0
