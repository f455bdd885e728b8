"""The devices of the node: their meters, their partitions, and what they tell of themselves."""

from msgspec.structs import replace

from jouled.core.absence import Absences
from jouled.core.accounting.account import Account
from jouled.core.books import RawCounter
from jouled.core.ledger.meter import Meter
from jouled.core.live import LiveMeters, downtime_uj
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading
from jouled.model.units import NANOSECONDS_PER_SECOND


class Devices:
    """Takes what is told of devices. Its inputs return an empty string, or the reason for which they are refused.

    changed: whether the groups have to be arranged anew. before: raw counters from before a restart, of devices that
    have not been read since.
    """

    def __init__(self, account: Account, live: LiveMeters, absences: Absences) -> None:
        self.meters: dict[str, Meter] = {}
        self.partitions: dict[str, Device] = {}
        self.status: dict[str, DeviceStatus] = {}
        self.before: dict[str, RawCounter] = {}
        self.changed = False
        self._changes = {change.name: change for change in account.parameters.device_changes}
        self._counters = account.counters
        self._live = live
        self._absences = absences

    def take(self, device: Device) -> str:
        """A device is there, or is described anew."""
        change = self._changes.get(device.name)
        if change is not None:
            if change.ignore:
                return "ignored"
            told = {key: getattr(change, key) for key in ("parent", "max_watts")}
            device = replace(device, **{key: value for key, value in told.items() if value is not None})
        if device.kind is DeviceKind.PARTITION:
            self.changed = self.changed or self.partitions.get(device.name) != device
            self.partitions[device.name] = device
            return ""
        self._absences.named_device(device.name)
        known = self.meters.get(device.name)
        if known is None:
            self.meters[device.name] = Meter(device)
            self.changed = True
        elif known.device != device:
            self.changed = self.changed or known.device.kind is not device.kind
            known.describe(device)
        return ""

    def energy(self, reading: EnergyReading) -> str:
        """A counter was read."""
        meter = self.meters.get(reading.device)
        if meter is None:
            return "unknown_device"
        if meter.is_new:
            meter.quality = reading.quality
            self._book_downtime(meter, reading.t_ns, reading.microjoules)
            self.changed = self.changed or reading.quality is Quality.ESTIMATED
        return meter.energy(reading)

    def power(self, reading: PowerReading) -> str:
        """A gauge was read."""
        meter = self.meters.get(reading.device)
        if meter is None:
            return "unknown_device"
        if meter.is_new:
            meter.quality = reading.quality
            self._book_downtime(meter, reading.t_ns, None)
        return meter.power(reading)

    def tell(self, status: DeviceStatus) -> str:
        """A device tells its state."""
        if status.device not in self.meters:
            return "unknown_device"
        self.status[status.device] = status
        self._live.status(status)
        return ""

    def _book_downtime(self, meter: Meter, t_ns: int, raw_uj: int | None) -> None:
        """What a device used while the daemon was away, where its counter went on; else that time is a gap."""
        self._absences.metered_again(t_ns)
        stored = self.before.pop(meter.device.name, None)
        before_ns = stored.t_ns if stored is not None else meter.left_ns
        if before_ns is None:
            return
        away_uj = None
        if stored is not None and raw_uj is not None and self._absences.hardware_went_on:
            away_uj = downtime_uj(meter.device, stored, raw_uj, t_ns)
        if away_uj is None:
            gap_seconds = max(t_ns - before_ns, 0) / NANOSECONDS_PER_SECOND
            self._counters.add("source_gap_seconds_total", (meter.device.source, "downtime"), gap_seconds)
            return
        meter.downtime_uj += away_uj
        meter.away_from_ns = before_ns

    def limit_watts(self, name: str) -> float | None:
        """The power limit that a device tells, else the most that it is made for."""
        status = self.status.get(name)
        if status is not None and status.power_limit_watts is not None:
            return status.power_limit_watts
        return self.meters[name].device.max_watts

    def raw_counters(self) -> dict[str, RawCounter]:
        """The last raw value of every counter, those from before a restart included."""
        return self.before | {
            name: RawCounter(meter.last_raw_uj, meter.last_seen_ns, meter.device.uuid)
            for name, meter in self.meters.items()
            if meter.last_raw_uj is not None and meter.last_seen_ns is not None
        }

    def drop(self, names: set[str]) -> None:
        """Devices that were named before a restart are not there any more."""
        for name in names & self.meters.keys():
            del self.meters[name]
            self._live.forget(name)
        self.changed = self.changed or bool(names)
