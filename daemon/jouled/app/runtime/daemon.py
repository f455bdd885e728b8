"""The composition root: builds the daemon of its parts, starts it, and ends it in order."""

import asyncio
import contextlib
import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from msgspec.structs import replace

import jouled
from jouled.app.config import Config, Paths, RunOptions, paths
from jouled.app.config.types import Spool
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.chronicle import Chronicle
from jouled.app.runtime.clock import BootClock, ClockState
from jouled.app.runtime.continuity import Continuity, boot_id, take_up
from jouled.app.runtime.coverage import CoverageWatch
from jouled.app.runtime.durable import Durable
from jouled.app.runtime.engines.energy_watch import EnergyWatch
from jouled.app.runtime.metering import Metering
from jouled.app.runtime.notify import Notifier
from jouled.app.runtime.own import OwnCounts
from jouled.app.runtime.plugins import Plugins, check_types, load_plugins
from jouled.app.runtime.power import PowerSources
from jouled.app.runtime.publisher import Commit, Publisher, restore
from jouled.app.runtime.recording.last_minutes import LastMinutes, QuarantineRecorder
from jouled.app.runtime.recording.recording import Writer
from jouled.app.runtime.reloads import Reloads
from jouled.app.runtime.requests.ingest import Ingest
from jouled.app.runtime.requests.pseudonyms import load_or_make
from jouled.app.runtime.signals import Signals
from jouled.core.journal import Journal
from jouled.model.errors import ConfigurationError, JouledError, SourceState
from jouled.model.receipt import Receipt
from jouled.model.snapshot import Snapshot
from jouled.model.units import nanoseconds
from jouled.outputs.metrics.catalogue import families_off
from jouled.outputs.secret_file import secret
from jouled.outputs.store import Limits, Published, ReceiptQuery, Store, StoreError

if TYPE_CHECKING:
    from jouled.app.runtime.requests.grpc_door import GrpcDoor
    from jouled.app.runtime.sinks import Sinks
    from jouled.outputs.serve import Running

STOP_SECONDS = 5.0
"""An orderly stop takes no longer; then the process ends all the same, and says so."""

DRAIN_SECONDS = 2.0
"""Of that, what sinks have to send what still waits; the rest is sent after the next start."""

LAST_SECONDS = 2.0
"""What of it is kept for the last commit and for closing connections."""

SHORTEST_TICK_SECONDS = 0.2
"""Between two commits where senders wait for them."""

REMEMBERED_RECEIPTS = 5_000
"""After a restart, requests with a final receipt among the last ones are not taken again when they are sent again."""

REQUIRED_SECONDS = 30.0
"""Within this time a source with `startup = "require"` has to give readings."""

_SECOND_NS = 1_000_000_000
_TICK_PHASE_NS = 150_000_000
"""A tick comes this long after the full second: the samplers' batches of that second are in by then."""

_log = logging.getLogger(__name__)


class Companion(Protocol):
    """Something that lives beside the daemon and adds figures to its page, as the demo's grading does."""

    async def run(self, snapshot: Callable[[], Snapshot]) -> None:
        """Live until cancelled; `snapshot` gives the last published one."""
        ...

    def take(self, receipts: Sequence[Receipt]) -> None:
        """See receipts that have become final."""
        ...

    def extra(self) -> Mapping[str, Any]:
        """Figures for the page."""
        ...


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
        self._config = config
        self._reloads = reloads or Reloads(config)
        self._signals = signals or Signals()
        self.reloads_now = False
        self._companion = companion
        self._serves = serves
        self._discovers = options.discover
        self._listen = options.listen or config.serve.listen
        self._plugins = _plugins()
        self._power_settings = self._plugins.power_settings(config.power)
        self._sink_settings = self._plugins.sink_settings(config.sinks) if serves else {}
        self._receiver_settings = self._plugins.receiver_settings(config.receivers)
        check_types(config.engines, self._plugins.engines)
        self._token = secret(config.serve.token_file, "serve.token_file") or None
        self._notifier = Notifier()
        self._failure: Exception | None = None
        self._stop = asyncio.Event()
        self._news = asyncio.Event()
        self._where = _directories(options, config)
        self._node = config.node.name or socket.gethostname()
        self._pseudonyms = load_or_make(self._where.state) if config.privacy.hash_ids else None
        self._durable = Durable()
        self._one_commit = asyncio.Lock()
        self._ends_by = math.inf
        self._store = _store(self._where.state, config.spool)
        try:
            self._take_up(options)
        except BaseException:
            self._store.close()  # a daemon with the former configuration may need it
            raise

    def _take_up(self, options: RunOptions) -> None:
        """Go on from what the store holds."""
        node = self._node
        published = Published(self._where.runtime / "published")
        restored = restore(self._store, published)
        own = restored.own if restored else OwnCounts.empty(time.time_ns())
        taken = take_up(self._store, restored, replace(self._config.parameters(), node=node))
        if taken.result:
            own.restarts[taken.result] = own.restarts.get(taken.result, 0) + 1
        clock, journal = taken.clock, Journal()
        recorder = _recorder(options, node, clock)
        last_minutes = LastMinutes(node=node, started_ns=clock.now_ns(), boot_offset_ns=clock.offset_ns)
        self._quarantine = QuarantineRecorder(last_minutes, self._where.state)
        ignored = frozenset(name for name, table in self._config.power.items() if table.get("startup") == "ignore")
        tried = self._plugins.power.keys() - self._config.power.keys()
        self._metering = Metering(
            taken.pipeline, clock, own, self._fail, recorder, last_minutes, journal, ignored, tried
        )
        self._continuity = Continuity(taken.pipeline, journal)
        self._publisher = Publisher(self._store, published, own)
        self._clock_state = ClockState(boot_id(), clock.offset_ns)
        self._coverage = CoverageWatch()
        self._energy_watch = EnergyWatch()
        self._chronicle = Chronicle(self._store)

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
            self._durable.refuse()
            self._power.stop()
            for task in tasks:
                task.cancel()

    async def _open(self, group: asyncio.TaskGroup, stack: contextlib.AsyncExitStack) -> list["asyncio.Task[None]"]:
        """Begin everything beside the sampling; returns the tasks to be ended. Raises `JouledError`."""
        from jouled.app.runtime.engines.find import own_hosts
        from jouled.app.runtime.engines.pages import open_session
        from jouled.app.runtime.engines.pollers import EnginePollers
        from jouled.app.runtime.front import Front
        from jouled.app.runtime.requests.forward import Forwarder
        from jouled.app.runtime.requests.receivers import Receivers

        metering = self._metering
        session = await stack.enter_async_context(open_session())
        engines = EnginePollers(
            self._plugins.engines,
            metering.clock,
            metering.feed,
            session,
            self._config.slo,
            metering.processes,
        )
        stack.callback(engines.stop)
        forward_url = self._config.requests.otlp.forward
        forwarder = Forwarder(forward_url, metering.own.forwarded) if forward_url else None
        refused = metering.own.http_refused = Counter(metering.own.http_refused)
        self._front = Front(
            metering=metering,
            publisher=self._publisher,
            store=self._store,
            power=self._power,
            ingest=Ingest(
                engines.engines,
                metering.feed,
                metering.own.reject,
                metering.clock,
                metering.wall,
                self._pseudonyms,
                own_hosts(),
                lambda: engines.are_known,
            ),
            pseudonyms=self._pseudonyms,
            shows_receipts=self._config.privacy.receipts,
            refused=refused,
            off=families_off(self._config.metrics.off),
            kept=self._durable.wait,
            forget=self._forget,
            forwarder=forwarder,
            extra=self._companion.extra if self._companion else dict,
        )
        await self._remember_receipts()
        await self._publish()  # a scrape right after a restart sees the books that were restored
        if self._serves:
            # It closes as the end begins: what came then could not be committed any more. Senders send it again.
            stack.push_async_callback((await self._listening()).close)
            if self._config.requests.otlp.grpc_listen:
                listen = self._config.requests.otlp.grpc_listen
                stack.push_async_callback((await self._listening_to_grpc(listen, refused)).close)
        for partition in self._config.partition:
            metering.feed(partition.device())
        engines.start(group, self._config.engines, discover=self._discovers)
        tasks = [group.create_task(self._tick_every_second(group), name="ticks")]
        tasks += self._sinks.start(group)
        receivers = self._plugins.requests
        told = (self._front.accept, metering.own.reject, engines.engines, engines.askable)
        tasks += Receivers(
            receivers,
            *told,
            session,
            self._where.runtime,
            state_directory=self._where.state,
            settings=self._receiver_settings,
        ).start(group)
        if forwarder is not None:
            tasks.append(group.create_task(forwarder.run(), name="forward"))
        if self._companion is not None:
            companion = self._companion.run(lambda: self._publisher.snapshot)
            tasks.append(group.create_task(companion, name="companion"))
        return tasks

    def _open_sinks(self) -> "Sinks":
        from jouled.app.runtime.sinks import Sinks

        return Sinks(
            self._sink_settings,
            self._store,
            self._metering.own,
            node=self._node,
            interval_seconds=self._config.spool.interval_seconds,
            off=families_off(self._config.metrics.off),
            wall_ns=time.time_ns,
        )

    async def _remember_receipts(self) -> None:
        try:
            self._metering.pipeline.remember(await self._store.receipts(ReceiptQuery(limit=REMEMBERED_RECEIPTS)))
        except StoreError as error:
            _log.warning("requests sent again after this restart would count twice: %s", error)

    async def _listening(self) -> "Running":
        from jouled.outputs.serve import build_app, start

        door = self._front.door(self._plugins.http_ingests(), self._token)
        web_config_file = Path(self._config.serve.web_config_file) if self._config.serve.web_config_file else None
        server = await start(build_app(door, web_config_file), listen=self._listen, unix_socket=self._where.socket)
        _log.info("jouled %s on %s, books in %s", jouled.__version__, self._listen, self._where.state)
        return server

    async def _listening_to_grpc(self, listen: str, refused: Counter[str]) -> "GrpcDoor":
        from jouled.app.runtime.requests.grpc_door import GrpcDoor

        file = self._config.serve.web_config_file
        door = GrpcDoor(
            self._plugins.grpc_ingests(),
            self._front.accept,
            self._front.forward,
            refused,
            token=self._token,
            web_config_file=Path(file) if file else None,
        )
        port = await door.start(listen)
        _log.info("traces by gRPC on port %d of %s", port, listen.rpartition(":")[0])
        return door

    async def _commit_the_rest(self) -> None:
        """The last commit, with what the sources said as they ended."""
        if self._failure is not None:
            return
        self._advance()
        self._continuity.whole_next()
        self._chronicle.mark_next()
        await self._publish()
        if self._publisher.waiting:
            _log.error("%d receipts are lost: %s", self._publisher.waiting, self._publisher.trouble)

    async def _forget(self, tenant: str) -> int:
        """Remove a tenant's receipts from everything that the daemon keeps; returns how many the store had."""
        self._metering.pipeline.forget(tenant)
        self._publisher.forget(tenant)
        self._continuity.whole_next()  # the state and the inputs on disk name the tenant, too
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
        looks = self._discovers and not self._power_settings
        return PowerSources(
            self._plugins.power,
            self._power_settings,
            self._plugins.discoverable() if looks else {},
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
            if not (self._front.is_ready or unproven or self._publisher.snapshot.sequence == 0):
                self._front.is_ready = True
                self._reloads.works()
                group.create_task(self._settle())
                self._notifier.ready(f"serving on {self._listen}")
            await self._until_next_tick()

    def _advance(self) -> None:
        receipts = self._metering.advance()
        if self._config.privacy.receipts:
            self._publisher.hold(receipts)
        if self._companion is not None:
            self._companion.take(receipts)

    async def _publish(self) -> None:
        """Books and snapshot are of one moment: nothing is fed between them."""
        async with self._one_commit:
            await self._commit()

    async def _commit(self) -> None:
        metering = self._metering
        if metering.has_failed:
            return
        self._durable.begin()
        snapshot = metering.own.added_to(metering.pipeline.snapshot(metering.clock.now_ns()))
        snapshot = self._reloads.added_to(self._sinks.added_to(snapshot))
        commit = Commit(books=metering.pipeline.books(), own=metering.own, clock=self._clock_state)
        progress = self._continuity.progress()
        self._coverage.look(snapshot)
        self._energy_watch.look(snapshot)
        if self._serves:
            snapshot = await self._quarantine.look(snapshot)
        outgoing = self._sinks.outgoing(snapshot)
        committed = await self._publisher.publish(commit, snapshot, progress, outgoing)
        self._durable.end(committed=committed)
        if committed:
            self._sinks.committed(outgoing)
            await self._chronicle.look(snapshot)
        else:
            self._continuity.lost()

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

    async def _until_next_tick(self) -> None:
        """Wait for the next tick, for a crowd of senders, or for the first readings: nobody waits for those longer."""
        now_ns = self._metering.clock.now_ns()
        due_ns = ((now_ns - _TICK_PHASE_NS) // _SECOND_NS + 1) * _SECOND_NS + _TICK_PHASE_NS
        left_seconds = (due_ns - now_ns) / _SECOND_NS
        pause_seconds = min(left_seconds, SHORTEST_TICK_SECONDS) if self._news.is_set() else 0.0
        await asyncio.sleep(pause_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_seconds - pause_seconds):
                await (self._durable.crowd if self._news.is_set() else self._news).wait()

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


def _plugins() -> Plugins:
    plugins = load_plugins()
    for refused in plugins.refused:
        _log.warning("%s", refused)
    return plugins


def _directories(options: RunOptions, config: Config) -> Paths:
    where = paths(options, config, os.environ)
    try:
        where.runtime.mkdir(mode=0o750, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"the directory {where.runtime} cannot be made: {error.strerror}", mend="Give another one with --state DIR"
        ) from error
    return where


def _store(directory: Path, spool: Spool) -> Store:
    limits = Limits(
        points_bytes=round(spool.points_mebibytes * 1024 * 1024),
        points_ns=nanoseconds(spool.points_days * 86_400.0),
    )
    return Store(directory, receipt_days=spool.receipts_days, receipt_mebibytes=spool.receipts_mebibytes, limits=limits)


def _recorder(options: RunOptions, node: str, clock: BootClock) -> Writer | None:
    if options.record is None:
        return None
    return Writer(options.record, node=node, started_ns=clock.now_ns(), boot_offset_ns=clock.offset_ns)
