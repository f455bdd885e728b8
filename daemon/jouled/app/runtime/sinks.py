"""The push sinks of the daemon: opens them, gives every commit what goes to the spool, and runs their streams."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

import jouled
from jouled.api import Delivery, OpenSink, Sink, SinkSettings, TakesPoints, TakesReceipts
from jouled.app.runtime.own import OwnCounts
from jouled.model.errors import ConfigurationError
from jouled.model.points import Kind
from jouled.model.snapshot import Snapshot
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds
from jouled.outputs.metrics.points import packed, unpacked
from jouled.outputs.sinks.counts import SinkCounts
from jouled.outputs.sinks.place import Place, Receiver
from jouled.outputs.sinks.runner import Record, Runner
from jouled.outputs.store import Behind, DeadLetter, Outgoing, Store, StoreError, Stream

MOST_HELD_MOMENTS = 360
"""Moments of all series held while the store cannot be written, an hour at 10 s; older ones are dropped and counted."""
CLOSE_SECONDS = 1.0

_STORE_FAILS = "store_failing"

_log = logging.getLogger(__name__)

Configured = Mapping[str, tuple[Sink, SinkSettings]]


class Sinks:
    """All configured sinks. Without any it does nothing and costs nothing."""

    def __init__(
        self,
        configured: Configured,
        store: Store,
        own: OwnCounts,
        *,
        node: str,
        interval_seconds: float,
        off: frozenset[str] = frozenset(),
        wall_ns: Callable[[], int],
    ) -> None:
        """Open the sinks and take up their places in the spool. `off`: names of families that are not sent.

        What waits for sinks that are configured no more, and what was counted of them, is kept until `settle`.

        Raises:
            ConfigurationError: the settings of one make no sense.
            StoreError: their places cannot be kept.
        """
        self._store = store
        self._own = own
        self._interval_ns = nanoseconds(interval_seconds)
        self._off = off
        self._wall_ns = wall_ns
        self._due_ns = 0
        self._held: list[tuple[int, bytes]] = []
        self._dead: list[DeadLetter] = []
        self._open = {name: _opened(name, sink, settings, node) for name, (sink, settings) in configured.items()}
        streams = [(name, kind) for name, sink in self._open.items() for kind in sink.most]
        places = store.subscribe(streams)
        own.sinks |= {name: SinkCounts() for name in self._open.keys() - own.sinks.keys()}
        self._streams: list[Stream] = streams
        receivers = {name: Receiver() for name in self._open}
        self.runners = [
            self._runner(name, kind, configured[name][1], places[name, kind], receivers[name]) for name, kind in streams
        ]
        self._takes_points = any(kind == "points" for _, kind in streams)

    def _runner(self, name: str, kind: Kind, settings: SinkSettings, taken: int, receiver: Receiver) -> Runner:
        sink = self._open[name]

        async def points_after(after: int, most: int) -> Behind[Record]:
            return await self._store.points_after(after, most, unpacked)

        async def receipts_after(after: int, most: int) -> Behind[Record]:
            return await self._store.receipts_after(after, most)

        return Runner(
            name,
            kind,
            read=points_after if kind == "points" else receipts_after,
            send=_sender(sink, kind),
            most=sink.most[kind],
            timeout_seconds=settings.timeout_seconds,
            place=Place(taken, self._store.certain((name, kind)), settings.resend_seconds),
            receiver=receiver,
            counts=self._own.sinks[name],
            wall_ns=self._wall_ns,
        )

    def start(self, group: asyncio.TaskGroup) -> list["asyncio.Task[None]"]:
        """Begin to carry; returns the tasks to be ended."""
        return [group.create_task(runner.run(), name=f"sink {runner.name} {runner.kind}") for runner in self.runners]

    async def settle(self) -> None:
        """The daemon works with these sinks: others are forgotten."""
        for name in self._own.sinks.keys() - self._open.keys():
            del self._own.sinks[name]
        try:
            await self._store.keep_only(self._streams)
        except StoreError as error:
            _log.warning("what waits for former sinks stays for now: %s", error)

    # commits

    def outgoing(self, snapshot: Snapshot) -> Outgoing:
        """What the commit of this snapshot brings to the spool. `committed` must follow before the next one."""
        wall_ns = snapshot.t_ns + snapshot.wall_minus_core_ns
        if self._takes_points and not self._due_ns - self._interval_ns <= wall_ns < self._due_ns:
            self._due_ns = (wall_ns // self._interval_ns + 1) * self._interval_ns
            self._held.append((wall_ns, packed(snapshot, jouled.__version__, self._own.since_ns, self._off)))
            self._drop_excess()
        for runner in self.runners:
            self._dead += runner.dead_letters
            runner.dead_letters = []
        places = {(runner.name, runner.kind): runner.place for runner in self.runners}
        return Outgoing(
            points=tuple(self._held),
            cursors={stream: place.taken for stream, place in places.items()},
            certain={stream: place.certain for stream, place in places.items()},
            dead_letters=tuple(self._dead),
        )

    def committed(self, outgoing: Outgoing) -> None:
        """The store has it: what is new can be sent."""
        del self._held[: len(outgoing.points)]
        del self._dead[: len(outgoing.dead_letters)]
        for (sink, kind, reason), number in self._store.take_dropped().items():
            if sink in self._own.sinks:
                self._own.sinks[sink].lost(kind, reason, number)
        for runner in self.runners:
            runner.wake()

    def _drop_excess(self) -> None:
        excess = len(self._held) - MOST_HELD_MOMENTS
        if excess > 0:
            del self._held[:excess]
            for runner in self.runners:
                if runner.kind == "points":
                    self._own.sinks[runner.name].lost("points", _STORE_FAILS, excess)

    def added_to(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot with what waits for the sinks in it."""
        if not self._open:
            return snapshot
        waiting = self._store.waiting
        oldest: dict[tuple[str, ...], float] = {}
        for (sink, _), wall_ns in waiting.oldest_ns.items():
            oldest[sink,] = min(oldest.get((sink,), wall_ns), wall_ns)
        gauges = {
            **snapshot.gauges,
            "sink_oldest_pending_timestamp_seconds": {
                labels: wall_ns / NANOSECONDS_PER_SECOND for labels, wall_ns in oldest.items()
            },
            "sink_up": {(name,): float(not self._trouble_of(name)) for name in self._open},
            "spool_bytes": {("points",): float(waiting.points_bytes)},
        }
        return replace(snapshot, gauges=gauges)

    def _trouble_of(self, name: str) -> str:
        return next((runner.trouble for runner in self.runners if runner.name == name and runner.trouble), "")

    # the end

    async def drain(self, seconds: float) -> None:
        """Send what waits as far as that is possible within so many seconds; the next commit keeps how far it came."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(runner.drain() for runner in self.runners))

    async def close(self) -> None:
        """Let go of all connections, of all sinks at the same time."""
        await asyncio.gather(*(_close(name, sink) for name, sink in self._open.items()))


async def _close(name: str, sink: OpenSink) -> None:
    try:
        async with asyncio.timeout(CLOSE_SECONDS):
            await sink.close()
    except Exception as error:  # noqa: BLE001 - whatever a sink raises, the others are closed too
        _log.warning("sink %s did not close in order: %s: %s", name, type(error).__name__, error)


def _opened(name: str, sink: Sink, settings: SinkSettings, node: str) -> OpenSink:
    opened = sink.open(settings, node)
    for kind, protocol in (("points", TakesPoints), ("receipts", TakesReceipts)):
        if kind in opened.most and not isinstance(opened, protocol):
            raise ConfigurationError(f"sink {name}: `{sink.name}` says that it takes {kind} and has no such method")
    return opened


def _sender(sink: OpenSink, kind: Kind) -> Callable[[Sequence[Any]], Awaitable[Delivery]]:
    if kind == "points" and isinstance(sink, TakesPoints):
        return sink.points
    if kind == "receipts" and isinstance(sink, TakesReceipts):
        return sink.receipts
    raise TypeError(f"{sink!r} takes no {kind}")
