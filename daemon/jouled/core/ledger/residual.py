"""What the node's meter tells beyond its parts: fans, boards, conversion losses; over settled windows.

A BMC or PDU lags the boards by seconds. Read at the same time stamps, a rising load would look like parts that exceed
the node, and a falling one like fans. So the lag is estimated (the shift at which the difference between node and
parts is steadiest), and what the node's meter says at t + lag is held against what the parts say at t.
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from statistics import pvariance
from typing import NamedTuple

from jouled.core.ledger.meter import Meter
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

WINDOW_NS = nanoseconds(60.0)
STEP_NS = nanoseconds(5.0)
"""Powers are compared over steps of this length; BMCs renew theirs every 1 to 10 s."""
HISTORY_NS = nanoseconds(300.0)
FEWEST_STEPS = 13
"""No window is settled before a minute can be compared at every lag."""
LAGS_SECONDS = range(21)
STEADIER = 0.8
"""A new lag must leave less than this share of the variance that the present one leaves."""
LARGEST_SPREAD = 0.02
"""Differences steadier than this share of the parts' power need no better lag: noise would choose it."""
KEEP_WINDOWS = 60
LATEST_HOLDS_NS = nanoseconds(600.0)
"""A request takes the ratio of the latest window settled, but not of one older than this."""


class Window(NamedTuple):
    """A settled window: its energies in microjoules, `residual` ≥ 0; `whole`: what the node's meter told."""

    begin_ns: int
    end_ns: int
    residual_uj: int
    parts_uj: int
    whole_uj: int


class ResidualBook:
    """Node minus its parts, as two counters that never fall, booked window by window.

    `claimed_uj`: what requests took of the residual; never more than there is.
    """

    def __init__(self) -> None:
        self.residual_uj = 0
        self.deficit_uj = 0
        self.claimed_uj = 0
        self.lag_seconds = 0
        self._windows: deque[Window] = deque(maxlen=KEEP_WINDOWS)
        self._members: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
        self._edge_ns: int | None = None
        self._members_since_ns = 0

    def advance(self, node: Sequence[Meter], parts: Sequence[Meter]) -> None:
        """Book all windows that every member's curve covers."""
        everyone = [*node, *parts]
        if not node or not parts or not all(meter.curve for meter in everyone):
            return
        members = (tuple(m.device.name for m in node), tuple(m.device.name for m in parts))
        known_from_ns = max(meter.curve.first_ns for meter in everyone)
        if members != self._members or self._edge_ns is None:
            # Others may have booked windows of a time that these meters know as well.
            self._members, self._edge_ns = members, max(known_from_ns, self._edge_ns or known_from_ns)
            self._members_since_ns = self._edge_ns
        parts_until_ns = min(meter.curve.last_ns for meter in parts)
        node_until_ns = min(meter.curve.last_ns for meter in node)
        while self._edge_ns + WINDOW_NS <= min(parts_until_ns, node_until_ns):
            self._edge_ns = max(self._edge_ns, known_from_ns)
            # Past a long silence at once: of a week away there are ten thousand windows.
            until_ns = max(m.knowledge.hole_until(self._edge_ns, self._edge_ns + WINDOW_NS) for m in everyone)
            if until_ns > self._edge_ns:
                self._edge_ns = until_ns
                continue
            comparable_ns = min(parts_until_ns, node_until_ns - LAGS_SECONDS[-1] * NANOSECONDS_PER_SECOND)
            steps = range(max(comparable_ns - HISTORY_NS, known_from_ns), comparable_ns + 1, STEP_NS)
            if len(steps) < FEWEST_STEPS:
                return
            self.lag_seconds = best_lag_seconds(node, parts, steps, self.lag_seconds)
            if self._edge_ns + WINDOW_NS > min(parts_until_ns, node_until_ns - self._lag_ns):
                return
            self._settle(node, parts, self._edge_ns)
            self._edge_ns += WINDOW_NS

    @property
    def _lag_ns(self) -> int:
        return self.lag_seconds * NANOSECONDS_PER_SECOND

    def _settle(self, node: Sequence[Meter], parts: Sequence[Meter], begin_ns: int) -> None:
        """Book a window; one in which a meter was silent tells nothing."""
        end_ns = begin_ns + WINDOW_NS
        later_ns = self._lag_ns
        if not all(m.is_known(begin_ns, end_ns) for m in parts) or not all(
            m.is_known(begin_ns + later_ns, end_ns + later_ns) for m in node
        ):
            return
        parts_uj = _energy_uj(parts, begin_ns, end_ns)
        change_uj = _energy_uj(node, begin_ns + later_ns, end_ns + later_ns) - parts_uj
        self.residual_uj += max(change_uj, 0)
        self.deficit_uj += max(-change_uj, 0)
        self._windows.append(Window(begin_ns, end_ns, max(change_uj, 0), parts_uj, parts_uj + change_uj))

    @property
    def windows(self) -> Sequence[Window]:
        """The latest settled windows, an hour of them."""
        return self._windows

    @property
    def alike(self) -> list[Window]:
        """Those of them that the present meters told."""
        return [window for window in self._windows if window.begin_ns >= self._members_since_ns]

    @property
    def is_known(self) -> bool:
        """Whether any window has settled."""
        return bool(self._windows)

    def per_joule(self, begin_ns: int, end_ns: int) -> float | None:
        """Residual joules per joule of the parts in the settled windows of a time, else in the latest.

        `None` without one, or where the latest is too old.
        """
        if not self._windows or self._windows[-1].end_ns + LATEST_HOLDS_NS < begin_ns:
            return None
        over = [w for w in self._windows if w.begin_ns < end_ns and begin_ns < w.end_ns] or [self._windows[-1]]
        parts_uj = sum(window.parts_uj for window in over)
        return sum(window.residual_uj for window in over) / parts_uj if parts_uj else None

    def claim(self, energy_uj: int, begin_ns: int, end_ns: int) -> int | None:
        """The residual of a request that used so much of the parts' energy; `None` where no window tells it."""
        ratio = self.per_joule(begin_ns, end_ns)
        if ratio is None:
            return None
        claimed_uj = min(int(energy_uj * ratio), self.residual_uj - self.claimed_uj)
        self.claimed_uj += claimed_uj
        return claimed_uj

    @property
    def needed_from_ns(self) -> int | None:
        """The curves must keep their knots from here on."""
        return None if self._edge_ns is None else self._edge_ns + WINDOW_NS - HISTORY_NS


def best_lag_seconds(node: Sequence[Meter], parts: Sequence[Meter], steps: range, present: int) -> int:
    """The node's lag, whole seconds, that leaves the steadiest difference; `present` if no other is clearly better."""
    parts_steps = _steps_uj(parts, steps, 0)
    mean = sum(parts_steps) / len(parts_steps)

    def spread(lag_seconds: int) -> float:
        node_steps = _steps_uj(node, steps, lag_seconds * NANOSECONDS_PER_SECOND)
        return pvariance([n - p for n, p in zip(node_steps, parts_steps, strict=True)])

    now = spread(present)
    if now <= (LARGEST_SPREAD * mean) ** 2:
        return present
    spreads = {lag: spread(lag) for lag in LAGS_SECONDS}
    best = min(spreads, key=lambda lag: spreads[lag])
    return best if spreads[best] < STEADIER * now else present


def _steps_uj(meters: Sequence[Meter], steps: range, shift_ns: int) -> list[int]:
    values = [sum(meter.curve.value_at(t_ns + shift_ns) for meter in meters) for t_ns in steps]
    return [after - before for before, after in pairwise(values)]


def _energy_uj(meters: Sequence[Meter], begin_ns: int, end_ns: int) -> int:
    return sum(meter.curve.value_at(end_ns) - meter.curve.value_at(begin_ns) for meter in meters)
