"""A device's energy counter held against the integral of its power gauge, window by window.

They are of one sensor or of two: a disagreement means that one of them lies (a frozen counter, a wrong unit, a window
that misses peaks), not which.
"""

from typing import NamedTuple

from jouled.core.ledger.counters import GaugeTrack, Step
from jouled.core.ledger.curve import EnergyCurve
from jouled.model.device import Device
from jouled.model.units import MICROJOULES_PER_JOULE, nanoseconds

WINDOW_NS = nanoseconds(60.0)
LEAST_JOULES = 60.0
"""Below this energy in a window the steps of a counter are a larger part of it than what is to be told."""


class Check(NamedTuple):
    """One window. ratio: counter over integrated power; `None` where the counter or the gauge told too little."""

    end_ns: int
    ratio: float | None


class CrossCheck:
    """Integrates one gauge beside a counter and compares, window by window. The last whole one stands in `last`."""

    def __init__(self, device: Device) -> None:
        self._gauge = GaugeTrack(device)
        self._begin_ns: int | None = None
        self._integral_uj = 0
        self.last: Check | None = None

    def describe(self, device: Device) -> None:
        """The device is described better."""
        self._gauge.describe(device)

    def power(self, t_ns: int, watts: float, counter: EnergyCurve) -> str:
        """Take a reading of the gauge; returns why it was rejected, or an empty string."""
        step, delta_uj = self._gauge.step(t_ns, watts)
        if step in {Step.IMPLAUSIBLE, Step.OUT_OF_ORDER}:
            return str(step.value)
        if self._begin_ns is None or step is Step.GAP:
            self._begin_ns, self._integral_uj = t_ns, 0
            return ""
        self._integral_uj += delta_uj
        if t_ns - self._begin_ns >= WINDOW_NS and counter.last_ns >= t_ns:
            self._compare(self._begin_ns, t_ns, counter)
        return ""

    def _compare(self, begin_ns: int, end_ns: int, counter: EnergyCurve) -> None:
        told_uj = counter.value_at(end_ns) - counter.value_at(begin_ns)
        enough = (
            max(told_uj, self._integral_uj) >= LEAST_JOULES * MICROJOULES_PER_JOULE and counter.first_ns <= begin_ns
        )
        self.last = Check(end_ns, told_uj / self._integral_uj if enough and self._integral_uj else None)
        self._begin_ns, self._integral_uj = end_ns, 0
