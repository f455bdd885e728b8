"""The core and what stands around it: everything that is fed goes through here, and so does every tick."""

import logging
import time
from collections.abc import Callable

from jouled.app.runtime.batch import Batch
from jouled.app.runtime.clock import BootClock
from jouled.app.runtime.own import OwnCounts
from jouled.app.runtime.recording import Writer
from jouled.app.runtime.recording_files import RecordingError
from jouled.app.runtime.sources import Sources
from jouled.app.runtime.wall_clock import WallClock
from jouled.core.pipeline import Input, Pipeline
from jouled.model.readings import ClockStep, SourceReport
from jouled.model.receipt import Receipt

STEP_NS = 50_000_000
"""A wall clock that is this far from where it should be has been set; less is the jitter of reading two clocks."""

_log = logging.getLogger(__name__)


class Metering:
    """One node's metering. Lives in the loop's thread.

    on_failure: called once with an error of the core. The books may be wrong then, so the process has to end.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        clock: BootClock,
        own: OwnCounts,
        on_failure: Callable[[Exception], None],
        recorder: Writer | None = None,
    ) -> None:
        self.pipeline = pipeline
        self.clock = clock
        self.wall = WallClock()
        self.own = own
        self.sources = Sources()
        self._on_failure = on_failure
        self._recorder = recorder

    def feed(self, item: Input) -> str:
        """Feed the core; returns why it refused the item, the empty string if it took it."""
        self._record(item)
        if isinstance(item, SourceReport):
            self.sources.report(item)
        try:
            return self.pipeline.feed(item)
        except Exception as error:  # the core never raises on bad input: its books cannot be trusted any more
            self._on_failure(error)
            raise

    def take_batch(self, batch: Batch) -> None:
        """Take what a sampler said."""
        self.sources.heard(batch.source, batch.boot_ns + self.clock.offset_ns)
        self.own.reads(batch)
        for items in (batch.devices, batch.readings, batch.reports):
            for item in items:
                self.feed(item)

    def advance(self) -> list[Receipt]:
        """Let time pass; returns the receipts that are final now."""
        now_ns = self.clock.now_ns()
        self._look_at_wall_clock()
        for report in list(self.sources.silent(now_ns)):
            self.feed(report)
        self._with_recorder(Writer.flush)
        try:
            return self.pipeline.advance(now_ns)
        except Exception as error:
            self._on_failure(error)
            raise

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
        self._with_recorder(lambda recorder: recorder.write(item))

    def _with_recorder(self, act: Callable[[Writer], None]) -> None:
        if self._recorder is None:
            return
        try:
            act(self._recorder)
        except (OSError, RecordingError) as error:
            _log.error("the recording ends here, it cannot be written: %s", error)
            self._recorder = None
