"""The composition root: builds the daemon of its parts, starts it, and ends it in order."""

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from jouled.app.config import Config, RunOptions
from jouled.app.config.types import Spool
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.chronicle import Chronicle
from jouled.app.runtime.clock import BootClock, ClockState
from jouled.app.runtime.commits import Commits
from jouled.app.runtime.companion import Companion
from jouled.app.runtime.continuity import Continuity, boot_id, take_up
from jouled.app.runtime.metering import Metering
from jouled.app.runtime.notify import Notifier
from jouled.app.runtime.own import OwnCounts
from jouled.app.runtime.power import PowerSources
from jouled.app.runtime.publisher import Publisher, restore
from jouled.app.runtime.recording.last_minutes import LastMinutes, QuarantineRecorder
from jouled.app.runtime.recording.recording import Writer
from jouled.app.runtime.reloads import Reloads
from jouled.app.runtime.requests.ingest import Ingest
from jouled.app.runtime.settings import Settings
from jouled.app.runtime.signals import Signals
from jouled.app.runtime.ticks import until_next_tick
from jouled.core.journal import Journal
from jouled.model.errors import ConfigurationError, JouledError, SourceState
from jouled.model.units import nanoseconds
from jouled.outputs.store import Limits, Published, ReceiptQuery, Store, StoreError

if TYPE_CHECKING:
    from jouled.app.runtime.engines.pollers import EnginePollers
    from jouled.app.runtime.front import Front
    from jouled.app.runtime.requests.forward import Forwarder
    from jouled.app.runtime.sinks import Sinks

STOP_SECONDS = 5.0
"""An orderly stop takes no longer; then the process ends all the same, and says so."""

DRAIN_SECONDS = 2.0
"""Of that, what sinks have to send what still waits; the rest is sent after the next start."""

LAST_SECONDS = 2.0
"""What of it is kept for the last commit and for closing connections."""

REMEMBERED_RECEIPTS = 5_000
"""After a restart, requests with a final receipt among the last ones are not taken again when they are sent again."""

REQUIRED_SECONDS = 30.0
"""Within this time a source with `startup = "require"` has to give readings."""

_log = logging.getLogger(__name__)


class Daemon:
    """One daemon, from its start to its end."""

    def __init__(
        self,
        config: Config,
        options: RunOptions,
        companion: Companion | None = None,
        *,
        serves: bool = True,
        reloads: Reloads | None = None,
        signals: Signals | None = None,
    ) -> None:
        """Build what needs no event loop.

        Raises `JouledError` for whatever stands against a start: configuration, plug-ins, state directory.
        """
        self._settings = settings = Settings(config, options, serves=serves)
        self._config = config
        self._reloads = reloads or Reloads(config)
        self._signals = signals or Signals()
        self.reloads_now = False
        self._companion = companion
        self._notifier = Notifier()
        self._failure: Exception | None = None
        self._stop = asyncio.Event()
        self._news = asyncio.Event()
        self._ends_by = math.inf
        self._store = _store(settings.where.state, config.spool)
        try:
            self._take_up()
        except BaseException:
            self._store.close()  # a daemon with the former configuration may need it
            raise

    def _take_up(self) -> None:
        """Go on from what the store holds."""
        settings, tables = self._settings, self._config.power
        published = Published(settings.where.runtime / "published")
        restored = restore(self._store, published)
        own = restored.own if restored else OwnCounts.empty(time.time_ns())
        taken = take_up(self._store, restored, settings.parameters)
        if taken.result:
            own.restarts[taken.result] = own.restarts.get(taken.result, 0) + 1
        clock, journal = taken.clock, Journal()
        last_minutes = LastMinutes(node=settings.node, started_ns=clock.now_ns(), boot_offset_ns=clock.offset_ns)
        self._metering = Metering(
            taken.pipeline,
            clock,
            own,
            self._fail,
            _recorder(settings, clock),
            last_minutes,
            journal,
            ignored_sources=frozenset(name for name, table in tables.items() if table.get("startup") == "ignore"),
            tried_sources=settings.plugins.power.keys() - tables.keys(),
        )
        self._commits = Commits(
            self._metering,
            Publisher(self._store, published, own),
            Continuity(taken.pipeline, journal),
            Chronicle(self._store),
            ClockState(boot_id(), clock.offset_ns),
            QuarantineRecorder(last_minutes, settings.where.state) if settings.serves else None,
            self._reloads,
        )

    async def run(self, seconds: float | None, on_stop: Callable[[], None]) -> int:
        """Live until told to stop, for at most so many seconds; `on_stop` is called as the end begins."""
        self._signals.attach(self._stop.set, self._reload)
        try:
            await self._live(seconds, on_stop)
            await self._commit_the_rest()
            await self._send_the_rest()
        finally:
            self._metering.close()
            self._note_failure()
            self._store.close()
        if isinstance(self._failure, JouledError):
            raise self._failure
        return 1 if self._failure else 0

    async def _live(self, seconds: float | None, on_stop: Callable[[], None]) -> None:
        """Run all tasks until the stop, then end them and wait for what the sources have to say last."""
        self._sinks = self._open_sinks()
        self._power = self._power_sources()
        async with asyncio.TaskGroup() as group, contextlib.AsyncExitStack() as stack:
            self._power.start(group)
            await asyncio.sleep(0)  # the samplers begin now, and read while the rest is imported and opened
            try:
                tasks = await self._open(group, stack)
            except JouledError as error:
                tasks = []
                self._fail(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stop.wait()
            on_stop()
            self._ends_by = time.monotonic() + STOP_SECONDS - LAST_SECONDS
            if self.reloads_now:
                self._notifier.reloading()
            else:
                self._notifier.stopping()
            self._commits.durable.refuse()
            self._power.stop()
            for task in tasks:
                task.cancel()

    async def _open(self, group: asyncio.TaskGroup, stack: contextlib.AsyncExitStack) -> list["asyncio.Task[None]"]:
        """Begin everything beside the sampling; returns the tasks to be ended. Raises `JouledError`."""
        from jouled.app.runtime.engines.pages import open_session
        from jouled.app.runtime.engines.pollers import EnginePollers
        from jouled.app.runtime.requests.forward import Forwarder
        from jouled.app.runtime.requests.receivers import Receivers

        settings, metering, own = self._settings, self._metering, self._metering.own
        session = await stack.enter_async_context(open_session())
        engines = EnginePollers(
            settings.plugins.engines, metering.clock, metering.feed, session, self._config.slo, metering.processes
        )
        stack.callback(engines.stop)
        forward_url = self._config.requests.otlp.forward
        forwarder = Forwarder(forward_url, own.forwarded) if forward_url else None
        self._front = self._front_of(engines, forwarder)
        await self._remember_receipts()
        await self._publish()  # a scrape right after a restart sees the books that were restored
        if settings.serves:
            from jouled.app.runtime.doors import open_doors

            # They close as the end begins: what came then could not be committed any more. Senders send it again.
            await open_doors(self._front, settings, stack)
        for partition in self._config.partition:
            metering.feed(partition.device())
        engines.start(group, self._config.engines, discover=settings.options.discover)
        tasks = [group.create_task(self._tick_every_second(group), name="ticks")]
        tasks += self._sinks.start(group)
        tasks += Receivers(
            settings.plugins.requests,
            self._front.accept,
            own.reject,
            engines.engines,
            engines.askable,
            session,
            settings.where.runtime,
            state_directory=settings.where.state,
            settings=settings.receivers,
        ).start(group)
        if forwarder is not None:
            tasks.append(group.create_task(forwarder.run(), name="forward"))
        if self._companion is not None:
            companion = self._companion.run(lambda: self._commits.publisher.snapshot)
            tasks.append(group.create_task(companion, name="companion"))
        return tasks

    def _front_of(self, engines: "EnginePollers", forwarder: "Forwarder | None") -> "Front":
        from jouled.app.runtime.engines.find import own_hosts
        from jouled.app.runtime.front import Front

        settings, metering = self._settings, self._metering
        metering.own.http_refused = refused = Counter(metering.own.http_refused)
        return Front(
            metering=metering,
            publisher=self._commits.publisher,
            store=self._store,
            power=self._power,
            ingest=Ingest(
                engines.engines,
                metering.feed,
                metering.own.reject,
                metering.clock,
                metering.wall,
                settings.pseudonyms,
                own_hosts(),
                lambda: engines.are_known,
            ),
            pseudonyms=settings.pseudonyms,
            shows_receipts=self._config.privacy.receipts,
            refused=refused,
            off=settings.off,
            kept=self._commits.durable.wait,
            forget=self._forget,
            forwarder=forwarder,
            extra=self._companion.extra if self._companion else dict,
        )

    def _open_sinks(self) -> "Sinks":
        from jouled.app.runtime.sinks import Sinks

        return Sinks(
            self._settings.sinks,
            self._store,
            self._metering.own,
            node=self._settings.node,
            interval_seconds=self._config.spool.interval_seconds,
            off=self._settings.off,
            wall_ns=time.time_ns,
        )

    async def _remember_receipts(self) -> None:
        try:
            self._metering.pipeline.remember(await self._store.receipts(ReceiptQuery(limit=REMEMBERED_RECEIPTS)))
        except StoreError as error:
            _log.warning("requests sent again after this restart would count twice: %s", error)

    async def _commit_the_rest(self) -> None:
        """The last commit, with what the sources said as they ended."""
        if self._failure is not None:
            return
        self._advance()
        self._commits.continuity.whole_next()
        self._commits.chronicle.mark_next()
        await self._publish()
        publisher = self._commits.publisher
        if publisher.waiting:
            _log.error("%d receipts are lost: %s", publisher.waiting, publisher.trouble)

    async def _forget(self, tenant: str) -> int:
        """Remove a tenant's receipts from everything that the daemon keeps; returns how many the store had."""
        self._metering.pipeline.forget(tenant)
        self._commits.publisher.forget(tenant)
        self._commits.continuity.whole_next()  # the state and the inputs on disk name the tenant, too
        await self._publish()
        return await self._store.forget(tenant)

    async def _settle(self) -> None:
        """The configuration has proven to work: what it wants no more is removed."""
        await self._sinks.settle()
        if not self._config.privacy.receipts:
            try:
                await self._store.forget(None)
            except StoreError as error:
                _log.error("receipts of before are still there: %s", error)

    async def _send_the_rest(self) -> None:
        """Let the sinks send what waits, as far as there is time, and commit how far that came."""
        if self._failure is None:
            await self._sinks.drain(max(0.0, min(DRAIN_SECONDS, self._ends_by - time.monotonic())))
            await self._publish()
        await self._sinks.close()

    def _power_sources(self) -> PowerSources:
        settings = self._settings
        looks = settings.options.discover and not settings.power
        return PowerSources(
            settings.plugins.power,
            settings.power,
            settings.plugins.discoverable() if looks else {},
            self._metering.clock,
            self._take_batch,
        )

    async def _tick_every_second(self, group: asyncio.TaskGroup) -> None:
        """Close, commit, publish. A commit that takes longer than a second delays no tick, only the next commit."""
        unproven = set(self._power.required)
        required_until = time.monotonic() + REQUIRED_SECONDS
        publishing: asyncio.Task[None] | None = None
        while True:
            self._power.look()
            self._advance()
            if publishing is None or publishing.done():
                publishing = group.create_task(self._publish())
            self._front.ticked = time.monotonic()
            self._notifier.watchdog()
            unproven = self._still_unproven(unproven, required_until)
            is_working = self._failure is None and not unproven and self._commits.publisher.snapshot.sequence > 0
            if is_working and not self._front.is_ready:
                self._front.is_ready = True
                self._reloads.works()
                group.create_task(self._settle())
                self._notifier.ready(f"serving on {self._settings.listen}")
            await until_next_tick(self._metering.clock.now_ns(), self._news, self._commits.durable.crowd)

    def _advance(self) -> None:
        receipts = self._metering.advance()
        if self._config.privacy.receipts:
            self._commits.publisher.hold(receipts)
        if self._companion is not None:
            self._companion.take(receipts)

    async def _publish(self) -> None:
        await self._commits.commit(self._sinks)

    def _still_unproven(self, unproven: set[str], until: float) -> set[str]:
        """The required sources that have yet to work. One that does not work ends the daemon."""
        waiting = set()
        for name in unproven:
            view = self._metering.sources.view(name)
            if view is None and time.monotonic() < until:
                waiting.add(name)
            elif view is None or view.state is not SourceState.OK:
                why = view.message if view else f"it said nothing for {REQUIRED_SECONDS:.0f} s"
                self._fail(
                    ConfigurationError(
                        f"the power source {name} is required and does not work: {why}",
                        mend=f'Mend it, or set startup = "retry" in [power.{name}]',
                    )
                )
        return waiting

    def _take_batch(self, batch: Batch) -> None:
        self._metering.take_batch(batch)
        if batch.readings:
            self._news.set()

    def _fail(self, error: Exception) -> None:
        """End the daemon because of this error; systemd starts it again."""
        if self._failure is None:
            self._failure = error
            if not isinstance(error, JouledError):
                _log.critical("the books cannot be trusted any more, jouled ends", exc_info=error)
            self._stop.set()

    def _note_failure(self) -> None:
        """Two such ends within ten minutes, and the next start does not go on from the state."""
        if self._failure is None or isinstance(self._failure, JouledError):
            return
        try:
            self._store.note_failure(time.time_ns())
        except StoreError as error:
            _log.error("%s", error)

    def _reload(self) -> None:
        """End in order, to be followed by a daemon with the configuration as it is now; a bad one changes nothing."""
        if self._reloads.again():
            self.reloads_now = True
            self._stop.set()


def _store(directory: Path, spool: Spool) -> Store:
    limits = Limits(
        points_bytes=round(spool.points_mebibytes * 1024 * 1024),
        points_ns=nanoseconds(spool.points_days * 86_400.0),
    )
    return Store(directory, receipt_days=spool.receipts_days, receipt_mebibytes=spool.receipts_mebibytes, limits=limits)


def _recorder(settings: Settings, clock: BootClock) -> Writer | None:
    out = settings.options.record
    if out is None:
        return None
    return Writer(out, node=settings.node, started_ns=clock.now_ns(), boot_offset_ns=clock.offset_ns)
