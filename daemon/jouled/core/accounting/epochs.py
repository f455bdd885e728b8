"""Times in which an engine was the same, and what changed between them."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from msgspec import Struct

from jouled.model.engine import ENGINE_FACTS
from jouled.model.history import EngineChange


class Span(NamedTuple):
    """A time in Unix nanoseconds, the end left out."""

    since_ns: int
    until_ns: int


class Changed(Struct, frozen=True):
    """A fact of an engine (one of `ENGINE_FACTS`) as it was before and after; empty is not known, or none."""

    fact: str
    before: str
    after: str


class Change(NamedTuple):
    """An engine changed: the times before and after, and what of it."""

    engine: str
    before: Span
    after: Span
    facts: tuple[Changed, ...]


def last_changes(changes: Iterable[EngineChange], since_ns: int, now_ns: int) -> list[Change]:
    """Of each engine the last change in this time, with the time from the one before it, or from `since_ns` on."""
    by_engine: dict[str, list[EngineChange]] = {}
    for change in changes:
        by_engine.setdefault(change.engine, []).append(change)
    found = []
    for engine, known in sorted(by_engine.items()):
        known.sort(key=lambda change: change.since_ns)
        within = [pair for pair in pairwise(known) if since_ns < pair[1].since_ns < now_ns]
        for earlier, later in within[-1:]:
            before = Span(max(earlier.since_ns, since_ns), later.since_ns)
            found.append(Change(engine, before, Span(later.since_ns, now_ns), differences(earlier, later)))
    return found


def between(changes: Sequence[EngineChange], engine: str, before: Span, after: Span) -> tuple[Changed, ...]:
    """What of an engine differs from one time to another, as it was at the end of each."""
    first, second = _at(changes, engine, before.until_ns), _at(changes, engine, after.until_ns)
    return () if first is None or second is None else differences(first, second)


def differences(before: EngineChange, after: EngineChange) -> tuple[Changed, ...]:
    """The facts that differ."""
    pairs = [Changed(name, before.facts.get(name, ""), after.facts.get(name, "")) for name in ENGINE_FACTS]
    return tuple(pair for pair in pairs if pair.before != pair.after)


def _at(changes: Iterable[EngineChange], engine: str, until_ns: int) -> EngineChange | None:
    known = [change for change in changes if change.engine == engine and change.since_ns < until_ns]
    return max(known, key=lambda change: change.since_ns, default=None)
