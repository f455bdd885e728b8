"""An opened source of sensors under /sys: read one after the other, found again when their drivers come back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jouled.api import Clock, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled.model.units import nanoseconds
from jouled_collectors.power.sysfs_file import StaleFileError, SysfsFile, exists
from jouled_collectors.power.sysfs_sensor import Sensor

RETRY_NS = nanoseconds(30)
"""A sensor that fails is asked again after this time, and sensors are looked for again as often. With the longest
interval that makes a minute, half of the fastest wrap (`IntervalSeconds`).
"""


@dataclass(slots=True)
class _Meter:
    sensor: Sensor
    files: list[SysfsFile] = field(init=False)
    retry_at_ns: int = 0

    def __post_init__(self) -> None:
        self.files = [SysfsFile(path) for path in self.sensor.files]

    def close(self) -> None:
        for file in self.files:
            file.close()


class SysfsSource:
    """Sensors of this host.

    find: looks for the sensors again, raises `SourceError`; those whose driver left stay, as failing ones. denied: what
    mends a file that may not be read. named: devices that the operator asked for. `parts`: the sensors that have failed
    since the start and the named ones that are not here, by device name.
    """

    def __init__(
        self,
        clock: Clock,
        sensors: Sequence[Sensor],
        find: Callable[[], Sequence[Sensor]],
        denied: Callable[[Path], SourceError],
        interval_seconds: float,
        named: Sequence[str] = (),
    ) -> None:
        self.devices: Sequence[Device] = tuple(sensor.device for sensor in sensors)
        self.interval_seconds = interval_seconds
        self.parts: Mapping[str, SourceError | None] = {}
        self._clock = clock
        self._find = find
        self._denied = denied
        self._meters = {sensor.device.name: _Meter(sensor) for sensor in sensors}
        self._look_at_ns = clock.now_ns() + RETRY_NS
        self._is_stale = False
        self._named = named
        self._tell_missing()

    def read(self) -> list[Reading]:
        """Read every sensor; one that fails is left out and asked again after 30 s. Raises `SourceError` if all fail.

        When a driver was loaded again, its files may have other numbers: they are looked for before they are read.
        """
        now_ns = self._clock.now_ns()
        if now_ns >= self._look_at_ns:
            self._look_again(now_ns)
            now_ns = self._clock.now_ns()
        readings = self._read_all(now_ns)
        if self._is_stale:
            self._look_again(now_ns)
            readings = self._read_all(self._clock.now_ns())
        if not readings:
            raise self._nothing_read()
        return readings

    def close(self) -> None:
        """Close all files."""
        for meter in self._meters.values():
            meter.close()

    def _read_all(self, before_ns: int) -> list[Reading]:
        """Stamp each at the middle of its own read."""
        self._is_stale = False
        readings = []
        for meter in self._meters.values():
            if before_ns < meter.retry_at_ns:
                continue
            contents = self._contents(meter, before_ns)
            after_ns = self._clock.now_ns()
            if contents and (reading := self._reading(meter, contents, (before_ns + after_ns) // 2)) is not None:
                readings.append(reading)
            before_ns = after_ns
        return readings

    def _contents(self, meter: _Meter, now_ns: int) -> list[bytes]:
        """What the files hold; nothing where one cannot be read."""
        try:
            return [file.read() for file in meter.files]
        except StaleFileError:
            self._is_stale = True
        except OSError as error:
            meter.retry_at_ns = now_ns + RETRY_NS
            self._tell(meter, self._unreadable(meter, error))
        return []

    def _reading(self, meter: _Meter, contents: list[bytes], t_ns: int) -> Reading | None:
        try:
            reading = meter.sensor.reading(contents, t_ns)
        except SourceError as error:
            self._tell(meter, error)
            return None
        if self.parts.get(meter.sensor.device.name) is not None:
            self._tell(meter, None)
        return reading

    def _tell(self, meter: _Meter, error: SourceError | None) -> None:
        self.parts = {**self.parts, meter.sensor.device.name: error}

    def _unreadable(self, meter: _Meter, error: OSError) -> SourceError:
        path = Path(error.filename or meter.sensor.files[0])
        if isinstance(error, PermissionError):
            return self._denied(path)
        return SourceError(SourceState.DOWN, "unreadable", f"{path} cannot be read: {error.strerror}")

    def _look_again(self, now_ns: int) -> None:
        """Take what is found now. Raises `SourceError` when another source meters all of it by now."""
        self._look_at_ns = now_ns + RETRY_NS
        missing: SourceError | None = None
        try:
            found = {sensor.device.name: sensor for sensor in self._find()}
        except SourceError as error:
            found, missing = {}, error
        for name, meter in list(self._meters.items()):
            if found.get(name) != meter.sensor and (name in found or not _has_gone(meter.sensor)):
                meter.close()
                del self._meters[name]
        for name, sensor in found.items():
            self._meters.setdefault(name, _Meter(sensor))
        self.devices = tuple(meter.sensor.device for meter in self._meters.values())
        self.parts = {name: error if name in self._meters else None for name, error in self.parts.items()}
        self._tell_missing()
        if missing is not None and not self._meters:
            raise missing

    def _tell_missing(self) -> None:
        here = ", ".join(self._meters)
        for name in self._named:
            if name not in self._meters:
                message = f"No device {name} here; there is {here}"
                missing = SourceError(SourceState.ABSENT, "unknown_device", message, mend="Correct `devices`")
                self.parts = {**self.parts, name: missing}

    def _nothing_read(self) -> SourceError:
        """A refusal before anything else: it is what the operator can mend."""
        failures = [failure for failure in self.parts.values() if failure is not None]
        return next((failure for failure in failures if failure.state is SourceState.DENIED), failures[-1])


def _has_gone(sensor: Sensor) -> bool:
    """Whether its driver left; what is still there and not found belongs to another source, or is another sensor."""
    return not all(exists(path) for path in sensor.files)
