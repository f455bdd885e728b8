"""The opened Redfish source: an event loop in a thread of its own asks the BMCs; a read gathers what they said."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Mapping, Sequence

from jouled.api import Clock, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.redfish_part import Part
from jouled_collectors.power.redfish_patience import Patience
from jouled_collectors.power.redfish_settings import RedfishSettings

DEFAULT_INTERVAL_SECONDS = 10.0
"""A BMC takes 50 to 2 000 ms for an answer and measures about once a second (power-sources.md 5.2)."""

READ_WAIT_SECONDS = 3.0
"""A read waits so long for the BMCs; the answers of slower ones come with the next read, with their own times."""

OPEN_WAIT_SECONDS = 7.0
"""Finding the meters of a quick BMC takes some ten requests; `jouled check` waits 10 s for all."""

_CLOSE_SECONDS = 2.0
_TLS_SHUTDOWN_SECONDS = 0.02
"""aiohttp lets TLS connections end behind its back (its documentation, "Graceful Shutdown")."""


class RedfishSource:
    """The BMCs of this node."""

    def __init__(self, settings: RedfishSettings, clock: Clock, patience: Mapping[str, Patience]) -> None:
        self.interval_seconds = settings.interval_seconds or DEFAULT_INTERVAL_SECONDS
        self.devices: Sequence[Device] = ()
        self.parts: Mapping[str, SourceError | None] = {}
        self._parts = [Part(bmc, clock, self.interval_seconds, patience[bmc.name]) for bmc in settings.bmcs]
        self._asking: dict[str, concurrent.futures.Future[None]] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="redfish", daemon=True)
        self._thread.start()

    def open(self) -> None:
        """Ask every BMC what it has. Raises `SourceError` when none works; a slow one is waited for no longer."""
        self._ask(OPEN_WAIT_SECONDS)

    def read(self) -> list[Reading]:
        """Ask every BMC that is not asked yet or left alone, and give what is known by then.

        Raises:
            SourceError: no BMC works.
        """
        self._ask(READ_WAIT_SECONDS)
        return [reading for part in self._parts for reading in part.take()]

    def close(self) -> None:
        """Log out everywhere and end the thread. A second call does nothing."""
        if self._loop.is_closed():
            return
        try:
            self._submit(self._end()).result(_CLOSE_SECONDS)
        except TimeoutError:
            pass
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CLOSE_SECONDS)
            if not self._thread.is_alive():
                self._loop.close()

    def _ask(self, wait_seconds: float) -> None:
        for part in self._parts:
            if part.name not in self._asking and part.is_due():
                self._asking[part.name] = self._submit(part.ask())
        concurrent.futures.wait(self._asking.values(), wait_seconds)
        self._asking = {name: future for name, future in self._asking.items() if not future.done()}
        self.parts = {part.name: part.error for part in self._parts}
        self.devices = tuple(device for part in self._parts for device in part.devices)
        if all(part.has_failed for part in self._parts):
            raise self._nothing_works()

    def _submit(self, coroutine: Coroutine[None, None, None]) -> concurrent.futures.Future[None]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def _end(self) -> None:
        for future in self._asking.values():
            future.cancel()
        await asyncio.sleep(0)
        await asyncio.gather(*(part.close() for part in self._parts), return_exceptions=True)
        await asyncio.sleep(_TLS_SHUTDOWN_SECONDS)

    def _nothing_works(self) -> SourceError:
        """The error of the only BMC, or of the one that is nearest to working with what all say."""
        errors = [error for error in self.parts.values() if error is not None]
        nearest = min(errors, key=lambda error: _NEAREST_FIRST.index(error.state))
        if len(errors) == 1:
            return nearest
        message = f"None of {len(errors)} BMCs can be read: {'; '.join(error.message for error in errors)}"[:500]
        return SourceError(nearest.state, nearest.reason, message, mend=nearest.mend)


_NEAREST_FIRST = (SourceState.DOWN, SourceState.DENIED, SourceState.ABSENT)
