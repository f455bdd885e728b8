"""The engines of the node: those configured, or those found, each with its poller."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import aiohttp
from msgspec.structs import replace

from jouled.api import Clock, EngineCollector
from jouled.app.config import EngineConfig
from jouled.app.runtime.engines.device_owners import stranger_note, strangers
from jouled.app.runtime.engines.device_processes import DeviceProcesses
from jouled.app.runtime.engines.discovery import FoundEngine, FoundEngines, discover_engines, not_named, place_of
from jouled.app.runtime.engines.model_files import find_file_sizes
from jouled.app.runtime.engines.poller import EnginePoller, Feed, Identify, trusted
from jouled.app.runtime.engines.processes import start_ticks
from jouled.model.engine import Engine
from jouled.model.errors import SourceState
from jouled.model.parameters import Slo
from jouled.model.readings import SourceReport

LOOK_SECONDS = 30.0
"""Between two looks for engines that have started since."""

MOST_FOUND = 64
"""Engines that are polled at one time without being named: any user may start a program called as an engine is."""
MOST_NOTES = 20
"""Said after one look."""

NOTES_REMEMBERED = 1_000
"""So that none is said twice, unless very many others were said since."""

_log = logging.getLogger(__name__)


class _Running(NamedTuple):
    poller: EnginePoller
    task: asyncio.Task[None]


class EnginePollers:
    """Feeds every engine to the core and polls those that have a page.

    A found engine is asked as long as its process lives; once that has ended, or a request has failed, only after it
    was found again: by then its port may be somebody else's.
    """

    def __init__(
        self,
        collectors: Mapping[str, EngineCollector],
        clock: Clock,
        feed: Feed,
        session: aiohttp.ClientSession,
        slos: Sequence[Slo] = (),
        processes: DeviceProcesses | None = None,
    ) -> None:
        self._collectors = collectors
        self._clock = clock
        self._feed = feed
        self._session = session
        self._slos = slos
        self._processes = processes or DeviceProcesses()
        self._configured: Sequence[EngineConfig] = ()
        self._running: dict[str, _Running] = {}
        self._unpolled: dict[str, Engine] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._notes: dict[str, None] = {}
        self._found: dict[str, FoundEngine] = {}
        self._gone: set[str] = set()
        self._one_look = asyncio.Lock()
        self._looked_s = 0.0
        self._known_by_s = math.inf
        self._news = asyncio.Event()

    def engines(self) -> list[Engine]:
        """All engines as they are known now; one that is gone is left out where another of its type is there."""
        polled = [running.poller.engine for running in self._running.values()]
        there = {engine.type for engine in polled if engine.name not in self._gone}
        known = [engine for engine in polled if engine.name not in self._gone or engine.type not in there]
        return [*known, *self._unpolled.values()]

    def askable(self) -> list[Engine]:
        """Those that may be sent a request now: the operator named them, or their process is the one that was found."""
        if self._configured:
            return self.engines()
        return [running.poller.engine for name, running in self._running.items() if self._lives(name)]

    @property
    def are_known(self) -> bool:
        """Whether `engines` has those that run: before the first look nobody can say whose a request is.

        A look that hangs is waited for until the next one is due.
        """
        return time.monotonic() >= self._known_by_s

    def start(self, group: asyncio.TaskGroup, configured: Sequence[EngineConfig], *, discover: bool) -> None:
        """Begin with the configured engines and, if that is wanted, look for engines.

        Beside configured ones found engines are only told of: a configured address may lead to one of them by a way
        that cannot be seen, and nothing is counted twice.
        """
        self._configured = configured
        for config in configured:
            self._add(group, config, trusted)
        self._known_by_s = time.monotonic() + (LOOK_SECONDS if discover and not configured else 0.0)
        if discover:
            self._tasks.append(group.create_task(self._discover(group), name="discovery"))

    def stop(self) -> None:
        """Begin to end all pollers."""
        for task in (*self._tasks, *(running.task for running in self._running.values())):
            task.cancel()

    def _add(self, group: asyncio.TaskGroup, config: EngineConfig, identify: Identify) -> None:
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
            devices_of=self._processes.devices_of,
            identify=identify,
            role=config.role,
            token_file=config.token_file,
        )
        task = group.create_task(poller.run(), name=f"engine {engine.name}")
        self._running[engine.name] = _Running(poller, task)

    async def _look_for_sizes(self, engine: Engine) -> None:
        sized = await find_file_sizes(engine)
        if sized != engine:
            self._unpolled[engine.name] = sized
            self._feed(sized)

    async def _discover(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._look(group)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self, group: asyncio.TaskGroup) -> None:
        """Look at the processes; whoever asks while another look begins shares that one."""
        asked_s = time.monotonic()
        async with self._one_look:
            if self._looked_s >= asked_s:
                return
            self._looked_s = time.monotonic()
            by_device = self._processes.by_device
            try:
                found, notes = await asyncio.to_thread(_look_around, self._collectors, by_device)
            except Exception:  # noqa: BLE001 - the boundary to plug-ins, and to whatever runs on this host
                _log.exception("looking for engines failed unexpectedly; those known are polled on")
                return
        self._processes.note_environments(
            {each.process.pid: (each.process.environ or {}, each.process.container is not None) for each in found.found}
        )
        if self._configured:
            notes = [*self._beside_configured(found.found), *notes]
        else:
            self._found = {each.config.name: each for each in found.found}
            untaken = [each.config.name for each in found.found if not self._take(group, each.config)]
            if untaken:
                notes.append(
                    f"more than {MOST_FOUND} engines run here: others are polled only if [[engines]] names them"
                )
        self._known_by_s = time.monotonic()
        self._tell(notes)
        self._news.set()
        self._news = asyncio.Event()

    def _take(self, group: asyncio.TaskGroup, config: EngineConfig) -> bool:
        """One engine was found, for the first time or again; returns whether there was a place for it."""
        known = self._running.get(config.name)
        if known is None and len(self._running.keys() - self._gone) >= MOST_FOUND:
            return False
        if known is None:
            _log.info("found engine %s at %s", config.name, config.url)

            async def identify(failed: bool) -> bool:
                return await self._until_identified(group, config.name, failed=failed)

            self._add(group, config, identify)
        elif config.pid != known.poller.engine.pid:
            known.poller.moved_to(config.pid)
        return True

    def _beside_configured(self, found: Sequence[FoundEngine]) -> list[str]:
        """Take the process of each engine that is configured; returns what to tell of the others."""
        notes = []
        by_place = {(config.type, place_of(config.url)): config for config in self._configured if config.url}
        for each in found:
            config = by_place.get((each.config.type, place_of(each.config.url)))
            if config is None:
                notes.append(not_named(each))
                continue
            running = self._running.get(config.name)
            told = config.pid is not None and start_ticks(config.pid) is not None
            if running and not told and running.poller.engine.pid != each.process.pid:
                running.poller.moved_to(each.process.pid)
        return notes

    async def _until_identified(self, group: asyncio.TaskGroup, name: str, *, failed: bool) -> bool:
        """Wait until the engine is where it was found; returns whether it was gone."""
        if not failed and self._lives(name):
            return False
        await self._look(group)
        while not self._lives(name):
            if name not in self._gone:
                self._gone.add(name)
                self._feed(self._gone_report(name))
            await self._news.wait()
        was_gone = name in self._gone
        self._gone.discard(name)
        return was_gone

    def _lives(self, name: str) -> bool:
        """Whether the process that was found last is still that process."""
        found = self._found.get(name)
        return found is not None and start_ticks(found.process.pid) == found.process.started

    def _gone_report(self, name: str) -> SourceReport:
        engine = self._running[name].poller.engine
        return SourceReport(
            source=name,
            state=SourceState.ABSENT,
            reason="gone",
            message=f"no {engine.type} engine is recognised at {engine.url} any more",
            t_ns=self._clock.now_ns(),
        )

    def _tell(self, notes: Sequence[str]) -> None:
        """Say what was not said before. Notes name processes, of which there are always new ones."""
        news = [note for note in notes if note not in self._notes]
        for note in news[:MOST_NOTES]:
            _log.warning("%s", note)
        if len(news) > MOST_NOTES:
            _log.warning("and %d more of the kind: `jouled check` lists them", len(news) - MOST_NOTES)
        self._notes |= dict.fromkeys(news)
        for note in list(self._notes)[: -max(len(notes), NOTES_REMEMBERED)]:
            del self._notes[note]


def _look_around(
    collectors: Mapping[str, EngineCollector], by_device: Mapping[str, frozenset[int]]
) -> tuple[FoundEngines, list[str]]:
    """Blocks: walks all processes."""
    found = discover_engines(collectors)
    unknown = [stranger_note(stranger, collectors) for stranger in strangers(by_device, found.servers)]
    return found, [*found.notes, *unknown]
