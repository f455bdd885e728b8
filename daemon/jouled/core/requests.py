"""Requests as events tell of them: each is taken once, and into the books of its engine."""

from dataclasses import dataclass

from jouled.core.accounting.account import Account
from jouled.core.attribution.engine import EngineBook
from jouled.core.device_groups import DeviceGroups
from jouled.core.engines import Engines
from jouled.core.identity import CONFLICT, DUPLICATE, TOLD_OTHERWISE, Admission, Waiting
from jouled.model.requests import RequestEvent, RequestStart


@dataclass(frozen=True, slots=True, eq=False)
class Requests:
    """Takes request events. Its inputs return an empty string, or the reason for which they are refused."""

    account: Account
    engines: Engines
    groups: DeviceGroups
    admission: Admission
    waiting: Waiting

    def ended(self, event: RequestEvent, now_ns: int) -> str:
        """A request has ended, or is told of once more."""
        self.groups.arrange(now_ns)
        book = self.groups.books.get(event.engine)
        if book is None:
            return self._why_no_book(event.engine)
        now_ns = event.seen_ns if event.seen_ns > now_ns else now_ns
        reason = self.admission.refuse(event, now_ns)
        if reason in {TOLD_OTHERWISE, CONFLICT} or (not reason and self.admission.forgets(event)):
            known = self.waiting.told_again(event)
            if known is not None:
                return self._told_again(book, known, event)
        if reason == TOLD_OTHERWISE:
            return DUPLICATE
        if reason == CONFLICT:
            if not self.waiting.tried_before(event):
                return CONFLICT
            self.admission.remember(event)
        elif reason:
            return reason
        self.engines.attainment(event.engine).told_ns = now_ns
        self.waiting.add(event)
        self.engines.unreported_of(book.engine).tell(event)
        late = book.ended(event)
        if late:
            self.account.counters.add("late_events_total", (late,), 1)
        return ""

    def _told_again(self, book: EngineBook, known: RequestEvent, event: RequestEvent) -> str:
        """One more telling of a request that is not final: what it adds is taken."""
        amended = book.amended(known, event)
        self.waiting.replace(known, amended)
        unreported = self.engines.unreported_of(book.engine)
        unreported.untell(known)
        unreported.tell(amended)
        self.admission.remember(event)
        self.account.counters.add("merged_events_total", (event.engine,), 1)
        return ""

    def started(self, start: RequestStart, now_ns: int) -> str:
        """A request has begun."""
        self.groups.arrange(now_ns)
        book = self.groups.books.get(start.engine)
        if book is None:
            return self._why_no_book(start.engine)
        reason = self.admission.refuse_start(start, max(now_ns, start.seen_ns))
        if not reason and not self.admission.has_ended(start):
            book.started(start)
        return reason

    def _why_no_book(self, engine: str) -> str:
        if engine in self.groups.quarantined:
            return "quarantined"
        return "engine_without_devices" if engine in self.engines.declared else "unknown_engine"
