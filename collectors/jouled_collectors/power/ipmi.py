"""The node's power by its BMC: IPMI DCMI "Get Power Reading", asked with ipmitool, in-band or over the network."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal, cast

from msgspec import Meta

from jouled.api import Clock, PowerSettings, PowerSource, Reading
from jouled.model.device import Device, DeviceKind
from jouled.model.readings import PowerReading
from jouled_collectors.power.ipmi_meter import DEVICE_NAME, Meter
from jouled_collectors.power.ipmi_request import Bmc, request
from jouled_collectors.power.settings import Watts

DEFAULT_INTERVAL_SECONDS = 10.0
"""A BMC measures anew every 1 to 5 s, and a question over its slow bus (KCS) holds up its other users."""

_IntervalSeconds = Annotated[float, Meta(ge=2, le=60)]
_CipherSuite = Annotated[int, Meta(ge=0, le=255)]


class IpmiSettings(PowerSettings, kw_only=True, forbid_unknown_fields=True):
    """Settings of `[power.ipmi]`. Without `host` the BMC of this node is asked through its device, `/dev/ipmi0`."""

    interval_seconds: Annotated[
        _IntervalSeconds | None, Meta(description="Time between two questions to the BMC, 2 to 60. Unset, 10.")
    ] = None
    host: Annotated[
        str, Meta(description="Name or address of the BMC, asked over the network (RMCP+). Empty: in-band.")
    ] = ""
    port: Annotated[int, Meta(ge=1, le=65535, description="UDP port of the BMC; with `host` only.")] = 623
    user: Annotated[str, Meta(max_length=16, description="User of the BMC; with `host` only.")] = ""
    password_file: Annotated[str, Meta(description="File with the user's password; with `host` only.")] = ""
    privilege: Annotated[
        Literal["user", "operator", "administrator"],
        Meta(description="Privilege that is asked for; DCMI needs no more than `user`. With `host` only."),
    ] = "user"
    cipher_suite: Annotated[
        _CipherSuite | None,
        Meta(description="Cipher suite, such as 3 or 17. Unset, the best that the BMC offers. With `host` only."),
    ] = None
    sensor: Annotated[
        str,
        Meta(
            pattern="^([^-].*)?$",
            description="Sensor to read instead of DCMI, as `ipmitool sdr list full` names it; it has to measure watts"
            " of the whole node. Empty: DCMI.",
        ),
    ] = ""
    max_watts: Annotated[
        Watts | None, Meta(description="Most that the node can draw: readings are judged against it.")
    ] = None

    def __post_init__(self) -> None:
        if self.host and not (self.user and self.password_file):
            raise ValueError("host needs user and password_file")
        if not self.host and (self.user or self.password_file):
            raise ValueError("user and password_file need host: in-band the BMC asks for none")


class IpmiCollector:
    """Asks one BMC in a thread: ipmitool is a process of its own, with a time limit."""

    name: ClassVar[str] = "ipmi"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = IpmiSettings

    def __init__(self) -> None:
        self._meter = Meter()

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Find the BMC and ask it once. Raises `SourceError`."""
        options = cast("IpmiSettings", settings)
        bmc = Bmc(
            host=options.host,
            port=options.port,
            user=options.user,
            password_file=options.password_file,
            privilege=options.privilege,
            cipher_suite=options.cipher_suite,
        )
        source = IpmiSource(clock, self._meter, bmc, options.sensor, options.max_watts)
        if options.interval_seconds is not None:
            source.interval_seconds = options.interval_seconds
        return source


class IpmiSource:
    """The node.

    What it draws is what the BMC takes for that: of most servers the input of the power supplies, of some their output,
    fans included. The BMC does not tell how old its value is (up to 5 s), so a reading is stamped when it was asked.
    """

    def __init__(self, clock: Clock, meter: Meter, bmc: Bmc, sensor: str, max_watts: float | None) -> None:
        self.devices: Sequence[Device] = (
            Device(
                name=DEVICE_NAME,
                kind=DeviceKind.NODE,
                source="ipmi",
                method="ipmi_sensor" if sensor else "dcmi_power_reading",
                max_watts=max_watts,
            ),
        )
        self.interval_seconds = DEFAULT_INTERVAL_SECONDS
        self._clock = clock
        self._meter = meter
        self._request = request(bmc)
        self._sensor = sensor
        self._first = self._ask()

    def read(self) -> list[Reading]:
        """Ask the BMC; nothing where it was asked less than 2 s ago. Raises `SourceError`."""
        reading = self._first or self._ask()
        self._first = None
        return [] if reading is None else [reading]

    def _ask(self) -> PowerReading | None:
        return self._meter.ask(self._request, self._sensor, self._clock)

    def close(self) -> None:
        """Nothing is held: each question is a session of its own."""
