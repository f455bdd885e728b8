"""The core and what stands around it: everything that is fed goes through here, and so does every tick."""

import logging
import time
from collections.abc import Callable, Collection, Sequence

from jouled.api import Reading
from jouled.app.runtime.batch import Batch
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.engines.device_processes import DeviceProcesses
from jouled.app.runtime.own import OwnCounts
from jouled.app.runtime.recording.files import RecordingError
from jouled.app.runtime.recording.last_minutes import LastMinutes
from jouled.app.runtime.recording.recording import Writer
from jouled.app.runtime.sources import Sources
from jouled.app.runtime.wall_clock import WallClock
from jouled.core.journal import Journal
from jouled.core.pipeline import Input, Pipeline
from jouled.model.readings import ClockStep, SourceReport
from jouled.model.receipt import Receipt

STEP_NS = 50_000_000
"""A wall clock that is this far from where it should be has been set; less is the jitter of reading two clocks."""

FAILED = "metering_failed"
"""Why nothing is taken after an error of the core."""

_log = logging.getLogger(__name__)


class Metering:
    """One node's metering. Lives in the loop's thread.

    on_failure: called once with an error of the core. The books may be wrong then, so the process has to end; until it
    does, nothing is taken any more.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        clock: BootClock,
        own: OwnCounts,
        on_failure: Callable[[Exception], None],
        recorder: Writer | None = None,
        last_minutes: LastMinutes | None = None,
        journal: Journal | None = None,
        ignored_sources: Collection[str] = (),
        tried_sources: Collection[str] = (),
    ) -> None:
        self.pipeline = pipeline
        self.clock = clock
        self.wall = WallClock()
        self.own = own
        self.sources = Sources(ignored_sources, tried_sources)
        self.processes = DeviceProcesses()
        self._on_failure = on_failure
        self._recorder = recorder
        self._last_minutes = last_minutes
        self._journal = Journal() if journal is None else journal
        self.has_failed = False
        for core_ns, wall_minus_core_ns in pipeline.clock_steps:
            self.wall.step(core_ns, wall_minus_core_ns)
        if self.wall.wall_minus_core_ns:
            self._record(ClockStep(clock.now_ns(), self.wall.wall_minus_core_ns))

    def feed(self, item: Input) -> str:
        """Feed the core; returns why it refused the item, the empty string if it took it."""
        if self.has_failed:
            return FAILED
        self._record(item)
        if isinstance(item, SourceReport):
            self.sources.report(item)
        try:
            reason = self.pipeline.feed(item)
        except Exception as error:  # noqa: BLE001 - the core never raises on bad input: its books are not to be trusted
            self._fail(error)
            return FAILED
        self._journal.fed(item, reason)
        return reason

    def take_batch(self, batch: Batch) -> None:
        """Take what a sampler said."""
        self.sources.heard(batch.source, batch.boot_ns + self.clock.offset_ns)
        self.own.reads(batch)
        self.processes.note(batch.readings)
        self.processes.note_devices(batch.devices)
        for device in batch.devices:
            self.feed(device)
        self._feed_readings(batch.readings)
        for report in batch.reports:
            self.feed(report)

    def _feed_readings(self, readings: Sequence[Reading]) -> None:
        """Feed many readings: there may be thousands a second."""
        if self.has_failed:
            return
        if self._recorder is not None:
            for reading in readings:
                self._recorder_takes(reading)
        if self._last_minutes is not None:
            self._last_minutes.take_all(readings)
        try:
            self.pipeline.feed_readings(readings)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
            return
        self._journal.fed_readings(readings)

    def advance(self) -> list[Receipt]:
        """Let time pass; returns the receipts that are final now."""
        now_ns = self.clock.now_ns()
        self._look_at_wall_clock()
        for report in list(self.sources.silent(now_ns)):
            self.feed(report)
        self._with_recorder(Writer.flush)
        if self._last_minutes is not None:
            self._last_minutes.turn(now_ns)
        if self.has_failed:
            return []
        try:
            receipts = self.pipeline.advance(now_ns)
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(error)
            return []
        self._journal.advanced(now_ns)
        return receipts

    def _fail(self, error: Exception) -> None:
        self.has_failed = True
        self._on_failure(error)

    def _look_at_wall_clock(self) -> None:
        before_ns = self.clock.now_ns()
        wall_ns = time.time_ns()
        after_ns = self.clock.now_ns()
        wall_minus_core_ns = wall_ns - before_ns
        moved_ns = wall_minus_core_ns - self.wall.wall_minus_core_ns
        if after_ns - before_ns < STEP_NS // 10 and abs(moved_ns) > STEP_NS:
            _log.warning("the wall clock was set by %.3f s", moved_ns / 1e9)
            self.wall.step(before_ns, wall_minus_core_ns)
            self.feed(ClockStep(before_ns, wall_minus_core_ns))

    def close(self) -> None:
        """Finish the recording, if there is one."""
        self._with_recorder(Writer.close)

    def _record(self, item: Input) -> None:
        if self._last_minutes is not None:
            self._last_minutes.take(item)
        self._recorder_takes(item)

    def _recorder_takes(self, item: Input) -> None:
        self._with_recorder(lambda recorder: recorder.write(item))

    def _with_recorder(self, act: Callable[[Writer], None]) -> None:
        if self._recorder is None:
            return
        try:
            act(self._recorder)
        except (OSError, RecordingError) as error:
            _log.error("the recording ends here, it cannot be written: %s", error)
            self._recorder = None
