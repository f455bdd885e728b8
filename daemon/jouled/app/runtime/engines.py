"""The poller of an engine: reads its page on an absolute schedule and learns its version and model."""

import asyncio
import logging
from collections.abc import Callable

import aiohttp
from msgspec.structs import replace

from jouled.api import Clock, EngineCollector, EnginePage
from jouled.app.runtime.backoff import Backoff
from jouled.app.runtime.pages import fetch
from jouled.model.engine import Engine, EngineSample
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import SourceReport
from jouled.model.units import nanoseconds, seconds

Feed = Callable[[Engine | EngineSample | SourceReport], object]

_log = logging.getLogger(__name__)


class EnginePoller:
    """Polls one engine; its source is named as the engine is. One request is in flight at any time."""

    def __init__(
        self,
        collector: EngineCollector,
        engine: Engine,
        clock: Clock,
        feed: Feed,
        session: aiohttp.ClientSession,
        *,
        interval_seconds: float = 5.0,
    ) -> None:
        self.engine = engine
        self._collector = collector
        self._clock = clock
        self._feed = feed
        self._session = session
        self._address = engine.url.rstrip("/")
        self._interval_ns = nanoseconds(interval_seconds)
        self._backoff = Backoff(interval_seconds, max(30.0, interval_seconds))
        self._asks_version = not engine.version
        self._model_is_given = bool(engine.model)
        self._version_is_due = True
        self._works = False
        self._last: EnginePage | None = None

    async def run(self) -> None:
        """Poll until cancelled. An engine that fails is asked again with back-off."""
        while True:
            try:
                await self._poll()
            except SourceError as error:
                self._fail(error)
                await asyncio.sleep(self._backoff.next_seconds())
            else:
                self._backoff.reset()
                now_ns = self._clock.now_ns()
                await asyncio.sleep(seconds(self._interval_ns - now_ns % self._interval_ns))

    def moved_to(self, pid: int | None) -> None:
        """The engine runs in another process now."""
        self._version_is_due = True
        self.engine = replace(self.engine, pid=pid)
        self._feed(self.engine)

    async def _poll(self) -> None:
        begun_ns = self._clock.now_ns()
        body = await fetch(self._session, self._address + self._collector.page_path)
        read_ns = (begun_ns + self._clock.now_ns()) // 2
        page = self._page(body)
        if self._version_is_due or _restarted(self._last, page):
            self._version_is_due = False
            await self._learn_version()
        self._last = page
        self._learn(model=page.model if page.model and not self._model_is_given else self.engine.model)
        self._feed(_sample(self.engine.name, read_ns, page))
        if not self._works:
            self._works = True
            self._feed(SourceReport(source=self.engine.name, state=SourceState.OK, t_ns=self._clock.now_ns()))

    def _page(self, body: bytes) -> EnginePage:
        try:
            return self._collector.page(body)
        except ValueError as error:
            raise SourceError(SourceState.DOWN, "not_a_page", f"{self.engine.url} is no page: {error}") from error
        except Exception as error:  # the boundary to plug-ins: a bug in one stops no other engine
            _log.exception("the collector of engine %s failed unexpectedly", self.engine.name)
            raise SourceError(SourceState.DOWN, "crash", f"{type(error).__name__}: {error}") from error

    async def _learn_version(self) -> None:
        """Ask for the version; an engine that does not tell is metered all the same."""
        if not (self._asks_version and self._collector.version_path):
            return
        try:
            body = await fetch(self._session, self._address + self._collector.version_path)
            self._learn(version=self._collector.version(body))
        except Exception as error:  # noqa: BLE001 - a plug-in's bug in reading a version stops no metering
            _log.info("engine %s does not tell its version: %s", self.engine.name, error)

    def _learn(self, **news: str) -> None:
        engine = replace(self.engine, **news)
        if engine != self.engine:
            self.engine = engine
            self._feed(engine)

    def _fail(self, error: SourceError) -> None:
        self._works = False
        self._version_is_due = True
        self._feed(
            SourceReport(
                source=self.engine.name,
                state=error.state,
                reason=error.reason,
                message=error.message,
                mend=error.mend,
                t_ns=self._clock.now_ns(),
            )
        )


def _restarted(before: EnginePage | None, now: EnginePage) -> bool:
    """Whether a counter went back: the engine is a new process, perhaps of another version."""
    if before is None:
        return False
    pairs = ((before.generation_tokens, now.generation_tokens), (before.prompt_tokens, now.prompt_tokens))
    return any(old is not None and new is not None and new < old for old, new in pairs)


def _sample(engine: str, t_ns: int, page: EnginePage) -> EngineSample:
    return EngineSample(
        engine=engine,
        t_ns=t_ns,
        model=page.model,
        steps=page.steps,
        prompt_tokens=page.prompt_tokens,
        cached_prompt_tokens=page.cached_prompt_tokens,
        generation_tokens=page.generation_tokens,
        requests_running=page.requests_running,
        requests_waiting=page.requests_waiting,
    )
