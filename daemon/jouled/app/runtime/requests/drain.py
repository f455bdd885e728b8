"""Empties engines' queues of finished requests for one receiver that owns them."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

import aiohttp

from jouled.api import DrainSettings, MalformedBodyError, PageDrain, PageRead, Received
from jouled.app.runtime.engines.pages import fetch
from jouled.app.runtime.requests.hand_over import Accept, Count, hand_over
from jouled.model.engine import Engine
from jouled.model.errors import SourceError
from jouled.outputs.backoff import Backoff

_MOST_BACKOFF_SECONDS = 30.0

_log = logging.getLogger(__name__)


class Drain:
    """Asks every engine of the receiver's type, each by itself; what an answer held is gone at the engine.

    engines: those that may be asked now. The port of one that is gone may be another's, so that nothing is sent there.
    An answer that cannot be read is lost, and counted: as `page_` and what was wrong, or `malformed_page`.
    """

    def __init__(
        self,
        receiver: PageDrain,
        settings: DrainSettings,
        accept: Accept,
        count: Count,
        engines: Callable[[], Iterable[Engine]],
        session: aiohttp.ClientSession,
    ) -> None:
        self._receiver = receiver
        self._settings = settings
        self._accept = accept
        self._count = count
        self._engines = engines
        self._session = session
        self._drained: dict[str, asyncio.Task[None]] = {}
        self._said: set[str] = set()

    async def run(self) -> None:
        """Ask until cancelled, engines that come later too."""
        async with asyncio.TaskGroup() as group:
            while True:
                for name in self._urls().keys() - self._drained.keys():
                    self._drained[name] = group.create_task(self._drain(name), name=f"drain {name}")
                await asyncio.sleep(self._settings.interval_seconds)

    async def _drain(self, engine: str) -> None:
        backoff = Backoff(self._settings.interval_seconds, max(_MOST_BACKOFF_SECONDS, self._settings.interval_seconds))
        while url := self._urls().get(engine):
            if await self.drain_once(engine, url):
                backoff.reset()
                await asyncio.sleep(self._settings.interval_seconds)
            else:
                await asyncio.sleep(backoff.next_seconds())
        del self._drained[engine]

    async def drain_once(self, engine: str, url: str) -> bool:
        """Ask one engine and hand over what it tells; whether it answered as it should."""
        try:
            body = await fetch(self._session, url.rstrip("/") + self._receiver.path)
        except SourceError as error:
            self._say_once(f"{engine}: {error}")
            if error.reason in {"too_large", "disconnected", "timeout"}:  # it may have emptied the queue for us
                self._count(f"page_{error.reason}", 1)
            return False
        read = PageRead(engine=engine, unix_ns=time.time_ns(), steady_ns=time.monotonic_ns())
        received = self._decode(body, read)
        if received is None:
            return False
        await hand_over(self._receiver.name, self._accept, received)
        return True

    def _decode(self, body: bytes, read: PageRead) -> Received | None:
        try:
            return self._receiver.decode_page(body, read, self._settings)
        except MalformedBodyError as error:
            self._say_once(f"{read.engine}: its answer cannot be read: {error} {error.position}".rstrip())
        except Exception:  # noqa: BLE001 - the boundary to plug-ins: a bug in one stops no other
            _log.exception("the receiver %s failed unexpectedly", self._receiver.name)
        self._count("malformed_page", 1)
        return None

    def _urls(self) -> dict[str, str]:
        kind = self._receiver.engine_type
        return {engine.name: engine.url for engine in self._engines() if engine.type == kind and engine.url}

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            _log.warning("%s: %s", self._receiver.name, sentence)
