"""Going on after a restart where the last commit was (ADR 0006): what each commit saves, and taking it up again."""

import logging
import time
from pathlib import Path

from msgspec import Struct

import jouled
from jouled.app.runtime.clock import BootClock, ClockState
from jouled.app.runtime.garbage import without_collections
from jouled.app.runtime.publisher import Commit
from jouled.core.continuity import checkpoint, resume
from jouled.core.journal import Journal
from jouled.core.pipeline import Pipeline
from jouled.core.state import StateError
from jouled.model.parameters import Parameters
from jouled.outputs.store import Progress, Store

CHECKPOINT_SECONDS = 60.0
"""A restart replays at most the inputs of so long."""

MOST_JOURNAL_BYTES = 64 * 1024 * 1024
"""More than this since the last checkpoint, before compression to about a tenth, makes one before its time."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = logging.getLogger(__name__)


class Continuity:
    """Decides what a commit saves of the core: the inputs since the last one, or now and then the core as a whole."""

    def __init__(self, pipeline: Pipeline, journal: Journal) -> None:
        self._pipeline = pipeline
        self._journal = journal
        self._due = 0.0
        self._bytes = 0
        self._said = ""

    def progress(self) -> Progress:
        """What goes with the books of this moment; nothing is fed between the two."""
        if time.monotonic() < self._due and self._journal.is_whole:
            inputs = self._journal.take()
            self._bytes += len(inputs)
            if self._bytes > MOST_JOURNAL_BYTES:
                self._due = 0.0
            return Progress(inputs=inputs)
        return self._checkpoint()

    def lost(self) -> None:
        """The last progress was not committed: the next one has to be a whole."""
        self._due = 0.0

    def whole_next(self) -> None:
        """An orderly end comes: with a checkpoint the next start has nothing to replay."""
        self._due = 0.0

    def _checkpoint(self) -> Progress:
        self._journal.clear()
        self._bytes = 0
        self._due = time.monotonic() + CHECKPOINT_SECONDS
        try:
            with without_collections():
                return Progress(checkpoint=checkpoint(self._pipeline, jouled.__version__))
        except StateError as error:
            if str(error) != self._said:
                self._said = str(error)
                _log.error("open requests would not outlive a restart, the state %s", error)
            return Progress()


class TakenUp(Struct, frozen=True):
    """The core to go on with, its clock, and how it came about: empty (nothing was to go on from), or a result."""

    pipeline: Pipeline
    clock: BootClock
    result: str = ""


def take_up(store: Store, restored: Commit | None, parameters: Parameters) -> TakenUp:
    """Go on where the last commit was; where that cannot be, from its books; without any, begin."""
    if restored is None:
        return TakenUp(Pipeline(parameters), BootClock.equal_to_wall_now())
    rebooted = restored.clock is None or restored.clock.boot_id != boot_id()
    try:
        pipeline = _resumed(store, restored, parameters)
    except StateError as error:
        _log.warning("energy and requests that were open in the last run are unattributed: its state %s", error)
        pipeline = Pipeline(parameters, restored.books)
        taken = TakenUp(pipeline, BootClock.equal_to_wall_now(), "books_only")
    else:
        clock = _clock(pipeline, None if rebooted else restored.clock)
        pipeline.come_back(clock.now_ns())
        taken = TakenUp(pipeline, clock, "resumed")
    if rebooted and restored.clock is not None:
        pipeline.hardware_restarted()
    return taken


def _resumed(store: Store, restored: Commit, parameters: Parameters) -> Pipeline:
    begun = time.monotonic()
    saved = store.saved(time.time_ns())
    if saved is None:
        raise StateError("is missing, damaged, or ended badly twice in ten minutes")
    with without_collections():
        pipeline = resume(
            saved.state, saved.inputs, version=jouled.__version__, parameters=parameters, committed=restored.books
        )
    _log.info("gone on from the last commit in %.2f s", time.monotonic() - begun)
    return pipeline


def _clock(pipeline: Pipeline, stored: ClockState | None) -> BootClock:
    """Core time goes on with boot time; over a reboot it goes on with the wall clock, but never back."""
    if stored is not None and (clock := BootClock(stored.offset_ns)).now_ns() >= pipeline.now_ns:
        return clock
    steps = pipeline.clock_steps
    clock = BootClock.equal_to_wall_now()
    clock.offset_ns -= steps[-1][1] if steps else 0
    clock.offset_ns += max(pipeline.now_ns - clock.now_ns(), 0)
    return clock


def boot_id() -> str:
    """What the kernel calls this boot; empty where it does not say."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
