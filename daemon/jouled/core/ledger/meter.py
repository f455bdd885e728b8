"""One device's meter: its readings, made into a curve, a total and an honest account of what is missing."""

from collections import Counter, deque

from jouled.core.ledger.counters import REFUSED, SILENCE_NS, CounterTrack, GaugeTrack, Step
from jouled.core.ledger.cross_check import Check, CrossCheck
from jouled.core.ledger.curve import EnergyCurve
from jouled.core.ledger.validity import Knowledge, Validity
from jouled.model.device import Device, Quality
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

INTERVALS_MIN = 2
"""So many tell nothing of how often a source is read."""
POWER_WINDOW_NS = NANOSECONDS_PER_SECOND
PEAK_SECONDS = 60
SILENCE_MAX_NS = nanoseconds(900.0)
"""No cell waits longer than the longest horizon of requests."""


class Meter:
    """Follows one device.

    `measured_uj`: all energy it told of in this run. `downtime_uj`: what it used before, while the daemon was away
    (the last time since `away_from_ns`); `take_downtime` hands it out. `take_late`: what came after its cells had been
    closed without it. `is_new`: the next reading is the first one, or the first one after a restart, before which the
    last one was at `left_ns`. Only readings at which a counter moved become knots (attribution.md section 3): a stale
    counter read again says nothing about when the energy was used.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.curve = EnergyCurve()
        self.measured_uj = 0
        self.is_new = True
        self.quality = device.quality
        self.last_seen_ns: int | None = None
        self.left_ns: int | None = None
        self.rejected: Counter[str] = Counter()
        self.covered_ns = 0
        self.gap_ns: Counter[str] = Counter()
        self.knowledge = Knowledge()
        self._beside: CrossCheck | None = None
        self._track: CounterTrack | GaugeTrack | None = None
        self._aside: tuple[CounterTrack, int] | None = None
        self.downtime_uj = 0
        self.away_from_ns: int | None = None
        self._downtime_taken_uj = 0
        self._late_uj = 0
        self._frozen = False
        self._caught_up_ns = 0
        self._intervals_ns: deque[int] = deque(maxlen=5)
        self._peaks: deque[tuple[int, float]] = deque()
        self._power_mark: tuple[int, int] | None = None
        self._watts: float | None = None

    def describe(self, device: Device) -> None:
        """The device is described better: another limit, another range."""
        self.device = device
        for track in (self._track, self._beside):
            if track is not None:
                track.describe(device)

    def leave(self) -> None:
        """The daemon was away: the next reading tells where the meter stands, not what a cell has used."""
        self.left_ns = self.left_ns if self.last_seen_ns is None else self.last_seen_ns
        self.last_seen_ns = None
        self.is_new = True
        self._track = self._aside = self._beside = None
        self._frozen = False
        self._power_mark = self._watts = None

    @property
    def last_raw_uj(self) -> int | None:
        """The last raw counter value, for a restart; `None` for gauges."""
        return self._track.last_raw if isinstance(self._track, CounterTrack) else None

    def energy(self, reading: EnergyReading) -> str:
        """Take a counter reading; returns why it was rejected, or an empty string."""
        if isinstance(self._track, CounterTrack):
            return self._take(reading.t_ns, *self._track.step(reading.t_ns, reading.microjoules))
        counter, told_uj = self._aside or (CounterTrack(self.device), self.measured_uj)
        step, delta_uj = counter.step(reading.t_ns, reading.microjoules)
        if step in REFUSED:
            return self._take(reading.t_ns, step, 0)  # it does not bring the counter back
        self._follow(counter)
        self._take(reading.t_ns, step, 0)
        # What a gauge told in its place is not told twice; of the rest nobody knows when it was used.
        late_uj = max(delta_uj - (self.measured_uj - told_uj), 0)
        self.measured_uj += late_uj
        self._late_uj += late_uj
        return ""

    def power(self, reading: PowerReading) -> str:
        """Take a gauge reading; returns why it was rejected, or an empty string.

        Beside a counter that is alive the counter is the meter: the gauge is only held against it.
        """
        if isinstance(self._track, CounterTrack) and not self._is_gone(reading.t_ns):
            return self._compare(reading)
        if not isinstance(self._track, GaugeTrack):
            counter, gauge = self._track, GaugeTrack(self.device)
            self._follow(gauge)
            self._aside = None if counter is None else (counter, self.measured_uj)
            return self._take(reading.t_ns, *gauge.step(reading.t_ns, reading.watts))
        return self._take(reading.t_ns, *self._track.step(reading.t_ns, reading.watts))

    def _compare(self, reading: PowerReading) -> str:
        if self._beside is None:
            self._beside = CrossCheck(self.device)
        reason = self._beside.power(reading.t_ns, reading.watts, self.curve)
        if reason:
            self.rejected[reason] += 1
        return reason

    def _is_gone(self, t_ns: int) -> bool:
        """Whether the counter has ended: silent for longer than at its pace, as far as that is known."""
        knows_pace = len(self._intervals_ns) > INTERVALS_MIN
        silent_ns = 0 if self.last_seen_ns is None else t_ns - self.last_seen_ns
        return silent_ns > SILENCE_MAX_NS or (knows_pace and self.silent(t_ns))

    def _follow(self, track: CounterTrack | GaugeTrack) -> None:
        """From now on another kind of reading counts; how often the former one came says nothing of it."""
        self._track = track
        self._aside = self._beside = None
        self._intervals_ns.clear()

    def _take(self, t_ns: int, step: Step, delta_uj: int) -> str:
        if step in REFUSED:
            reason: str = step.value
            self.rejected[reason] += 1
            return reason
        previous_ns, self.last_seen_ns = self.last_seen_ns, t_ns
        if self.is_new:
            self._begin(t_ns)
            return ""
        self._note_interval(step, t_ns, 0 if previous_ns is None else t_ns - previous_ns)
        if step is Step.SAME and t_ns - self.curve.last_ns < SILENCE_NS:
            return ""
        self.measured_uj += delta_uj
        if self._frozen or t_ns <= self.curve.last_ns:
            self._late_uj += delta_uj
            self._frozen, self._caught_up_ns = False, t_ns
            delta_uj = 0
        if t_ns > self.curve.last_ns:
            self.curve.append(t_ns, self.curve.last_uj + delta_uj)
        self._observe_power(t_ns)
        return ""

    def _begin(self, t_ns: int) -> None:
        """The first reading, or the first one after the daemon was away: no cell in between holds energy."""
        self.is_new, self._caught_up_ns = False, t_ns
        if not self.curve:
            self.curve.append(t_ns, 0)
        elif t_ns > self.curve.last_ns:
            self.knowledge.holes.append((self.curve.last_ns, t_ns))
            self.curve.append(t_ns, self.curve.last_uj)

    def _note_interval(self, step: Step, t_ns: int, span_ns: int) -> None:
        """Account for the time since the last reading; after silence, what the counter grew by is late."""
        if span_ns > self._silence_ns() and not self._frozen:
            self.freeze(t_ns - 1)
        is_known = False
        if step in (Step.RESET, Step.GAP):
            self.gap_ns[step.value] += span_ns
        elif self._frozen:
            self.gap_ns["silent"] += span_ns
        else:
            is_known = True
            self.covered_ns += span_ns
        self.knowledge.add(t_ns - span_ns, t_ns, is_known=is_known)
        self._intervals_ns.append(span_ns)

    @property
    def gauge_seconds(self) -> float:
        """Usual time between a power gauge's readings, of whose course between them nobody knows; 0 of counters."""
        return self._usual_seconds if isinstance(self._track, GaugeTrack) else 0.0

    @property
    def _usual_seconds(self) -> float:
        if not self._intervals_ns:
            return 0.0
        return sorted(self._intervals_ns)[len(self._intervals_ns) // 2] / NANOSECONDS_PER_SECOND

    @property
    def check(self) -> Check | None:
        """The last comparison of the counter with a gauge beside it, if there is one."""
        return self._beside.last if self._beside else None

    def validity(self, now_ns: int) -> Validity | None:
        """How far its last minutes can be trusted; `None` before the second reading."""
        return self.knowledge.judge(now_ns, self._usual_seconds, self.check, is_silent=self.silent(now_ns))

    def _silence_ns(self) -> int:
        """A longer silence is a gap: 15 s, or three usual intervals of a source read less often, 15 min at most."""
        usual_ns = (
            sorted(self._intervals_ns)[len(self._intervals_ns) // 2]
            if len(self._intervals_ns) > INTERVALS_MIN
            else SILENCE_NS
        )
        return max(SILENCE_NS, min(3 * usual_ns, SILENCE_MAX_NS))

    def _observe_power(self, t_ns: int) -> None:
        if self._power_mark is None:
            self._power_mark = (t_ns, self.measured_uj)
            return
        mark_ns, mark_uj = self._power_mark
        if t_ns - mark_ns < POWER_WINDOW_NS:
            return
        self._watts = (self.measured_uj - mark_uj) * 1000.0 / (t_ns - mark_ns)
        self._power_mark = (t_ns, self.measured_uj)
        self._peaks.append((t_ns, self._watts))
        while self._peaks[0][0] < t_ns - PEAK_SECONDS * NANOSECONDS_PER_SECOND:
            self._peaks.popleft()

    def watts(self, now_ns: int) -> float | None:
        """Mean power over about the last second; `None` while the device is silent."""
        return None if self.silent(now_ns) else self._watts

    def peak_watts(self, now_ns: int) -> float | None:
        """Highest one-second mean of the last minute; `None` while the device is silent."""
        return None if self.silent(now_ns) or not self._peaks else max(watts for _, watts in self._peaks)

    def silent(self, now_ns: int) -> bool:
        """Whether the last reading is older than a source may hold a cell."""
        if self.last_seen_ns is None:
            return True
        silence_ns = now_ns - self.last_seen_ns
        return silence_ns > SILENCE_NS and silence_ns > self._silence_ns()

    def freeze(self, edge_ns: int) -> None:
        """Close up to `edge_ns` without this silent device: what it tells later of that time is late."""
        if self.curve and self.curve.last_ns < edge_ns:
            self.curve.append(edge_ns, self.curve.last_uj)
            self._frozen = True

    def energy_since(self, t_ns: int) -> int | None:
        """Cumulative energy at `t_ns` in the curve, for who counts only what is used later, microjoules.

        A counter that stood still then (frozen, or a BMC that hung) tells at once what it used meanwhile; that is
        left out. `None` while it still stands. Where it was silent the curve is flat as well, but what it used then is
        told apart.
        """
        begin_ns, end_ns, moved_uj = self.curve.stand(t_ns)
        if isinstance(self._track, CounterTrack) and end_ns - max(begin_ns, self._caught_up_ns) > SILENCE_NS:
            return moved_uj
        return self.curve.value_at(t_ns)

    def is_known(self, begin_ns: int, end_ns: int) -> bool:
        """Whether the energy of all of this time is known."""
        is_missing = self._frozen and self.last_seen_ns is not None and self.last_seen_ns < end_ns
        return not is_missing and not self.knowledge.has_hole(begin_ns, end_ns)

    def settle(self) -> None:
        """At the end of a recording: the counter stood still up to the last reading."""
        if self.curve and self.last_seen_ns is not None and self.last_seen_ns > self.curve.last_ns:
            self.curve.append(self.last_seen_ns, self.curve.last_uj)

    def take_late(self) -> int:
        """Energy that came too late for its cells, microjoules; each joule is handed out once."""
        late_uj, self._late_uj = self._late_uj, 0
        return late_uj

    def take_downtime(self) -> int:
        """Energy used while the daemon was away, microjoules; each joule is handed out once."""
        away_uj = self.downtime_uj - self._downtime_taken_uj
        self._downtime_taken_uj = self.downtime_uj
        return away_uj

    @property
    def total_uj(self) -> int:
        """All energy of this run and of the time away before it, microjoules."""
        return self.measured_uj + self.downtime_uj

    @property
    def estimated(self) -> bool:
        """Whether this device's energy is a guess."""
        return self.quality is Quality.ESTIMATED
