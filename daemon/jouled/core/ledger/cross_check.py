"""A device's energy counter held against the integral of its power gauge, window by window.

They are of one sensor or of two: a disagreement means that one of them lies (a frozen counter, a wrong unit, a window
that misses peaks), not which.
"""

from collections import deque
from typing import NamedTuple

from jouled.core.ledger.counters import REFUSED, GaugeTrack, Step
from jouled.core.ledger.curve import EnergyCurve
from jouled.model.device import Device
from jouled.model.units import MICROJOULES_PER_JOULE, nanoseconds

WINDOW_NS = nanoseconds(60.0)
LEAST_JOULES = 60.0
"""Below this energy in a window the steps of a counter are a larger part of it than what is to be told."""
MOST_AHEAD = 1_000
"""Readings of the gauge that wait for the counter; older ones are only missing as ends of windows."""


class Check(NamedTuple):
    """One window. ratio: counter over integrated power; `None` where the counter or the gauge told too little."""

    end_ns: int
    ratio: float | None


class Mark(NamedTuple):
    """A reading of the gauge: its time, the gauge's integral and the counter's energy then."""

    t_ns: int
    integral_uj: int
    told_uj: int


class CrossCheck:
    """Integrates one gauge beside a counter and compares, window by window. The last whole one stands in `last`.

    The counter may tell of a moment later than the gauge, and its curve may forget a window's begin before its end.
    """

    def __init__(self, device: Device) -> None:
        self._gauge = GaugeTrack(device)
        self._integral_uj = 0
        self._ahead: deque[tuple[int, int]] = deque(maxlen=MOST_AHEAD)
        self._begin: Mark | None = None
        self.last: Check | None = None

    def describe(self, device: Device) -> None:
        """The device is described better."""
        self._gauge.describe(device)

    def power(self, t_ns: int, watts: float, counter: EnergyCurve) -> str:
        """Take a reading of the gauge; returns why it was rejected, or an empty string."""
        step, delta_uj = self._gauge.step(t_ns, watts)
        if step in REFUSED:
            return str(step.value)
        if step is Step.GAP:
            self._begin = None
            self._ahead.clear()
        self._integral_uj += delta_uj
        self._ahead.append((t_ns, self._integral_uj))
        while self._ahead and self._ahead[0][0] <= counter.last_ns:
            at_ns, integral_uj = self._ahead.popleft()
            if counter.first_ns <= at_ns:
                self._compare(Mark(at_ns, integral_uj, counter.value_at(at_ns)))
        return ""

    def _compare(self, now: Mark) -> None:
        if self._begin is None:
            self._begin = now
        if now.t_ns - self._begin.t_ns < WINDOW_NS:
            return
        told_uj, integral_uj = now.told_uj - self._begin.told_uj, now.integral_uj - self._begin.integral_uj
        enough = max(told_uj, integral_uj) >= LEAST_JOULES * MICROJOULES_PER_JOULE
        self.last = Check(now.t_ns, told_uj / integral_uj if enough and integral_uj else None)
        self._begin = now
