"""The poller of an engine: reads its page on an absolute schedule and learns what the engine is."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiohttp
from msgspec.structs import replace

from jouled.api import Clock, EnergyCollector, EngineCollector, EngineFacts, EnginePage, LatencyCollector
from jouled.app.runtime.engines.cpu_time import cpu_seconds
from jouled.app.runtime.engines.device_processes import DevicesOf, family_of
from jouled.app.runtime.engines.facts import told_by_process, told_facts
from jouled.app.runtime.engines.model_files import find_file_sizes
from jouled.app.runtime.engines.page_filter import of_replica
from jouled.app.runtime.engines.pages import fetch
from jouled.core.accounting.attainment import off_bounds
from jouled.model.engine import Engine, EngineSample, Latency, LatencyHistogram
from jouled.model.errors import SourceError, SourceState
from jouled.model.parameters import Slo
from jouled.model.readings import SourceReport
from jouled.model.units import nanoseconds, seconds
from jouled.outputs.backoff import Backoff

Feed = Callable[[Engine | EngineSample | SourceReport], object]

Identify = Callable[[bool], Awaitable[bool]]
"""Waited for before every request: returns once the address is known to be the engine's, and whether it was not in
between. Told whether the last request failed."""

LATENCIES_SECONDS = 15.0
"""Between two readings of an engine's histograms: they serve windows of minutes and cost what all else there does."""

DEVICES_SECONDS = 30.0
"""Between two looks at which devices an engine's processes compute on: that changes with a restart only."""

ENERGY_SECONDS = 30.0
"""Between two readings of the energy that an engine meters itself, which is only compared."""

NO_ENERGY_SECONDS = 600.0
"""An engine that does not tell its energy is asked no sooner again."""

LARGE_PAGE_BYTES = 256 * 1024
"""A page beyond this is read in a thread: one of 5 MB would hold the loop for a tenth of a second."""

_log = logging.getLogger(__name__)


async def trusted(failed: bool) -> bool:  # noqa: ARG001 - as `Identify` has it
    """For an engine that the operator named: it is where the configuration says."""
    return False


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
        slos: Sequence[Slo] = (),
        interval_seconds: float = 5.0,
        replica: str = "",
        devices_of: DevicesOf = lambda _: (),
        identify: Identify = trusted,
        role: str = "",
        token_file: str = "",
    ) -> None:
        """`role`: as configured; empty, as page and process say. `token_file`: with the key that its page asks for."""
        self.engine = engine
        self._role = role
        self._identify = identify
        self._replica = replica
        self._slos = slos
        self._wanted = wanted_latencies(slos)
        self._latencies_due_ns = 0
        self._said: set[str] = set()
        self._collector = collector
        self._clock = clock
        self._feed = feed
        self._session = session
        self._address = engine.url.rstrip("/")
        self._token_file = token_file
        self._interval_ns = nanoseconds(interval_seconds)
        self._backoff = Backoff(interval_seconds, max(30.0, interval_seconds))
        self._asks_version = not engine.version
        self._configured = self._sized = engine
        self._sized_for: tuple[str, int | None, str] | None = None
        self._learned: dict[str, Any] = {}
        self._process_facts = EngineFacts()
        self._process_is_due = True
        self._energy_due_ns = 0
        self._works = False
        self._last: EnginePage | None = None
        self._counts: Mapping[str, Mapping[str, int]] = {}
        self._devices_of = devices_of
        self._devices_due_ns = 0

    async def run(self) -> None:
        """Poll until cancelled. An engine that fails is asked again with back-off."""
        failed = False
        while True:
            if await self._identify(failed):
                self._works = False
                self._process_is_due = True
            try:
                await self._poll()
            except SourceError as error:
                failed = True
                self._fail(error)
                await asyncio.sleep(self._backoff.next_seconds())
            else:
                failed = False
                self._backoff.reset()
                now_ns = self._clock.now_ns()
                await asyncio.sleep(seconds(self._interval_ns - now_ns % self._interval_ns))

    def moved_to(self, pid: int | None) -> None:
        """The engine runs in another process now."""
        self._last = None
        self._counts = {}
        self._process_is_due = True
        self._devices_due_ns = 0
        self._learn(pid=pid)

    async def _poll(self) -> None:
        begun_ns = self._clock.now_ns()
        body = await fetch(self._session, self._address + self._collector.page_path, self._token_file)
        read_ns = (begun_ns + self._clock.now_ns()) // 2
        pid = self.engine.pid
        used = None if pid is None else await asyncio.to_thread(cpu_seconds, pid)
        page, latencies = await self._read(body, read_ns)
        await self._learn_devices(read_ns)
        if self._process_is_due or _restarted(self._last, page):
            self._process_is_due = False
            self._energy_due_ns = 0
            self._process_facts = await asyncio.to_thread(self._told_by_process)
            await self._learn_version()
        departed = departed_counts(self._counts, page.counts_by_model)
        self._counts = {**self._counts, **page.counts_by_model}
        self._last = page
        await self._learn_facts(page)
        sample = _sample(self.engine.name, read_ns, page, latencies)
        self._feed(
            replace(
                sample,
                cpu_seconds=used,
                reported_energy_joules=await self._own_energy(read_ns),
                departed_counts=departed,
            )
        )
        if not self._works:
            self._works = True
            self._feed(SourceReport(source=self.engine.name, state=SourceState.OK, t_ns=self._clock.now_ns()))

    async def _read(self, body: bytes, read_ns: int) -> tuple[EnginePage, Mapping[Latency, LatencyHistogram]]:
        if len(body) > LARGE_PAGE_BYTES:
            return await asyncio.to_thread(self._read_now, body, read_ns)
        return self._read_now(body, read_ns)

    def _read_now(self, body: bytes, read_ns: int) -> tuple[EnginePage, Mapping[Latency, LatencyHistogram]]:
        body = of_replica(body, self._replica)
        return self._page(body), self._latencies(body, read_ns)

    def _page(self, body: bytes) -> EnginePage:
        try:
            return self._collector.page(body)
        except ValueError as error:
            raise SourceError(SourceState.DOWN, "not_a_page", f"{self.engine.url} is no page: {error}") from error
        except Exception as error:  # the boundary to plug-ins: a bug in one stops no other engine
            _log.exception("the collector of engine %s failed unexpectedly", self.engine.name)
            raise SourceError(SourceState.DOWN, "crash", f"{type(error).__name__}: {error}") from error

    def _latencies(self, body: bytes, read_ns: int) -> Mapping[Latency, LatencyHistogram]:
        """The histograms that SLOs need, if it is time; a page without readable ones is metered all the same."""
        if read_ns < self._latencies_due_ns:
            return {}
        self._latencies_due_ns = read_ns + nanoseconds(LATENCIES_SECONDS)
        try:
            read = read_latencies(self._collector, body, self._wanted)
        except Exception as error:  # noqa: BLE001 - as with the version: a plug-in's bug stops no metering
            self._say_once(f"its histograms of latencies cannot be read: {error}")
            return {}
        if read:
            for sentence in off_bounds(self._slos, read):
                self._say_once(sentence)
        return read

    def _say_once(self, sentence: str) -> None:
        if sentence not in self._said:
            self._said.add(sentence)
            _log.warning("engine %s: %s", self.engine.name, sentence)

    async def _learn_version(self) -> None:
        """Ask for the version; an engine that does not tell is metered all the same."""
        if not (self._asks_version and self._collector.version_path):
            return
        try:
            body = await fetch(self._session, self._address + self._collector.version_path, self._token_file)
            self._learn(version=self._collector.version(body))
        except Exception as error:  # noqa: BLE001 - a plug-in's bug in reading a version stops no metering
            _log.info("engine %s does not tell its version: %s", self.engine.name, error)

    async def _learn_devices(self, now_ns: int) -> None:
        """Take the devices on which the engine's processes compute, where none were configured."""
        if self._configured.devices or self.engine.pid is None or now_ns < self._devices_due_ns:
            return
        self._devices_due_ns = now_ns + nanoseconds(DEVICES_SECONDS)
        devices = self._devices_of(await asyncio.to_thread(family_of, self.engine.pid))
        if devices:  # none are told before the model is loaded, and where the driver does not tell
            self._learn(devices=devices)

    def _told_by_process(self) -> EngineFacts:
        try:
            return told_by_process(self._collector, self.engine.pid)
        except Exception as error:  # noqa: BLE001 - as with the version: a plug-in's bug stops no metering
            self._say_once(f"what it was started with cannot be read: {error}")
            return EngineFacts()

    async def _learn_facts(self, page: EnginePage) -> None:
        """Take what page and process tell of the engine, and look for the sizes of its model on the disk."""
        process, configured = self._process_facts, self._configured
        model = configured.model or page.model or page.facts.model or process.model or self.engine.model
        version = configured.version or page.facts.version or self.engine.version or process.version
        facts = told_facts(configured, self._role, page, process)
        if (model, self.engine.pid, facts["precision"]) != self._sized_for:
            self._sized_for = (model, self.engine.pid, facts["precision"])
            # Sizes of an earlier model must not stay: begin with what was configured.
            bare = replace(configured, **{**self._learned, **facts, "model": model})
            self._sized = await find_file_sizes(bare)
        semantics = page.semantics or self._collector.semantics
        self._learn(model=model, version=version, counter_semantics=semantics, **facts)

    def _learn(self, **news: Any) -> None:
        self._learned |= news
        engine = replace(self._sized, **self._learned)
        if engine != self.engine:
            self.engine = engine
            self._feed(engine)

    async def _own_energy(self, now_ns: int) -> float | None:
        """What the engine's own meter says, where it has one and it is time: some milliseconds after the page."""
        if not isinstance(self._collector, EnergyCollector) or now_ns < self._energy_due_ns:
            return None
        self._energy_due_ns = now_ns + nanoseconds(ENERGY_SECONDS)
        try:
            return self._collector.energy_joules(
                await fetch(self._session, self._address + self._collector.energy_path, self._token_file)
            )
        except Exception as error:  # noqa: BLE001 - it is a comparison: nothing of it stops metering
            self._energy_due_ns = now_ns + nanoseconds(NO_ENERGY_SECONDS)
            _log.info("engine %s does not tell its own energy: %s", self.engine.name, error)
            return None

    def _fail(self, error: SourceError) -> None:
        self._works = False
        self._process_is_due = True
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


def departed_counts(before: Mapping[str, Mapping[str, int]], now: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    """What models that are gone, or begin anew, had in each counter, while another one went on.

    Where none went on, it is the engine that began anew, or all of its models. A counter that went back shows that by
    itself; one in which other models have made more than those had does not. before: as last told, of each counter.
    """
    departed = {}
    for kind, told in now.items():
        counts = before.get(kind, {})
        stayed = {model for model, count in counts.items() if told.get(model, -1) >= count}
        if any(counts[model] for model in stayed) or sum(told.values()) >= sum(counts.values()):
            departed[kind] = sum(count for model, count in counts.items() if model not in stayed)
    return {kind: count for kind, count in departed.items() if count}


def wanted_latencies(slos: Sequence[Slo]) -> frozenset[Latency]:
    """The latencies that at least one SLO limits."""
    return frozenset(name for slo in slos for name in slo.limits)


def read_latencies(
    collector: EngineCollector, body: bytes, wanted: frozenset[Latency]
) -> Mapping[Latency, LatencyHistogram]:
    """These histograms of a page, as far as it has them. Raises `ValueError` where one cannot be read."""
    if not wanted or not isinstance(collector, LatencyCollector):
        return {}
    return collector.latencies(body, wanted)


def _sample(engine: str, t_ns: int, page: EnginePage, latencies: Mapping[Latency, LatencyHistogram]) -> EngineSample:
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
        forward_seconds=page.forward_seconds,
        latencies=latencies,
    )
