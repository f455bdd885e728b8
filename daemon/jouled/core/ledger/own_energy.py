"""The energy that an engine itself says its accelerators used, held against their meters. Never for the books."""

from collections import deque
from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from jouled.core.ledger.meter import Meter
from jouled.model.units import MICROJOULES_PER_JOULE, microjoules, nanoseconds

WINDOW_NS = nanoseconds(60.0)
LEAST_UJ = 60 * MICROJOULES_PER_JOULE
"""Below this energy in a window the steps of counters are a larger part of it than what is to be told."""
MOST_WAITING = 100


class _Point(NamedTuple):
    t_ns: int
    reported_uj: int


class _Mark(NamedTuple):
    t_ns: int
    reported_uj: int
    measured_uj: int


class OwnEnergy:
    """One engine's own counter. ratio: what it told over what the meters told, in the last whole minute."""

    def __init__(self) -> None:
        self.ratio: float | None = None
        self._total_uj = 0
        self._raw_joules: float | None = None
        self._points: deque[_Point] = deque(maxlen=MOST_WAITING)
        self._begin: _Mark | None = None
        self._devices: tuple[str, ...] = ()

    def take(self, t_ns: int, joules: float) -> int:
        """Take a reading; returns by how many microjoules the counter grew. One that cannot be is ignored."""
        if not isfinite(joules) or joules < 0.0:
            return 0
        last, self._raw_joules = self._raw_joules, joules
        if last is None or joules < last:
            self._forget()
        grown_uj = 0 if last is None else microjoules(joules - last if joules >= last else joules)
        self._total_uj += grown_uj
        self._points.append(_Point(t_ns, self._total_uj))
        return grown_uj

    def compare(self, meters: Sequence[Meter]) -> None:
        """Compare as far as the meters of the engine's devices have told."""
        devices = tuple(meter.device.name for meter in meters)
        if devices != self._devices:
            self._devices = devices
            self._forget()
        if not meters or any(meter.estimated or not meter.curve for meter in meters):
            return
        known_ns = min(meter.curve.last_ns for meter in meters)
        while self._points and self._points[0].t_ns <= known_ns:
            point = self._points.popleft()
            self._compare(_Mark(*point, sum(meter.curve.value_at(point.t_ns) for meter in meters)))

    def _compare(self, mark: _Mark) -> None:
        begin = self._begin
        if begin is not None and mark.t_ns - begin.t_ns < WINDOW_NS:
            return
        self._begin = mark
        if begin is not None:
            measured_uj = mark.measured_uj - begin.measured_uj
            told = measured_uj >= LEAST_UJ
            self.ratio = (mark.reported_uj - begin.reported_uj) / measured_uj if told else None

    def _forget(self) -> None:
        self.ratio, self._begin = None, None
        self._points.clear()
