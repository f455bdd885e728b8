"""Settings of `[power.mqtt_meter]`: the broker, and each meter that publishes there."""

import re
from typing import Annotated, Literal

from msgspec import Meta, Struct

from jouled.api import PowerSettings
from jouled_collectors.power.settings import IntervalSeconds, Watts

MeterKind = Literal["shelly", "tasmota", "zigbee2mqtt", "json"]
EnergyUnit = Literal["Wh", "kWh", "J"]
Reading = Literal["auto", "energy", "power"]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=1, le=65535)]

PERIOD_SECONDS: dict[MeterKind, float] = {"shelly": 60.0, "tasmota": 300.0, "zigbee2mqtt": 60.0, "json": 60.0}
"""How often a meter reports, as far as nothing else is known (power-sources.md 6.3, from documents only): Shelly tells
the energy of each minute, Tasmota's TelePeriod is 300 s unless it is set, Zigbee devices tell at least once a minute or
so. Of plain JSON nothing is known.
"""

_PORT, _TLS_PORT = 1883, 8883
_NO_TOPIC = re.compile(r"[+#\x00-\x1f\x7f-\x9f]")
_SHELLY_TOPIC = re.compile(r".+/status/[^/]+")
_TASMOTA_TOPIC = re.compile(r".+/SENSOR")


class MeterSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """One `[[power.mqtt_meter.meters]]`."""

    name: Annotated[str, Meta(min_length=1, description="Name of the device, unique on the node.")]
    kind: Annotated[
        MeterKind,
        Meta(description="What publishes: `shelly` (Gen2 and later), `tasmota`, `zigbee2mqtt`, or `json` (others)."),
    ]
    topic: Annotated[
        str,
        Meta(
            description="Where it publishes: `PREFIX/status/switch:0` (Shelly; what it tells on `PREFIX/events/rpc` is"
            " read too), `tele/NAME/SENSOR` (Tasmota), `zigbee2mqtt/NAME`."
        ),
    ]
    role: Annotated[
        Literal["feed", "outlet", "node"],
        Meta(description="What it measures: one `outlet`, the whole `node`, or a `feed` of it."),
    ] = "outlet"
    feed: Annotated[str, Meta(description="Name of the feed that it belongs to, as a node's A and B outlets do.")] = ""
    max_watts: Annotated[
        Watts | None, Meta(description="Most that it can carry; above three times it, no reading.")
    ] = None
    power_path: Annotated[
        str,
        Meta(
            description="`json` only: where the watts stand in the message, as `a.b.0`, or `/a/b.c/0` where a key has a"
            " dot in it. `.`: the message is the number."
        ),
    ] = ""
    energy_path: Annotated[str, Meta(description="`json` only: where the energy counter stands.")] = ""
    energy_unit: Annotated[EnergyUnit, Meta(description="`json` only: unit of the energy counter.")] = "kWh"
    reading: Annotated[
        Reading,
        Meta(
            description="Which of the two to take. `auto`: the counter, once it is seen to move in small steps as the"
            " meter reports, else the power."
        ),
    ] = "auto"
    average_seconds: Annotated[
        float, Meta(ge=0, le=60, description="What a power averages over: it is stamped half of that before it came.")
    ] = 1.0
    period_seconds: Annotated[
        Seconds | None,
        Meta(
            description="Longest usual time between two reports: a meter that is silent for three times that is down."
            " Unset: learned from its reports.",
        ),
    ] = None
    availability_topic: Annotated[
        str,
        Meta(
            description="Where `offline`, `false` or `0` says that it is gone. Empty: where Shelly, Tasmota and"
            " Zigbee2MQTT say so; nowhere for `json`."
        ),
    ] = ""

    def __post_init__(self) -> None:
        for key in ("topic", "availability_topic"):
            topic: str = getattr(self, key)
            if _NO_TOPIC.search(topic) or (key == "topic" and not topic):
                raise ValueError(f"{key} {topic!r} of {self.name} is no single topic")
        self._check_form()
        if self.kind == "json":
            self._check_paths()
        elif self.power_path or self.energy_path:
            raise ValueError(f'{self.name}: power_path and energy_path are for kind = "json"')

    @property
    def usual_seconds(self) -> float:
        """How often it reports, before that is learned."""
        return self.period_seconds or PERIOD_SECONDS[self.kind]

    def _check_form(self) -> None:
        if self.kind == "shelly" and not _SHELLY_TOPIC.fullmatch(self.topic):
            raise ValueError(f"{self.name}: the topic of a shelly ends with /status/switch:0 or another component")
        if self.kind == "tasmota" and not _TASMOTA_TOPIC.fullmatch(self.topic):
            raise ValueError(f"{self.name}: the topic of a tasmota ends with /SENSOR")

    def _check_paths(self) -> None:
        if not self.power_path and not self.energy_path:
            raise ValueError(f'{self.name}: kind = "json" needs power_path or energy_path')
        if (self.reading == "energy" and not self.energy_path) or (self.reading == "power" and not self.power_path):
            raise ValueError(f'{self.name}: reading = "{self.reading}" needs {self.reading}_path')


class MqttMeterSettings(PowerSettings, kw_only=True):
    """Settings of `[power.mqtt_meter]`. interval_seconds: unset, 1; what came in between is not lost."""

    host: Annotated[str, Meta(min_length=1, description="The broker; it must speak MQTT 5.")]
    meters: Annotated[list[MeterSettings], Meta(min_length=1, description="The meters that publish there.")]
    port: Annotated[Port | None, Meta(description="Empty: 1883, with `tls` 8883.")] = None
    tls: Annotated[bool, Meta(description="Encrypt, and ask the broker for a certificate of `host`.")] = False
    ca_file: Annotated[
        str, Meta(description="Who signs the broker's certificate. Empty: the system's authorities.")
    ] = ""
    user: Annotated[str, Meta(description="User name. Empty: none.")] = ""
    password_file: Annotated[str, Meta(description="File that holds the password. Without `tls` it goes in clear.")] = (
        ""
    )
    client_id: Annotated[str, Meta(description="Must be unique at the broker. Empty: the broker gives one.")] = ""
    keepalive_seconds: Annotated[
        int, Meta(ge=1, le=65535, description="A silent connection is probed after this time.")
    ] = 20
    interval_seconds: IntervalSeconds | None = None

    def __post_init__(self) -> None:
        names = [meter.name for meter in self.meters]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two meters are called {name}")
        if self.password_file and not self.user:
            raise ValueError("password_file is given without user")
        if self.ca_file and not self.tls:
            raise ValueError("ca_file is given without tls")

    @property
    def port_number(self) -> int:
        """The port as configured, or the registered one (IANA: 1883 mqtt, 8883 secure-mqtt)."""
        return self.port or (_TLS_PORT if self.tls else _PORT)
