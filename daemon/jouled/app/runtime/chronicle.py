"""Keeps for reports what no receipt tells: how far the books were, minute by minute, and when an engine changed."""

import logging
from collections.abc import Iterable, Mapping

from jouled.model.engine import ENGINE_FACTS, Engine
from jouled.model.history import EngineChange, EngineMark
from jouled.model.snapshot import EngineView, Labels, Snapshot
from jouled.model.units import nanoseconds
from jouled.outputs.store import Store, StoreError, marks_of

MARK_NS = nanoseconds(60.0)
"""Between two marks of the books; in between a report takes them for linear."""

BEGIN_NS = nanoseconds(1.0)
"""How long before their first mark books stood at zero, as far as reports are told."""

HOLD_NS = nanoseconds(30.0)
"""An engine that starts tells what it is bit by bit; what has held for so long is what it is."""

LONGEST_FACT = 200
"""Characters kept of one: a page or a command line may hold anything."""

_LEARNED = frozenset({"model", "version", "driver"})
"""Facts that every engine has: where one is empty it is not known yet. Others may be empty because there is none."""

_UNIFIED = "unified"
"""What an engine that moves KV caches is called until its role shows: some tell it by what they do alone."""

_log = logging.getLogger(__name__)

Facts = Mapping[str, str]
Book = tuple[str, str, str]
"""Engine, model and quality of energies."""


class Chronicle:
    """Writes beside the books; what cannot be written is tried again with the next mark."""

    def __init__(self, store: Store) -> None:
        """Go on from what the store has; blocks."""
        self._store = store
        try:
            self._known = {change.engine: change for change in store.last_changes()}
        except StoreError as error:
            _log.warning("what engines were before is not known to reports: %s", error)
            self._known = {}
        self._seen: dict[str, tuple[Facts, int]] = {}
        self._books: set[Book] | None = None
        self._marked_ns: int | None = None
        self._fails = False

    def mark_next(self) -> None:
        """Mark the books at the next look, however short ago the last mark is: it may be the last look."""
        self._marked_ns = None

    async def look(self, snapshot: Snapshot) -> None:
        """Take what a published snapshot tells."""
        changes = [change for view in snapshot.engines if (change := self._changed(view, snapshot)) is not None]
        books = {(engine, model, quality) for engine, model, _, quality in _energies(snapshot)}
        begun = self._begun(books, snapshot)
        due = bool(begun) or self._marked_ns is None or not 0 <= snapshot.t_ns - self._marked_ns < MARK_NS
        marks = (*begun, *marks_of(snapshot)) if due else ()
        if self._books is None:
            self._books = books
        if not (changes or marks):
            return
        try:
            await self._store.note(changes, marks, snapshot.t_ns + snapshot.wall_minus_core_ns)
        except StoreError as error:
            if not self._fails:
                _log.warning("reports will lack some minutes: %s", error)
            self._fails = True
            return
        self._fails = False
        self._known |= {change.engine: change for change in changes}
        if marks:
            self._marked_ns, self._books = snapshot.t_ns, books

    def _begun(self, books: set[Book], snapshot: Snapshot) -> tuple[EngineMark, ...]:
        """Zeros of books that were not there at the last mark: without them what is in the first mark is in no report.

        Books that are there at the first look may be of an earlier run.
        """
        new = set() if self._books is None else books - self._books
        return tuple(
            EngineMark(engine=mark.engine, model=mark.model, quality=mark.quality, t_ns=mark.t_ns - BEGIN_NS)
            for mark in (marks_of(snapshot) if new else ())
            if (mark.engine, mark.model, mark.quality) in new
        )

    def _changed(self, view: EngineView, snapshot: Snapshot) -> EngineChange | None:
        """The engine as it is now, once that has held for long enough and is not what is known of it."""
        engine = view.engine
        known = self._known.get(engine.name)
        facts = _facts_of(engine, known.facts if known else {})
        if not _is_fresh(view, snapshot.t_ns) or (known is not None and facts == known.facts):
            self._seen.pop(engine.name, None)
            return None
        seen, first_ns = self._seen.get(engine.name, (None, 0))
        if seen != facts:
            self._seen[engine.name] = (facts, snapshot.t_ns)
            return None
        if snapshot.t_ns - first_ns < HOLD_NS:
            return None
        since_ns = first_ns + snapshot.wall_minus_core_ns
        if known is not None and _only_learned(known.facts, facts):
            since_ns = known.since_ns
        return EngineChange(engine=engine.name, since_ns=since_ns, facts=dict(facts))


def _energies(snapshot: Snapshot) -> Iterable[Labels]:
    return snapshot.counters.get("energy_joules_total", {})


def _facts_of(engine: Engine, known: Facts) -> Facts:
    told = {name: str(getattr(engine, name))[:LONGEST_FACT] for name in ENGINE_FACTS}
    kept = {name: known[name] for name in _LEARNED if name in known and not told[name]}
    if told["kv_connector"] and told["role"] == _UNIFIED and "role" in known:
        kept["role"] = known["role"]
    return {name: value for name, value in (told | kept).items() if value}


def _only_learned(before: Facts, now: Facts) -> bool:
    """Whether nothing is otherwise than before but what was not known then."""
    different = {name for name in {*before, *now} if before.get(name) != now.get(name)}
    if before.get("kv_connector") and before.get("role") == _UNIFIED:
        different.discard("role")
    return all(name in _LEARNED and name not in before for name in different)


def _is_fresh(view: EngineView, now_ns: int) -> bool:
    """Whether the engine has told of itself lately; one without a page is what the configuration says."""
    if not view.engine.url:
        return True
    return view.last_sample_ns is not None and now_ns - view.last_sample_ns <= HOLD_NS
