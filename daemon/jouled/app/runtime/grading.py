"""How far the daemon's books are from the twin's truth. Pure."""

from collections.abc import Iterable, MutableMapping
from typing import Any

from msgspec import Struct

from jouled.model.receipt import Receipt
from jouled.model.snapshot import GroupBook, Snapshot
from jouled.model.units import MICROJOULES_PER_JOULE, NANOSECONDS_PER_SECOND

WARM_UP_NS = 60 * NANOSECONDS_PER_SECOND
"""Requests that finished earlier after the start are not graded: the daemon saw only a part of them."""

_MOST_UNMATCHED = 50_000


class TrueRequest(Struct, frozen=True):
    """One request as the twin knows it."""

    uj: int
    outcome: str
    finished_ns: int


class TrueTotal(Struct, frozen=True):
    """Energy of the twin's accelerators since its start."""

    measured_uj: int
    aborted_uj: int


class Truth(Struct, frozen=True):
    """A page of the twin's `/truth`."""

    t_ns: int
    total: TrueTotal
    requests: dict[str, TrueRequest]
    next_since_ns: int
    more: bool = False


class _Moment(Struct, frozen=True):
    """Books and truth, seen together. The truth is carried to the books' time by its mean power since the start."""

    books: GroupBook
    books_ns: int
    truth: TrueTotal
    truth_ns: int


class Grader:
    """Compares final receipts with the truth, request by request, and both books as wholes since the start."""

    def __init__(self, started_ns: int) -> None:
        self._started_ns = started_ns
        self._true_uj: dict[str, int] = {}
        self._booked_joules: dict[str, float] = {}
        self._graded = 0
        self._error_joules = 0.0
        self._true_joules = 0.0
        self._read_in: int | None = None
        self._now_ns = started_ns
        self._first: _Moment | None = None
        self._last: _Moment | None = None

    def take_receipts(self, receipts: Iterable[Receipt]) -> None:
        """See receipts; provisional ones do not count, nor those that lack what was used while the daemon was away."""
        for receipt in receipts:
            if not receipt.provisional and "interrupted" not in receipt.validity:
                self._booked_joules[receipt.id] = receipt.joules
                self._match(receipt.id)
        _forget_oldest(self._booked_joules)

    def take_truth(self, truth: Truth, snapshot: Snapshot) -> None:
        """See a page of truth, and the books as they are at about that time."""
        for request_id, request in truth.requests.items():
            if request.outcome == "completed" and request.finished_ns > self._started_ns + WARM_UP_NS:
                self._true_uj[request_id] = request.uj
                self._match(request_id)
        _forget_oldest(self._true_uj)
        self._now_ns = truth.t_ns
        if self._may_compare(snapshot) and not truth.more:
            moment = _Moment(snapshot.total, snapshot.t_ns, truth.total, truth.t_ns)
            self._first = self._first or moment
            self._last = moment

    def figures(self) -> dict[str, float | int]:
        """What the page shows."""
        figures: dict[str, float | int] = {"graded_requests": self._graded}
        warm_up_ns = self._started_ns + WARM_UP_NS - self._now_ns
        if warm_up_ns > 0:
            figures["grading_begins_in_seconds"] = warm_up_ns // NANOSECONDS_PER_SECOND
        if self._true_joules:
            figures["wmape_percent"] = 100 * self._error_joules / self._true_joules
        if self._first is not None and self._last is not None and self._last.truth_ns > self._first.truth_ns:
            figures.update(_whole(self._first, self._last))
        return figures

    def _may_compare(self, snapshot: Snapshot) -> bool:
        """Whether the books are past the time before this run.

        A commit that has a reading of every device may lack what they used while the daemon was away: that is booked
        at the next tick.
        """
        if self._read_in is None and snapshot.devices:
            if all(view.last_reading_ns is not None for view in snapshot.devices):
                self._read_in = snapshot.sequence
            return False
        return self._read_in is not None and snapshot.sequence > self._read_in

    def _match(self, request_id: str) -> None:
        if request_id not in self._true_uj or request_id not in self._booked_joules:
            return
        true_joules = self._true_uj.pop(request_id) / MICROJOULES_PER_JOULE
        self._error_joules += abs(self._booked_joules.pop(request_id) - true_joules)
        self._true_joules += true_joules
        self._graded += 1


def _whole(first: _Moment, last: _Moment) -> dict[str, float | int]:
    measured_uj = last.books.measured_uj - first.books.measured_uj
    settled_uj = measured_uj - (last.books.open_uj - first.books.open_uj)
    unreported_uj = last.books.unreported_uj - first.books.unreported_uj
    true_uj = last.truth.measured_uj - first.truth.measured_uj
    aborted_uj = last.truth.aborted_uj - first.truth.aborted_uj
    mean_power = true_uj / (last.truth_ns - first.truth_ns)
    apart_ns = (last.books_ns - last.truth_ns) - (first.books_ns - first.truth_ns)
    figures: dict[str, float | int] = {"measured_uj": measured_uj, "true_uj": true_uj}
    if true_uj + mean_power * apart_ns > 0:
        figures["measured_to_true_ratio"] = measured_uj / (true_uj + mean_power * apart_ns)
        figures["truly_aborted_percent"] = 100 * aborted_uj / true_uj
    if settled_uj > 0:
        figures["unreported_percent"] = 100 * unreported_uj / settled_uj
    return figures


def _forget_oldest(waiting: MutableMapping[str, Any]) -> None:
    while len(waiting) > _MOST_UNMATCHED:
        del waiting[next(iter(waiting))]
