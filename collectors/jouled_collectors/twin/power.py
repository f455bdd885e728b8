"""The twin's devices as a power source like any other: `[power.twin]` with the twin's address."""

import http.client
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, structs

from jouled.api import Clock, PowerSettings, Reading
from jouled.model.device import Device, DeviceKind, Quality
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import DeviceStatus, EnergyReading, PowerReading

_TIMEOUT_SECONDS = 5.0
_OUTLET_NS = 1_000_000_000
_STATUS_NS = 5_000_000_000
_MEND = "Start it with `python -m jouled_collectors.twin ensure --state DIRECTORY --spans URL` and set power.twin.url"


class TwinSettings(PowerSettings, kw_only=True):
    """Settings of `[power.twin]`.

    url: where the twin listens. interval_seconds: between two reads (default 0.1). tell_idle: let its accelerators
    tell their idle and uplift watts (within 5 %); without, the daemon has to learn them.
    """

    url: str
    interval_seconds: Annotated[float, Meta(gt=0, le=30)] | None = 0.1
    tell_idle: bool = True


class _Description(Struct, frozen=True):
    devices: list[Device]


class _Shown(Struct, frozen=True):
    microjoules: int
    watts: float | None = None


class _Readings(Struct, frozen=True):
    readings: dict[str, _Shown]


_Told = TypeVar("_Told", _Description, _Readings)


class TwinCollector:
    """Meters of the digital twin of a node."""

    name: ClassVar[str] = "twin"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = TwinSettings

    def open(self, settings: PowerSettings, clock: Clock) -> "TwinSource":
        """Ask the twin for its devices. Raises `SourceError`."""
        if not isinstance(settings, TwinSettings):
            raise TypeError(f"settings of the twin, not {type(settings).__name__}")
        return TwinSource(settings, clock)


class TwinSource:
    """All meters of the twin over one kept connection. A counter that has not moved is told as it stands."""

    def __init__(self, settings: TwinSettings, clock: Clock) -> None:
        self.interval_seconds = settings.interval_seconds or 0.1
        self._clock = clock
        self._url = settings.url
        self._path, self._connection = _connection(settings.url)
        self._decoder = msgspec.json.Decoder(_Readings)
        description = self._decode(self._ask("/node"), msgspec.json.Decoder(_Description))
        self.devices: Sequence[Device] = [_as_told(device, settings) for device in description.devices]
        self._kinds: Mapping[str, DeviceKind] = {device.name: device.kind for device in self.devices}
        self._outlets_due_ns = 0
        self._statuses_due_ns = 0

    def read(self) -> list[Reading]:
        """Read all meters at once, stamped at the middle of the read. Raises `SourceError`."""
        before_ns = self._clock.now_ns()
        body = self._ask("/devices")
        t_ns = (before_ns + self._clock.now_ns()) // 2
        told = self._decode(body, self._decoder)
        readings: list[Reading] = [
            EnergyReading(name, t_ns, shown.microjoules)
            for name, shown in told.readings.items()
            if self._kinds.get(name, DeviceKind.OUTLET) is not DeviceKind.OUTLET
        ]
        return readings + self._outlets(told, t_ns) + self._statuses(t_ns)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _outlets(self, told: _Readings, t_ns: int) -> list[Reading]:
        """Outlets' gauges, once per averaging time of theirs and stamped at its middle."""
        if t_ns < self._outlets_due_ns:
            return []
        self._outlets_due_ns = max(self._outlets_due_ns + _OUTLET_NS, t_ns + _OUTLET_NS // 2)
        return [
            PowerReading(name, t_ns - _OUTLET_NS // 2, shown.watts, Quality.MEASURED)
            for name, shown in told.readings.items()
            if self._kinds.get(name) is DeviceKind.OUTLET and shown.watts is not None
        ]

    def _statuses(self, t_ns: int) -> list[Reading]:
        if t_ns < self._statuses_due_ns:
            return []
        self._statuses_due_ns = t_ns + _STATUS_NS
        return [
            DeviceStatus(device=device.name, t_ns=t_ns, power_limit_watts=device.max_watts, driver="twin")
            for device in self.devices
            if device.kind is DeviceKind.GPU
        ]

    def _ask(self, path: str) -> bytes:
        try:
            self._connection.request("GET", self._path + path)
            answer = self._connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            message = f"no answer from the twin at {self._url}: {error!r}"
            raise SourceError(SourceState.DOWN, "unreachable", message, mend=_MEND) from error
        if answer.status != http.HTTPStatus.OK:
            message = f"{self._url}{path} answered {answer.status}: this is no twin"
            raise SourceError(SourceState.DOWN, "bad_answer", message, mend=_MEND)
        return body

    def _decode(self, body: bytes, decoder: "msgspec.json.Decoder[_Told]") -> _Told:
        try:
            return decoder.decode(body)
        except msgspec.DecodeError as error:
            message = f"{self._url} answered something that is no twin's: {error}"
            raise SourceError(SourceState.DOWN, "bad_answer", message, mend=_MEND) from error


def _connection(url: str) -> tuple[str, http.client.HTTPConnection]:
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise SourceError(
            SourceState.ABSENT, "bad_url", f"{url!r} is no http URL", mend="Set power.twin.url to http://HOST:PORT"
        )
    return parts.path.rstrip("/"), http.client.HTTPConnection(parts.hostname, parts.port, timeout=_TIMEOUT_SECONDS)


def _as_told(device: Device, settings: TwinSettings) -> Device:
    told = structs.replace(device, source=TwinCollector.name, method="simulated")
    return told if settings.tell_idle else structs.replace(told, idle_watts=None, uplift_watts=None)
