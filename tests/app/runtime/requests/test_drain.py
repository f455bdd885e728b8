"""Emptying an engine's queue over HTTP: each record once, and an engine that fails costs others nothing."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import ClassVar

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from jouled.api import (
    DrainSettings,
    EngineHint,
    FileFollow,
    FollowSettings,
    MalformedBodyError,
    PageRead,
    Received,
    ReceivedRequest,
)
from jouled.app.runtime.engines import pages
from jouled.app.runtime.engines.pages import open_session
from jouled.app.runtime.requests import hand_over
from jouled.app.runtime.requests.drain import Drain
from jouled.app.runtime.requests.receivers import Receivers
from jouled.model.engine import Engine
from jouled.model.errors import JouledError
from jouled.model.requests import RequestEvent, RequestStart
from jouled_collectors.requests.tensorrt_llm_records import TensorrtLlmRecordsReceiver, TensorrtLlmRecordsSettings


class Queue:
    """An engine whose page tells of each request once. `broken` answers come first."""

    def __init__(self, *broken: web.StreamResponse) -> None:
        self.waiting: list[str] = []
        self.asked = 0
        self.paths: list[str] = []
        self._broken = list(broken)

    async def page(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        self.paths.append(request.path)
        if self._broken:
            return self._broken.pop(0)
        told, self.waiting = self.waiting, []
        return web.json_response(told)


class Records:
    name: ClassVar[str] = "records"
    settings_type: ClassVar[type[DrainSettings]] = DrainSettings
    engine_type: ClassVar[str] = "trt"
    path: ClassVar[str] = "/finished"

    def __init__(self) -> None:
        self.reads: list[PageRead] = []

    def decode_page(self, body: bytes, read: PageRead, settings: DrainSettings) -> Received:
        self.reads.append(read)
        if body == b"bug":
            raise ZeroDivisionError
        try:
            told = json.loads(body)
        except ValueError as error:
            raise MalformedBodyError(str(error)) from None
        hint = EngineHint(engine=read.engine)
        return Received(
            requests=[ReceivedRequest(event=RequestStart(engine="", id=each, arrival_ns=1), hint=hint) for each in told]
        )


class Core:
    def __init__(self, urls: Mapping[str, str]) -> None:
        self.engines = [Engine(name=name, type="trt", url=url) for name, url in urls.items()]
        self.taken: list[tuple[str, str]] = []
        self.counted: Counter[str] = Counter()
        self.full = 0

    async def accept(self, received: Received) -> Received:
        if self.full:
            self.full -= 1
            raise JouledError("the disk is full")
        self.taken += [(each.hint.engine, each.event.id) for each in received.requests]
        return received

    def count(self, reason: str, number: int) -> None:
        self.counted[reason] += number


SETTINGS = DrainSettings(own=True, interval_seconds=0.01)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hand_over.Backoff, "next_seconds", lambda _self: 0.01)


@contextlib.asynccontextmanager
async def serving(queue: Queue) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_get("/{path:.*}", queue.page)
    async with TestServer(application) as server:
        yield str(server.make_url("")).rstrip("/")


@contextlib.asynccontextmanager
async def draining(core: Core, receiver: Records | None = None) -> AsyncIterator[None]:
    async with open_session() as session:
        told = (core.accept, core.count, lambda: core.engines)
        task = asyncio.create_task(Drain(receiver or Records(), SETTINGS, *told, session).run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - bounded by the deadline above
            await asyncio.sleep(0.005)


async def test_every_engine_of_the_type_is_emptied() -> None:
    one, two, other = Queue(), Queue(), Queue()
    one.waiting, two.waiting = ["a", "b"], ["c"]
    async with serving(one) as first, serving(two) as second, serving(other) as third:
        core = Core({"one": first, "two": second})
        core.engines += [Engine(name="other", type="vllm", url=third), Engine(name="unasked", type="trt")]
        async with draining(core):
            await until(lambda: len(core.taken) == 3)
            one.waiting = ["d"]
            await until(lambda: len(core.taken) == 4)
    assert sorted(core.taken) == [("one", "a"), ("one", "b"), ("one", "d"), ("two", "c")]
    assert set(one.paths) == {"/finished"}
    assert not other.asked


async def test_both_clocks_of_the_reading_are_told() -> None:
    queue, records = Queue(), Records()
    before = time.time_ns(), time.monotonic_ns()
    async with serving(queue) as url, draining(Core({"one": url}), records):
        await until(lambda: records.reads)
    read = records.reads[0]
    assert before[0] <= read.unix_ns <= time.time_ns()
    assert before[1] <= read.steady_ns <= time.monotonic_ns()


async def test_an_engine_that_comes_later_and_one_that_goes() -> None:
    queue = Queue()
    async with serving(queue) as url:
        core = Core({})
        async with draining(core):
            queue.waiting = ["a"]
            core.engines = [Engine(name="late", type="trt", url=url)]
            await until(lambda: core.taken == [("late", "a")])
            core.engines = []
            await until(lambda: _is_quiet(queue))
            queue.waiting = ["b"]
            core.engines = [Engine(name="back", type="trt", url=url)]
            await until(lambda: ("back", "b") in core.taken)


def _is_quiet(queue: Queue) -> bool:
    asked, queue.asked = queue.asked, 0
    return not asked


async def test_what_was_read_is_held_until_it_is_kept() -> None:
    queue = Queue()
    queue.waiting = ["a"]
    async with serving(queue) as url:
        core = Core({"one": url})
        core.full = 3
        async with draining(core):
            await until(lambda: core.taken)
    assert core.taken == [("one", "a")]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (web.Response(text="<html>"), "malformed_page"),
        (web.Response(text="bug"), "malformed_page"),
        (web.Response(text="x" * 200), "page_too_large"),
        (web.Response(status=404), None),
        (web.Response(status=302, headers={"Location": "/elsewhere"}), None),
    ],
)
async def test_an_answer_that_is_none(
    broken: web.Response, reason: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pages, "LARGEST_PAGE_BYTES", 100)
    queue, sound = Queue(broken), Queue()
    queue.waiting, sound.waiting = ["a"], ["b"]
    async with serving(queue) as url, serving(sound) as other:
        core = Core({"one": url, "two": other})
        async with draining(core):
            await until(lambda: len(core.taken) == 2)
    assert core.counted == (Counter({reason: 1}) if reason else Counter())
    assert set(queue.paths) == {"/finished"}
    assert caplog.records


async def test_an_engine_that_stalls_costs_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "TIMEOUT_SECONDS", 0.2)
    stalled = asyncio.Event()
    sound = Queue()
    sound.waiting = ["b"]

    class Stalling(Queue):
        async def page(self, request: web.Request) -> web.StreamResponse:
            stalled.set()
            await asyncio.sleep(30)
            return web.json_response([])

    async with serving(Stalling()) as url, serving(sound) as other:
        core = Core({"one": url, "two": other})
        async with draining(core):
            await stalled.wait()
            await until(lambda: core.taken == [("two", "b")])
            await until(lambda: core.counted["page_timeout"])


async def test_tensorrt_llms_records_by_the_real_receiver() -> None:
    """As `trtllm-serve` answers: steady seconds, and each record once."""
    now = time.monotonic()
    timing = {"arrival_time": now - 2.0, "first_scheduled_time": now - 1.9, "first_token_time": now - 1.5}
    timing |= {"last_token_time": now - 0.5, "server_arrival_time": now - 2.1, "server_first_token_time": now - 1.5}
    blocks = {"num_total_allocated_blocks": 4, "num_reused_blocks": 0, "num_missed_blocks": 4}
    metrics = {"first_iter": 7, "last_iter": 26, "timing_metrics": timing, "kv_cache_metrics": blocks}
    queue = Queue(web.json_response([{"request_id": 3, "perf_metrics": metrics}]))
    taken: list[ReceivedRequest] = []

    async def accept(received: Received) -> Received:
        taken.extend(received.requests)
        return received

    async with serving(queue) as url, open_session() as session:
        engines = [Engine(name="trt", type="tensorrt_llm", url=url)]
        settings = TensorrtLlmRecordsSettings(own=True)
        drained = Drain(TensorrtLlmRecordsReceiver(), settings, accept, Core({}).count, lambda: engines, session)
        assert await drained.drain_once("trt", url)
        assert await drained.drain_once("trt", url)
    (received,) = taken
    assert queue.paths == ["/perf_metrics"] * 2
    assert isinstance(received.event, RequestEvent)
    assert received.event.generation_tokens == 20
    assert abs(received.event.last_token_ns - time.time_ns()) < 30e9
    assert received.event.last_token_ns - received.event.arrival_ns == pytest.approx(1.6e9, abs=1e3)


class Both(Records):
    """A receiver of two kinds, as the daemon starts it."""

    pattern: ClassVar[str] = "*.log"

    def decode_lines(self, lines: object, read: object, settings: object) -> Received:
        return Received()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"records": DrainSettings(own=True)}, ["drain records"]),
        ({"records": DrainSettings()}, []),
        ({"records": FollowSettings(directory="/nowhere")}, ["follow records"]),
        ({"records": FollowSettings()}, []),
        ({}, []),
    ],
)
async def test_only_what_is_switched_on_is_begun(
    settings: Mapping[str, DrainSettings | FollowSettings], expected: list[str], tmp_path: Path
) -> None:
    assert isinstance(Both(), FileFollow)
    core = Core({})
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
        told = (core.accept, core.count, lambda: core.engines, lambda: core.engines)
        receivers = Receivers(
            {"records": Both()}, *told, session, tmp_path, state_directory=tmp_path, settings=settings
        )
        tasks = receivers.start(group)
        assert [task.get_name() for task in tasks] == expected
        for task in tasks:
            task.cancel()
