"""Raw meters to cumulative energy: one cumulative counter, or one power gauge, made monotone.

A decrease is a wrap where the source declares its range and the mean power stays plausible, else a reset: the
interval carries no energy and is counted as a gap (design.md section 3). A jump upwards that no device could have
used is set aside; if the next reading confirms it, the counter was replaced and it counts as a reset.
"""

from collections import deque
from enum import Enum
from statistics import median

from jouled.model.device import LEAF_KINDS, Device, DeviceKind
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

PLAUSIBLE_FACTOR = 3.0
"""A mean power above this multiple of the power limit is no power (design.md section 3)."""
CEILING_WATTS = 10_000.0
"""Assumed limit of a leaf or module that tells none; above it no board or package is built."""
CEILING_METER_WATTS = 350_000.0
"""The same for what contains whole nodes; three times this is a megawatt feed."""
MOST_MICROJOULES = 2**63 - 1
"""What the books can be saved with: 9 TJ, a gigawatt for two and a half hours."""
JITTER_NS = NANOSECONDS_PER_SECOND
"""Slack for counters that move in steps: a whole step may fall between two close readings."""
GAUGE_GAP_FACTOR = 3
"""A gauge is not integrated over more than this multiple of its usual interval (power-sources.md section 8)."""
GAUGE_GAP_MIN_NS = 2 * NANOSECONDS_PER_SECOND
GAUGE_GAP_FIRST_NS = 15 * NANOSECONDS_PER_SECOND
GAUGE_GAP_MAX_NS = 900 * NANOSECONDS_PER_SECOND
"""As long as a source may be silent at most."""


def plausible_watts(device: Device) -> float:
    """The mean power in watts above which a reading of `device` is rejected."""
    leaf = device.kind in LEAF_KINDS or device.kind is DeviceKind.MODULE
    ceiling = CEILING_WATTS if leaf else CEILING_METER_WATTS
    return PLAUSIBLE_FACTOR * (device.max_watts or ceiling)


class Step(Enum):
    """What one reading turned out to be."""

    FIRST = "first"
    MOVED = "moved"
    SAME = "same"
    RESET = "reset"
    GAP = "gap"
    IMPLAUSIBLE = "implausible"
    OUT_OF_ORDER = "out_of_order"


REFUSED = frozenset({Step.IMPLAUSIBLE, Step.OUT_OF_ORDER})
"""What is counted as an error and tells nothing."""


class CounterTrack:
    """Follows one cumulative energy counter in microjoules."""

    def __init__(self, device: Device) -> None:
        self._wrap_uj = device.wrap_microjoules
        self._plausible_watts = plausible_watts(device)
        self._last: tuple[int, int] | None = None
        self._seen_ns = 0
        self._suspect: tuple[int, int] | None = None

    def describe(self, device: Device) -> None:
        """The device is described better."""
        self._wrap_uj = device.wrap_microjoules
        self._plausible_watts = plausible_watts(device)

    @property
    def last_raw(self) -> int | None:
        """The last raw value taken, microjoules."""
        return self._last[1] if self._last else None

    def step(self, t_ns: int, raw_uj: int) -> tuple[Step, int]:
        """Take a reading; returns what it was and the energy since the last one taken, microjoules."""
        if not 0 <= raw_uj <= MOST_MICROJOULES:
            return Step.IMPLAUSIBLE, 0
        if self._last is not None and t_ns <= self._seen_ns:
            return Step.OUT_OF_ORDER, 0
        self._seen_ns = t_ns
        if self._last is None:
            self._last = (t_ns, raw_uj)
            return Step.FIRST, 0
        return self._compare(t_ns, raw_uj, *self._last)

    def _compare(self, t_ns: int, raw_uj: int, last_ns: int, last_uj: int) -> tuple[Step, int]:
        delta = raw_uj - last_uj
        if delta < 0:
            return self._decrease(t_ns, raw_uj, delta)
        if self._too_much(delta, t_ns - last_ns + JITTER_NS):
            return self._jump(t_ns, raw_uj)
        self._suspect = None
        if delta == 0:
            return Step.SAME, 0
        self._last = (t_ns, raw_uj)
        return Step.MOVED, delta

    def _too_much(self, delta_uj: int, span_ns: int) -> bool:
        return delta_uj * 1000 > self._plausible_watts * span_ns

    def _decrease(self, t_ns: int, raw_uj: int, delta: int) -> tuple[Step, int]:
        last_ns = self._last[0] if self._last else t_ns
        self._last, self._suspect = (t_ns, raw_uj), None
        if self._wrap_uj is None or delta + self._wrap_uj < 0 or self._too_much(delta + self._wrap_uj, t_ns - last_ns):
            return Step.RESET, 0
        return Step.MOVED, delta + self._wrap_uj

    def _jump(self, t_ns: int, raw_uj: int) -> tuple[Step, int]:
        suspect, self._suspect = self._suspect, (t_ns, raw_uj)
        if (
            suspect is None
            or not 0 <= raw_uj - suspect[1] <= self._plausible_watts * (t_ns - suspect[0] + JITTER_NS) / 1000
        ):
            return Step.IMPLAUSIBLE, 0
        self._last, self._suspect = (t_ns, raw_uj), None
        return Step.RESET, 0


class GaugeTrack:
    """Integrates one power gauge by trapezoids; an interval far beyond the usual one carries no energy."""

    def __init__(self, device: Device) -> None:
        self._plausible_watts = plausible_watts(device)
        self._last: tuple[int, float] | None = None
        self._intervals_ns: deque[int] = deque(maxlen=15)

    def describe(self, device: Device) -> None:
        """The device is described better."""
        self._plausible_watts = plausible_watts(device)

    def step(self, t_ns: int, watts: float) -> tuple[Step, int]:
        """Take a reading; returns what it was and the energy since the last one, microjoules."""
        if not 0.0 <= watts <= self._plausible_watts:
            return Step.IMPLAUSIBLE, 0
        if self._last is None:
            self._last = (t_ns, watts)
            return Step.FIRST, 0
        last_ns, last_watts = self._last
        span_ns = t_ns - last_ns
        if span_ns <= 0:
            return Step.OUT_OF_ORDER, 0
        self._last = (t_ns, watts)
        longest_ns = self._longest_ns()
        self._intervals_ns.append(span_ns)  # long ones too: a gauge that is read once a minute has no shorter ones
        if span_ns > longest_ns:
            return Step.GAP, 0
        return Step.MOVED, round((last_watts + watts) * span_ns / 2000)

    def _longest_ns(self) -> int:
        if len(self._intervals_ns) < 3:
            return GAUGE_GAP_FIRST_NS
        usual_ns = round(median(self._intervals_ns))
        return min(max(GAUGE_GAP_FACTOR * usual_ns, GAUGE_GAP_MIN_NS), GAUGE_GAP_MAX_NS)


SILENCE_NS = nanoseconds(15.0)
"""A source that says nothing for longer holds no cell (attribution.md section 4)."""
