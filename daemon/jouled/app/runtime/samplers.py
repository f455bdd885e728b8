"""The sampler: keeps one power source open and reads it on an absolute schedule, until it is stopped.

It blocks, so it runs in a thread or in a process of its own, and it shares nothing with the daemon but what it emits.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from jouled.api import Clock, HasParts, PowerCollector, PowerSettings, PowerSource, Reading
from jouled.app.runtime.batch import Batch
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import SourceReport
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds, seconds
from jouled.outputs.backoff import Backoff

Emit = Callable[[Batch], None]

_SIGN_OF_LIFE_NS = 1_500_000_000
_SHORTEST_INTERVAL_NS = 1_000_000
_log = logging.getLogger(__name__)


def sample(
    collector: PowerCollector,
    settings: PowerSettings,
    clock: Clock,
    emit: Emit,
    stop: threading.Event,
    *,
    ends_if_absent: bool = False,
) -> None:
    """Open the source, read it on schedule, and open it again after an error, until `stop` is set.

    Returns early after a fatal `SourceError`, for the source then needs a new process, and on request where the node
    does not have the source at all.
    """
    outbox = _Outbox(collector.name, clock, emit, stop)
    missing = Backoff(60.0, 300.0)
    broken = missing if settings.startup == "ignore" else Backoff(1.0, 30.0)
    while not stop.is_set():
        error = _session(collector, settings, clock, outbox)
        if error is None:
            break
        if outbox.has_read:
            broken.reset()
            missing.reset()
        outbox.fail(error)
        if error.fatal or (ends_if_absent and error.state is SourceState.ABSENT):
            break
        backoff = missing if error.state in {SourceState.ABSENT, SourceState.DENIED} else broken
        outbox.wait_until(clock.now_ns() + nanoseconds(backoff.next_seconds()))
    outbox.finish()


def _session(collector: PowerCollector, settings: PowerSettings, clock: Clock, outbox: "_Outbox") -> SourceError | None:
    """Open, read until it fails, close. Returns why it failed, `None` if it was stopped."""
    outbox.has_read = False
    source: PowerSource | None = None
    try:
        source = collector.open(settings, clock)
        _read_on_schedule(source, clock, outbox)
    except SourceError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the boundary to plug-ins: a bug in one stops no other source
        return _crash(collector.name, error)
    finally:
        if source is not None:
            _close(collector.name, source)
    return None


def _read_on_schedule(source: PowerSource, clock: Clock, outbox: "_Outbox") -> None:
    """Read at multiples of the interval; ticks that pass during a slow read are skipped."""
    interval_ns = max(_SHORTEST_INTERVAL_NS, nanoseconds(source.interval_seconds))
    several = source if isinstance(source, HasParts) else None  # asked once: it costs as much as reading two GPUs
    due_ns = clock.now_ns()
    while not outbox.stop.is_set():
        begun_ns = clock.now_ns()
        readings = source.read()
        ended_ns = clock.now_ns()
        if several is not None:
            outbox.tell_parts(several.parts)
        outbox.add(source.devices, readings, seconds(ended_ns - begun_ns), seconds(begun_ns - due_ns))
        due_ns = (due_ns // interval_ns + 1) * interval_ns
        if due_ns < ended_ns:
            outbox.miss(seconds(ended_ns - due_ns))
            due_ns = (ended_ns // interval_ns + 1) * interval_ns
        outbox.wait_until(due_ns)


def _crash(name: str, error: Exception) -> SourceError:
    _log.error("source %s failed unexpectedly", name, exc_info=error)
    return SourceError(SourceState.DOWN, "crash", f"{type(error).__name__}: {error}")


def _close(name: str, source: PowerSource) -> None:
    try:
        source.close()
    except Exception:  # noqa: BLE001 - the boundary to plug-ins: a broken source may fail to close as well
        _log.warning("source %s could not be closed", name, exc_info=True)


def _report(source: str, error: SourceError | None, now_ns: int) -> SourceReport:
    if error is None:
        return SourceReport(source=source, state=SourceState.OK, t_ns=now_ns)
    return SourceReport(
        source=source,
        state=error.state,
        reason=error.reason,
        message=error.message,
        mend=error.mend,
        t_ns=now_ns,
    )


class _Outbox:
    """Collects what a source says and emits it.

    At the first read of each second, so that all sources wake the daemon at once; a sign of life where reads are rare.
    """

    def __init__(self, source: str, clock: Clock, emit: Emit, stop: threading.Event) -> None:
        self.stop = stop
        self.has_read = False
        self._clock = clock
        self._emit = emit
        self._source = source
        self._known: Sequence[Device] = ()
        self._parts: dict[str, SourceReport] = {}
        self._left: set[str] = set()
        self._emitted_ns = clock.now_ns()
        self._batch = self._empty()

    def add(
        self, devices: Sequence[Device], readings: list[Reading], read_seconds: float, lateness_seconds: float
    ) -> None:
        """Take one read. The first of a session is emitted at once, with the devices and the news that it works."""
        self._batch.readings.extend(readings)
        self._batch.read_seconds.append(read_seconds)
        self._batch.lateness_seconds.append(max(0.0, lateness_seconds))
        now_ns = self._clock.now_ns()
        if not self.has_read:
            self.has_read = True
            self._batch.reports.append(SourceReport(source=self._source, state=SourceState.OK, t_ns=now_ns))
            self._flush(now_ns, devices)
        elif now_ns // NANOSECONDS_PER_SECOND != self._emitted_ns // NANOSECONDS_PER_SECOND:
            self._flush(now_ns, devices)

    def miss(self, lateness_seconds: float) -> None:
        """Ticks were skipped, the first of them this long ago."""
        self._batch.lateness_seconds.append(lateness_seconds)

    def tell_parts(self, parts: Mapping[str, SourceError | None]) -> None:
        """Report each part whose state is another than at the last read, and those that are none any more."""
        now_ns = self._clock.now_ns()
        for part in (self._left | self._parts.keys()) - parts.keys():
            self._parts.pop(part, None)
            gone = SourceError(SourceState.ABSENT, "gone", f"{part} is no part of it any more")
            self._batch.reports.append(_report(f"{self._source}/{part}", gone, now_ns))
        self._left.clear()
        for part, error in parts.items():
            told = self._parts.get(part)
            state, reason = (error.state, error.reason) if error else (SourceState.OK, "")
            if told is None or (told.state, told.reason) != (state, reason):
                self._parts[part] = _report(f"{self._source}/{part}", error, now_ns)
                self._batch.reports.append(self._parts[part])

    def fail(self, error: SourceError) -> None:
        """Report an error at once, of the parts too: nobody asks them now."""
        now_ns = self._clock.now_ns()
        self._batch.reports.append(_report(self._source, error, now_ns))
        self._batch.reports += [_report(f"{self._source}/{part}", error, now_ns) for part in self._parts]
        self._left |= self._parts.keys()
        self._parts.clear()
        self._flush(now_ns, self._known)

    def finish(self) -> None:
        """Emit what was read since the last batch."""
        if self._batch.readings:
            self._flush(self._clock.now_ns(), self._known)

    def wait_until(self, due_ns: int) -> None:
        """Wait for this time of the clock or for `stop`."""
        while (remaining_ns := due_ns - self._clock.now_ns()) > 0:
            alive_ns = max(0, self._emitted_ns + _SIGN_OF_LIFE_NS - (due_ns - remaining_ns))
            if self.stop.wait(seconds(min(remaining_ns, alive_ns))):
                return
            now_ns = self._clock.now_ns()
            if now_ns - self._emitted_ns >= _SIGN_OF_LIFE_NS:
                self._flush(now_ns, self._known)

    def _flush(self, now_ns: int, devices: Sequence[Device]) -> None:
        if devices is not self._known and list(devices) != list(self._known):
            self._batch.devices.extend(devices)
            self._known = tuple(devices)
        self._batch.boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._batch.wall_ns = time.time_ns()
        self._emitted_ns = now_ns
        batch, self._batch = self._batch, self._empty()
        self._emit(batch)

    def _empty(self) -> Batch:
        return Batch(source=self._source, boot_ns=0, wall_ns=0)
