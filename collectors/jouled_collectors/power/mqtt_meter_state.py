"""One MQTT meter: what its messages are made into, and whether it still speaks."""

from collections import Counter, deque
from statistics import median

from jouled.api import Reading
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading
from jouled.model.units import NANOSECONDS_PER_SECOND, microjoules, nanoseconds
from jouled_collectors.power.mqtt_meter_payload import Said
from jouled_collectors.power.mqtt_meter_settings import MeterSettings
from jouled_collectors.power.settings import FEED

MOST_PENDING = 256
"""Readings kept of one meter between two reads; of a flood the newest."""

SILENT_PERIODS = 3
"""Silent for so many usual periods: gone (power-sources.md 6.3)."""

LEAST_SILENCE_NS = nanoseconds(15.0)
"""The core bridges as much (attribution.md section 4)."""

PERIODS_TO_LEARN = 3
"""Fewer tell nothing of how often a meter reports."""

FINE_STEP_SHARE = 0.05
"""A counter is the better meter if its step is at most this share of the energy between two reports: then one step more
or less, which is all that it can be wrong by, is no more than a plug's own error of a few per cent.
"""


class MeterState:
    """What is known of one meter. Not thread-safe.

    refused: why the broker does not let this client hear it. faults: fields that could not be used, by reason.
    """

    def __init__(self, settings: MeterSettings, now_ns: int) -> None:
        self.settings = settings
        self.refused: SourceError | None = None
        self.faults: Counter[str] = Counter()
        self._pending: deque[Reading] = deque(maxlen=MOST_PENDING)
        self._since_ns = now_ns
        self._heard_ns: int | None = None
        self._is_gone = False
        self._fault_since_heard = ""
        self._periods_ns: deque[int] = deque(maxlen=15)
        self._powers: deque[float] = deque(maxlen=15)
        self._step_microjoules: int | None = None
        is_fine = settings.kind == "shelly" and settings.reading == "auto"  # it counts in mWh
        self._counter_is_better = settings.reading == "energy" or is_fine
        self._last_microjoules: int | None = None
        self._lower_microjoules: int | None = None

    @property
    def device(self) -> Device:
        """The device; its method and quality are those of what is taken."""
        settings = self.settings
        return Device(
            name=settings.name,
            kind=DeviceKind(settings.role),
            parent=settings.feed or (FEED if settings.role == "outlet" else ""),
            product=settings.kind,
            source="mqtt_meter",
            method=f"mqtt_{settings.kind}_{'energy' if self._counter_is_better else 'power'}",
            quality=Quality.MEASURED if self._counter_is_better else Quality.DERIVED,
            max_watts=settings.max_watts,
        )

    def hear(self, said: Said, t_ns: int) -> None:
        """Take a message that arrived at `t_ns`; one that the broker had retained is none of these."""
        self.faults.update(said.faults)
        if not said.is_empty:
            self._is_gone = False
        if said.watts is not None:
            self._powers.append(said.watts)
        if said.microjoules is not None:
            self._step_microjoules = min(self._step_microjoules or said.step_microjoules, said.step_microjoules)
        self._choose()
        if (said.microjoules if self._counter_is_better else said.watts) is None:
            self._fault_since_heard = ",".join(said.faults) or self._fault_since_heard
            return
        self._note_period(t_ns)
        self._heard_ns, self._fault_since_heard = t_ns, ""
        reading = self._reading(said, t_ns)
        if reading is not None:
            self._pending.append(reading)

    def tell_available(self, is_available: bool) -> None:
        """Its last will, or its own word."""
        self._is_gone = not is_available

    def take(self) -> list[Reading]:
        """What came since the last call, oldest first."""
        readings = list(self._pending)
        self._pending.clear()
        return readings

    def trouble(self, now_ns: int) -> SourceError | None:
        """What is wrong with it; `None`: it works."""
        name, topic = self.settings.name, self.settings.topic
        if self.refused is not None:
            return self.refused
        if self._is_gone:
            message, mend = f"The broker says that {name} is offline", f"Check the power and the network of {name}"
            return SourceError(SourceState.DOWN, "offline", message, mend=mend)
        silent_ns = now_ns - (self._since_ns if self._heard_ns is None else self._heard_ns)
        is_late = silent_ns > self._silence_ns()
        if self._fault_since_heard and (is_late or self._heard_ns is None):
            message = f"What comes on {topic} cannot be used ({self._fault_since_heard})"
            return SourceError(SourceState.DOWN, "unreadable", message, mend=f"Check kind and paths of {name}")
        if self._heard_ns is not None and not is_late:
            return None
        wanted = "energy" if self._counter_is_better else "power"
        message = f"No {wanted} was heard on {topic} for {silent_ns // NANOSECONDS_PER_SECOND} s"
        mend = f"Check the topic of {name}, and that the broker's access list lets this user read it"
        return SourceError(SourceState.DOWN, "silent" if is_late else "waiting", message, mend=mend)

    def _note_period(self, t_ns: int) -> None:
        """A pause that counted as silence tells nothing of how often it reports."""
        if self._heard_ns is not None and t_ns - self._heard_ns <= self._silence_ns():
            self._periods_ns.append(t_ns - self._heard_ns)

    def _silence_ns(self) -> int:
        """Shelly and Zigbee tell more often when the load changes: that they do says nothing of quiet times."""
        usual_ns = nanoseconds(self.settings.usual_seconds)
        if self.settings.kind in {"tasmota", "json"} and len(self._periods_ns) >= PERIODS_TO_LEARN:
            told_ns = nanoseconds(self.settings.period_seconds or 0.0)
            usual_ns = max(round(median(self._periods_ns)), told_ns)
        return max(SILENT_PERIODS * usual_ns, LEAST_SILENCE_NS)

    def _choose(self) -> None:
        """Once the usual power and period are known, whether the counter is the better meter; that stays."""
        if self._counter_is_better or self.settings.reading == "power" or self._step_microjoules is None:
            return
        if not self._powers:
            self._counter_is_better = True
        elif len(self._periods_ns) >= PERIODS_TO_LEARN:
            joules = median(self._powers) * median(self._periods_ns) / NANOSECONDS_PER_SECOND
            self._counter_is_better = self._step_microjoules <= FINE_STEP_SHARE * microjoules(joules)

    def _reading(self, said: Said, t_ns: int) -> Reading | None:
        if self._counter_is_better:
            return None if said.microjoules is None else self._energy(said.microjoules, t_ns)
        middle_ns = t_ns - nanoseconds(self.settings.average_seconds / 2)
        return None if said.watts is None else PowerReading(self.settings.name, middle_ns, said.watts)

    def _energy(self, amount_microjoules: int, t_ns: int) -> EnergyReading | None:
        """A counter that falls was reset, or the message came late: the next one tells which."""
        last, lower = self._last_microjoules, self._lower_microjoules
        self._lower_microjoules = None
        if last is not None and amount_microjoules < last and (lower is None or amount_microjoules < lower):
            self._lower_microjoules = amount_microjoules
            return None
        self._last_microjoules = amount_microjoules
        return EnergyReading(self.settings.name, t_ns, amount_microjoules)
