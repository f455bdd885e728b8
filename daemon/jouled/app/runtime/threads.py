"""Keeps a sampler running in a thread: for sources that read files, which do not hang."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from jouled.api import PowerCollector, PowerSettings
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.samplers import sample

_STOP_SECONDS = 1.5
_AGAIN_SECONDS = 30.0
_log = logging.getLogger(__name__)


class ThreadSupervisor:
    """One thread for one source; `deliver` is called in the loop's thread."""

    def __init__(
        self, collector: PowerCollector, settings: PowerSettings, clock: BootClock, deliver: Callable[[Batch], None]
    ) -> None:
        self.name = collector.name
        self._collector = collector
        self._settings = settings
        self._clock = clock
        self._deliver = deliver

    async def run(self) -> None:
        """Sample until cancelled."""
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        ended = asyncio.Event()

        def emit(batch: Batch) -> None:
            _call(loop, lambda: self._deliver(batch))

        def work() -> None:
            while not stop.is_set():
                sample(self._collector, self._settings, self._clock, emit, stop)
                stop.wait(_AGAIN_SECONDS)  # it ended by a fatal error, and a thread can but try again
            _call(loop, ended.set)

        threading.Thread(target=work, name=f"sample-{self.name}", daemon=True).start()
        try:
            await ended.wait()
        finally:
            stop.set()
            try:
                await asyncio.wait_for(ended.wait(), _STOP_SECONDS)
            except TimeoutError:
                _log.warning("source %s: what it read last is lost, its read did not end in time", self.name)

    async def release(self, seconds: float) -> bool:
        """Nothing to let go of: reading a file keeps no device busy."""
        del seconds
        return False


def _call(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed while a read was under way
        loop.call_soon_threadsafe(callback)
