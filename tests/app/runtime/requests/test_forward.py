"""Forwarding trace bodies to another collector."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from jouled.app.runtime.requests import forward
from jouled.app.runtime.requests.forward import Body, Forwarder

COUNTS: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def _fresh_counts() -> None:
    COUNTS.clear()


class Other:
    """The other collector: keeps what comes, answers as told, then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.bodies: list[tuple[bytes, str, str]] = []
        self.markers: list[str | None] = []
        self._statuses = list(statuses)

    async def take(self, request: web.Request) -> web.Response:
        headers = request.headers
        self.markers.append(headers.get(forward.MARKER))
        self.bodies.append((await request.content.read(), headers["Content-Type"], headers.get("Content-Encoding", "")))
        return web.Response(status=self._statuses.pop(0) if self._statuses else 200)


@contextlib.asynccontextmanager
async def forwarding(other: Other, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Forwarder]:
    monkeypatch.setattr(forward.Backoff, "next_seconds", lambda _self: 0.01)
    application = web.Application()
    application.router.add_post("/v1/traces", other.take)
    async with TestServer(application) as server:
        forwarder = Forwarder(str(server.make_url("/v1/traces")), COUNTS)
        task = asyncio.create_task(forwarder.run())
        try:
            yield forwarder
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - bounded by the deadline above
            await asyncio.sleep(0.005)


async def test_bodies_arrive_unchanged_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Other()
    async with forwarding(other, monkeypatch) as forwarder:
        forwarder.put(Body(b"\x1f\x8b-not-really-gzip", "application/x-protobuf", "identity"))
        forwarder.put(Body(b"{}", "application/json"))
        await until(lambda: COUNTS["sent"] == 2)
    assert other.bodies == [
        (b"\x1f\x8b-not-really-gzip", "application/x-protobuf", "identity"),
        (b"{}", "application/json", ""),
    ]


async def test_a_body_goes_round_no_further_than_once(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Other()
    async with forwarding(other, monkeypatch) as forwarder:
        forwarder.put(Body(b"round", "application/json", was_forwarded=True))
        forwarder.put(Body(b"new", "application/json"))
        await until(lambda: COUNTS["sent"] == 1)
    assert [content for content, *_ in other.bodies] == [b"new"]
    assert other.markers == ["1"]
    assert COUNTS["looped"] == 1


async def test_unavailable_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Other(503, 429)
    async with forwarding(other, monkeypatch) as forwarder:
        forwarder.put(Body(b"{}", "application/json"))
        await until(lambda: COUNTS["sent"] == 1)
    assert len(other.bodies) == 3


async def test_refused_body_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Other(400)
    async with forwarding(other, monkeypatch) as forwarder:
        forwarder.put(Body(b"bad", "application/json"))
        forwarder.put(Body(b"good", "application/json"))
        await until(lambda: COUNTS["sent"] == 1)
        assert COUNTS["refused"] == 1


def test_full_queue_drops_and_counts(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(forward, "MOST_BODIES", 2)
    forwarder = Forwarder("http://127.0.0.1:1/v1/traces", COUNTS)
    for _ in range(8):
        forwarder.put(Body(b"{}", "application/json"))
    assert COUNTS["full"] == 6
    assert len(caplog.records) == 3


def test_queue_is_bounded_in_bytes() -> None:
    forwarder = Forwarder("http://127.0.0.1:1/v1/traces", COUNTS)
    for _ in range(5):
        forwarder.put(Body(b"x" * 8 * 1024 * 1024, "application/json"))
    assert COUNTS["full"] == 1


async def test_unreachable_collector_is_given_up_in_the_end(
    monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int
) -> None:
    monkeypatch.setattr(forward.Backoff, "next_seconds", lambda _self: 0.0)
    forwarder = Forwarder(f"http://127.0.0.1:{unused_tcp_port}/v1/traces", COUNTS)
    forwarder.put(Body(b"{}", "application/json"))
    task = asyncio.create_task(forwarder.run())
    await until(lambda: COUNTS["unreachable"] == 1)
    task.cancel()
