"""A recording through the core under a virtual clock, as fast as it goes."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from msgspec import Struct

from jouled.app.config.types import EngineConfig
from jouled.app.runtime.garbage import without_collections
from jouled.app.runtime.recording.files import RecordingError
from jouled.app.runtime.recording.recording import Broken, Entry, Heading, Line, Unknown, read
from jouled.core.pipeline import Pipeline
from jouled.model.engine import Engine, EngineSample
from jouled.model.parameters import Parameters
from jouled.model.readings import ClockStep, EnergyReading, PowerReading
from jouled.model.receipt import Receipt
from jouled.model.requests import RequestEvent, RequestStart
from jouled.model.snapshot import GroupBook, Snapshot
from jouled.model.units import NANOSECONDS_PER_SECOND

LONGEST_JUMP_NS = 3600 * NANOSECONDS_PER_SECOND
"""How far ahead one line may be; a node that was suspended for longer loses one reading by it."""

MOST_UNKNOWN_TYPES = 50
"""Names of unknown types that are counted one by one; garbage could hold any number."""

TakeReceipts = Callable[[Sequence[Receipt]], None]
Complain = Callable[[int, str], None]

_MOMENTS: dict[type, Callable[[Any], int]] = {
    EnergyReading: attrgetter("t_ns"),
    PowerReading: attrgetter("t_ns"),
    EngineSample: attrgetter("t_ns"),
    ClockStep: attrgetter("t_ns"),
    RequestEvent: lambda event: event.seen_ns or event.last_token_ns,
    RequestStart: lambda start: start.seen_ns or start.arrival_ns,
}


class Replayed(Struct, frozen=True, kw_only=True):
    """What came of a recording. `seconds`: real time that it took, reading and decoding included."""

    snapshot: Snapshot
    requests: int
    seconds: float
    lines: int
    broken_lines: int
    unknown_types: dict[str, int]
    rejected: dict[str, int]

    def summary(self) -> "Summary":
        """What `--summary` prints."""
        return Summary(
            requests=self.requests,
            requests_per_second=self.requests / self.seconds if self.seconds else 0.0,
            groups=self.snapshot.groups,
            total=self.snapshot.total,
            lines=self.lines,
            broken_lines=self.broken_lines,
            unknown_types=self.unknown_types,
            rejected=self.rejected,
        )


class Summary(Struct, frozen=True, kw_only=True):
    """The summary of docs/recording.md; energies are whole microjoules that add up."""

    requests: int
    requests_per_second: float
    groups: Sequence[GroupBook]
    total: GroupBook
    lines: int
    broken_lines: int
    unknown_types: dict[str, int]
    rejected: dict[str, int]


def replay(
    path: Path,
    parameters: Parameters,
    engines: Sequence[EngineConfig],
    take: TakeReceipts,
    complain: Complain,
) -> Replayed:
    """Run a recording; final receipts go to `take`, lines that cannot be used with their number to `complain`.

    `engines` stand in for those that the recording does not describe itself. Raises `RecordingError` if the file as a
    whole cannot be read.
    """
    started = time.perf_counter()
    pipeline = Pipeline(parameters)
    for engine in _not_in(path, engines):
        pipeline.feed(engine)
    sieve = _Sieve(complain)
    finals = _Finals(take)
    with without_collections():
        now_ns = drive(sieve.entries(read(path)), pipeline, finals.take, sieve.refused)
    if not sieve.good:
        raise RecordingError(f"{path} is no recording: {_what_is_in_it(sieve)}")
    return Replayed(
        snapshot=pipeline.snapshot(now_ns),
        requests=finals.count,
        seconds=time.perf_counter() - started,
        lines=sieve.lines,
        broken_lines=sieve.broken,
        unknown_types=dict(sieve.unknown),
        rejected=dict(sieve.rejected),
    )


def drive(entries: Iterable[Entry], pipeline: Pipeline, take: TakeReceipts, refused: Complain) -> int:
    """Feed entries and let time pass with them, a second at a time; close everything at the end.

    Returns the last moment of the virtual clock: the latest of all times seen. A single time far ahead of all before
    it is refused, for it would end all that is still open; a second one beside it shows that time did pass.
    """
    now_ns = due_ns = suspected_ns = 0
    feed, moment_of = pipeline.feed, _MOMENTS.get
    for entry in entries:
        item = entry.item
        moment = moment_of(type(item))
        moment_ns = moment(item) if moment else 0
        if moment_ns > now_ns + LONGEST_JUMP_NS and moment_ns > suspected_ns + LONGEST_JUMP_NS and now_ns:
            suspected_ns = moment_ns
            refused(entry.number, "time_jump")
            continue
        reason = feed(item)
        if reason:
            refused(entry.number, reason)
        if moment_ns > now_ns:
            now_ns = moment_ns
            if now_ns >= due_ns:
                take(pipeline.advance(now_ns))
                due_ns = now_ns + NANOSECONDS_PER_SECOND
    take(pipeline.finish())
    return now_ns


class _Sieve:
    """Lets good lines through; counts and tells the others."""

    def __init__(self, complain: Complain) -> None:
        self._complain = complain
        self.lines = 0
        self.good = 0
        self.broken = 0
        self.unknown: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def entries(self, lines: Iterable[Line]) -> Iterator[Entry]:
        for line in lines:
            self.lines += 1
            if isinstance(line, Entry):
                self.good += 1
                yield line
            elif isinstance(line, Heading):
                self.good += 1
            else:
                self._tell(line)

    def refused(self, number: int, reason: str) -> None:
        self.rejected[reason] += 1
        self._complain(number, f"refused: {reason}")

    def _tell(self, line: Broken | Unknown) -> None:
        if isinstance(line, Broken):
            self.broken += 1
            self._complain(line.number, f"{line.reason}: {line.message}")
            return
        known = line.type in self.unknown
        if not known:
            self._complain(line.number, f"unknown type {line.type[:80]!r}; further ones are only counted")
        self.unknown[line.type if known or len(self.unknown) < MOST_UNKNOWN_TYPES else "other"] += 1


class _Finals:
    def __init__(self, take: TakeReceipts) -> None:
        self._take = take
        self.count = 0

    def take(self, receipts: Sequence[Receipt]) -> None:
        if receipts:
            self.count += len(receipts)
            self._take(receipts)


def _not_in(path: Path, engines: Sequence[EngineConfig]) -> list[Engine]:
    if not engines:
        return []
    described = {
        line.item.name for line in read(path) if isinstance(line, Entry) and isinstance(line.item, Engine)
    }  # fmt: skip
    return [engine.engine() for engine in engines if engine.name not in described]


def _what_is_in_it(sieve: _Sieve) -> str:
    return f"none of its {sieve.lines} lines is one of a recording" if sieve.lines else "it is empty"
