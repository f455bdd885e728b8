"""The engines of the node: those configured, or those found, each with its poller."""

import asyncio
import logging
from collections.abc import Mapping, Sequence

import aiohttp
from msgspec.structs import replace

from jouled.api import Clock, EngineCollector
from jouled.app.config import EngineConfig
from jouled.app.runtime.device_processes import DevicesOf
from jouled.app.runtime.discovery import discover_engines
from jouled.app.runtime.engines import EnginePoller, Feed
from jouled.app.runtime.model_files import find_file_sizes
from jouled.model.engine import Engine
from jouled.model.parameters import Slo

LOOK_SECONDS = 30.0
"""Between two looks for engines that have started since."""

_log = logging.getLogger(__name__)


class EnginePollers:
    """Feeds every engine to the core and polls those that have a page."""

    def __init__(
        self,
        collectors: Mapping[str, EngineCollector],
        clock: Clock,
        feed: Feed,
        session: aiohttp.ClientSession,
        slos: Sequence[Slo] = (),
        devices_of: DevicesOf = lambda _: (),
    ) -> None:
        self._collectors = collectors
        self._clock = clock
        self._feed = feed
        self._session = session
        self._slos = slos
        self._devices_of = devices_of
        self._pollers: dict[str, EnginePoller] = {}
        self._unpolled: dict[str, Engine] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._notes: set[str] = set()

    def engines(self) -> list[Engine]:
        """All engines as they are known now."""
        return [*(poller.engine for poller in self._pollers.values()), *self._unpolled.values()]

    def start(self, group: asyncio.TaskGroup, configured: Sequence[EngineConfig], *, discover: bool) -> None:
        """Begin with the configured engines; without any, look for engines if that is wanted."""
        for config in configured:
            self._add(group, config)
        if discover and not configured:
            self._tasks.append(group.create_task(self._discover(group), name="discovery"))

    def stop(self) -> None:
        """Begin to end all pollers."""
        for task in self._tasks:
            task.cancel()

    def _add(self, group: asyncio.TaskGroup, config: EngineConfig) -> None:
        collector = self._collectors.get(config.type)
        engine = config.engine()
        if collector is not None:
            engine = replace(engine, counter_semantics=collector.semantics)
        self._feed(engine)
        if collector is None or not engine.url:
            self._unpolled[engine.name] = engine
            self._tasks.append(group.create_task(self._look_for_sizes(engine), name=f"sizes {engine.name}"))
            return
        poller = EnginePoller(
            collector,
            engine,
            self._clock,
            self._feed,
            self._session,
            slos=self._slos,
            interval_seconds=config.interval_seconds,
            replica=config.replica,
            devices_of=self._devices_of,
        )
        self._pollers[engine.name] = poller
        self._tasks.append(group.create_task(poller.run(), name=f"engine {engine.name}"))

    async def _look_for_sizes(self, engine: Engine) -> None:
        sized = await find_file_sizes(engine)
        if sized != engine:
            self._unpolled[engine.name] = sized
            self._feed(sized)

    async def _discover(self, group: asyncio.TaskGroup) -> None:
        while True:
            found = await asyncio.to_thread(discover_engines, self._collectors)
            for config in found.engines:
                known = self._pollers.get(config.name)
                if known is None:
                    _log.info("found engine %s at %s", config.name, config.url)
                    self._add(group, config)
                elif config.pid != known.engine.pid:
                    known.moved_to(config.pid)
            for note in found.notes:
                if note not in self._notes:
                    self._notes.add(note)
                    _log.warning("%s", note)
            await asyncio.sleep(LOOK_SECONDS)
