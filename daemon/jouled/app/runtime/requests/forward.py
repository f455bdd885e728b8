"""Passes trace bodies on to another collector, unchanged, and never delays the one who sent them."""

import asyncio
import logging
from collections import deque
from collections.abc import MutableMapping
from http import HTTPStatus

import aiohttp
from msgspec import Struct

from jouled.outputs.backoff import Backoff

MOST_BODIES = 1_000
MOST_BYTES = 32 * 1024 * 1024
"""Held at most while the other collector is away; what comes then is dropped and counted."""

MARKER = "X-Jouled-Forwarded"
"""Header of every body that was forwarded; one that carries it goes no further, so that none goes round."""

_TIMEOUT = aiohttp.ClientTimeout(total=10.0)
_ATTEMPTS = 8
_AGAIN = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)
"""Answers after which OTLP/HTTP asks to send again."""

_log = logging.getLogger(__name__)


class Body(Struct, frozen=True):
    """One request body as it came, still compressed if it was."""

    content: bytes
    content_type: str
    content_encoding: str = ""
    was_forwarded: bool = False


class Forwarder:
    """A bounded queue towards one URL.

    `counts` takes the bodies by result: sent, full, refused, unreachable, looped (a jouled forwarded it already).
    """

    def __init__(self, url: str, counts: MutableMapping[str, int]) -> None:
        self._counts = counts
        self._url = url
        self._queue: deque[Body] = deque()
        self._queued_bytes = 0
        self._arrived = asyncio.Event()

    def put(self, body: Body) -> None:
        """Queue a body, or drop it if the queue is full or it was forwarded before; returns at once."""
        if body.was_forwarded:
            self._drop("looped")
            return
        if len(self._queue) >= MOST_BODIES or self._queued_bytes + len(body.content) > MOST_BYTES:
            self._drop("full")
            return
        self._queue.append(body)
        self._queued_bytes += len(body.content)
        self._arrived.set()

    async def run(self) -> None:
        """Send what is queued, in order, until cancelled."""
        async with aiohttp.ClientSession(timeout=_TIMEOUT, cookie_jar=aiohttp.DummyCookieJar()) as session:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                while self._queue:
                    await self._send_first(session)

    async def _send_first(self, session: aiohttp.ClientSession) -> None:
        body = self._queue[0]
        backoff = Backoff(0.5, 30.0)
        result = "unreachable"
        for _attempt in range(_ATTEMPTS):
            result = await self._attempt(session, body)
            if result != "unreachable":
                break
            await asyncio.sleep(backoff.next_seconds())
        self._queue.popleft()
        self._queued_bytes -= len(body.content)
        if result == "sent":
            self._count("sent")
        else:
            self._drop(result)

    async def _attempt(self, session: aiohttp.ClientSession, body: Body) -> str:
        headers = {"Content-Type": body.content_type, MARKER: "1"}
        if body.content_encoding:
            headers["Content-Encoding"] = body.content_encoding
        try:
            async with session.post(self._url, data=body.content, headers=headers, allow_redirects=False) as response:
                await response.content.readany()
                if response.ok:
                    return "sent"
                return "unreachable" if response.status in _AGAIN else "refused"
        except (aiohttp.ClientError, OSError, ValueError):
            return "unreachable"

    def _drop(self, reason: str) -> None:
        dropped = self._count(reason)
        if dropped & (dropped - 1) == 0:  # the 1st, 2nd, 4th, 8th …: a collector that stays away floods no journal
            _log.warning("%d trace bodies were not forwarded to %s: %s", dropped, self._url, reason)

    def _count(self, result: str) -> int:
        self._counts[result] = self._counts.get(result, 0) + 1
        return self._counts[result]
