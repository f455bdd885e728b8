"""Opens a source, reads it some times, and tells what became of it: a state and a reason, as the daemon would show."""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from jouled.api import HasParts, PowerCollector, PowerSettings, PowerSource, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.testing.clock import ManualClock

BETWEEN_SECONDS = 1.0


class Trial(Struct, frozen=True, kw_only=True):
    """What a source did.

    state, reason, mend: as its last read left it. devices: as it named them last. reads: the readings of each read
    that succeeded. parts: state and reason of each part after the last read, for a source that has some.
    """

    state: SourceState
    reason: str = ""
    message: str = ""
    mend: str = ""
    devices: tuple[Device, ...] = ()
    reads: tuple[tuple[Reading, ...], ...] = ()
    parts: Mapping[str, tuple[str, str]] = {}

    @property
    def readings(self) -> tuple[Reading, ...]:
        """Those of the last read that succeeded."""
        return self.reads[-1] if self.reads else ()


def trial(
    collector: PowerCollector,
    settings: PowerSettings,
    clock: ManualClock | None = None,
    *,
    reads: int = 2,
    between: Callable[[int], None] = lambda _: None,
) -> Trial:
    """Open the source and read it `reads` times, a second of its clock apart; `between(k)` is called before read k.

    A `SourceError` ends the trial and is its outcome. Any other exception is a bug of the collector and is raised.
    """
    clock = clock or ManualClock()
    try:
        source = collector.open(settings, clock)
    except SourceError as error:
        return _failed(error, None, [])
    done: list[tuple[Reading, ...]] = []
    try:
        for number in range(reads):
            between(number)
            clock.advance(BETWEEN_SECONDS)
            done.append(tuple(source.read()))
    except SourceError as error:
        return _failed(error, source, done)
    finally:
        source.close()
    return Trial(state=SourceState.OK, devices=tuple(source.devices), reads=tuple(done), parts=_parts(source))


def outcome(
    collector: PowerCollector,
    settings: PowerSettings,
    clock: ManualClock | None = None,
    *,
    reads: int = 2,
    between: Callable[[int], None] = lambda _: None,
) -> tuple[str, str]:
    """State and reason of a trial, for tables of faults."""
    done = trial(collector, settings, clock, reads=reads, between=between)
    return done.state.value, done.reason


def _failed(error: SourceError, source: PowerSource | None, reads: Sequence[tuple[Reading, ...]]) -> Trial:
    return Trial(
        state=error.state,
        reason=error.reason,
        message=error.message,
        mend=error.mend,
        devices=tuple(source.devices) if source else (),
        reads=tuple(reads),
        parts=_parts(source) if source else {},
    )


def _parts(source: PowerSource) -> dict[str, tuple[str, str]]:
    if not isinstance(source, HasParts):
        return {}
    return {
        part: (error.state.value, error.reason) if error else (SourceState.OK.value, "")
        for part, error in source.parts.items()
    }
