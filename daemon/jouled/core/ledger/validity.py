"""How far the last minutes of a device can be trusted: share of time known, largest gap, counter against gauge.

The bar is that of runs which are published (InferenceX, `power_validity`): no gap above 3 s, counter and integrated
power within 5 %. It is applied to the last five to six minutes, live.
"""

from collections import deque
from typing import NamedTuple

from jouled.core.ledger.cross_check import Check
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

MINUTE_NS = nanoseconds(60.0)
MINUTES = 6
LONGEST_GAP_SECONDS = 3.0
GAP_INTERVALS = 3
"""A source that is read every 10 s is judged by three intervals, not by 3 s."""
LEAST_KNOWN = 0.95
TOLERANCE = 0.05
HOLES_KEPT = 64

REASONS = ("ok", "silent", "gap", "coverage", "counter_disagrees")
"""What a device's validity may be, worst that holds first but for `ok`."""


class Validity(NamedTuple):
    """How far a device can be trusted.

    known_ratio: share of the time whose energy is known. largest_gap_seconds: between two readings. reason: one of
    `REASONS`.
    """

    known_ratio: float
    largest_gap_seconds: float
    reason: str


class _Minute:
    def __init__(self, number: int) -> None:
        self.number = number
        self.known_ns = self.unknown_ns = self.largest_ns = 0


class Knowledge:
    """What is known of a device's time, minute by minute; and the holes in it.

    holes: (begin, end) of times without known energy, the latest ones.
    """

    def __init__(self) -> None:
        self.holes: deque[tuple[int, int]] = deque(maxlen=HOLES_KEPT)
        self._minutes: deque[_Minute] = deque(maxlen=MINUTES)

    def add(self, begin_ns: int, end_ns: int, *, is_known: bool) -> None:
        """The time between two readings."""
        span_ns, number = end_ns - begin_ns, end_ns // MINUTE_NS
        if not self._minutes or self._minutes[-1].number != number:
            self._minutes.append(_Minute(number))
        minute = self._minutes[-1]
        if is_known:
            minute.known_ns += span_ns
        else:
            minute.unknown_ns += span_ns
            self.holes.append((begin_ns, end_ns))
        minute.largest_ns = max(minute.largest_ns, span_ns)

    def has_hole(self, begin_ns: int, end_ns: int) -> bool:
        """Whether some of this time is not known."""
        return any(since < end_ns and begin_ns < until for since, until in self.holes)

    def hole_until(self, begin_ns: int, end_ns: int) -> int:
        """The end of a hole that all of this time lies in; its begin where there is none."""
        return max((until for since, until in self.holes if since <= begin_ns and end_ns <= until), default=begin_ns)

    def judge(self, now_ns: int, usual_seconds: float, check: Check | None, *, is_silent: bool) -> Validity | None:
        """The last minutes; `None` before anything is known. usual_seconds: between two readings."""
        recent = [minute for minute in self._minutes if minute.number > now_ns // MINUTE_NS - MINUTES]
        if not is_silent:
            recent = recent or list(self._minutes)[-1:]  # read less often than that, and due to be
        known_ns = sum(minute.known_ns for minute in recent)
        total_ns = known_ns + sum(minute.unknown_ns for minute in recent)
        if not total_ns:
            return Validity(0.0, 0.0, "silent") if is_silent and self._minutes else None
        known = known_ns / total_ns
        gap_seconds = max(minute.largest_ns for minute in recent) / NANOSECONDS_PER_SECOND
        reason = "ok"
        if is_silent:
            reason = "silent"
        elif gap_seconds > max(LONGEST_GAP_SECONDS, GAP_INTERVALS * usual_seconds):
            reason = "gap"
        elif known < LEAST_KNOWN:
            reason = "coverage"
        elif _disagrees(check, now_ns):
            reason = "counter_disagrees"
        return Validity(known, gap_seconds, reason)


def _disagrees(check: Check | None, now_ns: int) -> bool:
    if check is None or check.ratio is None or now_ns - check.end_ns > MINUTES * MINUTE_NS:
        return False
    return abs(check.ratio - 1.0) > TOLERANCE
