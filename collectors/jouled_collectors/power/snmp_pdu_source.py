"""The opened PDUs. An event loop in a thread asks them; a read takes what they have said.

So an answer is stamped when it comes, and a PDU that hangs is waited for by nobody.
"""

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from jouled.api import Clock, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.snmp_pdu_part import PduPart, PduReading
from jouled_collectors.power.snmp_pdu_profile import load
from jouled_collectors.power.snmp_pdu_settings import SnmpPduSettings

DEFAULT_INTERVAL_SECONDS = 5.0
"""Sensors of PDUs are renewed every 1 to 5 s; a read of 4 outlets costs 2 ms of CPU time (measured)."""

PATIENCE_SECONDS = 1.0
"""What a read waits for PDUs that answered last time; of the others it takes at the next read what came until then."""

FIRST_PATIENCE_SECONDS = 8.0
"""The same when the source is opened: a PDU is found out about in less, unless its timeout_seconds is long."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class SnmpPduSource:
    """PDUs, each of which may fail alone. `devices` are all their sockets, those too that cannot be read now."""

    def __init__(self, settings: SnmpPduSettings, clock: Clock) -> None:
        """Make the parts; asks nobody yet. Raises `SourceError` for profiles that cannot be read."""
        self.interval_seconds = settings.interval_seconds or DEFAULT_INTERVAL_SECONDS
        profiles = load(settings.profiles_directory)
        self._parts = [PduPart(pdu, profiles, settings.feed, self.interval_seconds, clock) for pdu in settings.pdus]
        self.devices: Sequence[Device] = ()
        self.parts: Mapping[str, SourceError | None] = {}
        self._clock = clock
        self._visits: dict[PduPart, asyncio.Task[list[PduReading]]] = {}
        self._patience_seconds = FIRST_PATIENCE_SECONDS
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_swallow)
        self._thread = threading.Thread(target=self._loop.run_forever, name="snmp_pdu", daemon=True)
        self._thread.start()

    def read(self) -> list[Reading]:
        """What the PDUs have said since the last read. Raises `SourceError` when none of them works."""
        readings = self._run(self._round())
        self.devices = tuple(device for part in self._parts for device in part.devices)
        self.parts = {part.name: part.error for part in self._parts}
        if not readings and all(part.has_failed for part in self._parts):
            raise self._all_failed()
        return readings

    def close(self) -> None:
        """Stop asking."""
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _round(self) -> list[Reading]:
        """Visit the PDUs that are due and not being visited; wait for those that usually answer."""
        came_late = self._harvest()
        now_ns = self._clock.now_ns()
        for part in self._parts:
            if part not in self._visits and now_ns >= part.due_ns:
                self._visits[part] = asyncio.create_task(part.visit())
        awaited = [visit for part, visit in self._visits.items() if not part.has_failed]
        if awaited:
            await asyncio.wait(awaited, timeout=self._patience_seconds)
        self._patience_seconds = PATIENCE_SECONDS
        return came_late + self._harvest()

    def _harvest(self) -> list[Reading]:
        readings: list[Reading] = []
        for part, visit in list(self._visits.items()):
            if visit.done():
                del self._visits[part]
                readings.extend(visit.result())
        return readings

    async def _stop(self) -> None:
        for visit in self._visits.values():
            visit.cancel()
        await asyncio.gather(*self._visits.values(), return_exceptions=True)
        for part in self._parts:
            part.close()
        await asyncio.sleep(0)  # pysnmp cancels its timers, which end in the next round of the loop

    def _all_failed(self) -> SourceError:
        errors = [part.error for part in self._parts if part.error is not None]
        if len(errors) == 1:
            return errors[0]
        first = errors[0]
        same = all((error.state, error.reason) == (first.state, first.reason) for error in errors)
        message = f"No PDU can be read: {'; '.join(error.message for error in errors)}"
        if same:
            return SourceError(first.state, first.reason, message, mend=first.mend)
        return SourceError(SourceState.DOWN, "all_failed", message, mend=first.mend)


def open_source(settings: SnmpPduSettings, clock: Clock) -> SnmpPduSource:
    """Open the PDUs and read them once. Raises `SourceError` when none of them works."""
    source = SnmpPduSource(settings, clock)
    try:
        source.read()
    except BaseException:
        source.close()
        raise
    return source


def _swallow(_loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
    """Bytes that are no SNMP make pysnmp raise inside the loop; whoever waits for an answer gets none."""
    _log.debug("pysnmp: %s: %s", context.get("message"), type(context.get("exception")).__name__)
