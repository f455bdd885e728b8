"""Settings of `[power.modbus]`."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from jouled.api import PowerSettings
from jouled_collectors.power.modbus_registers import EnergyRegister, PowerRegister, WordOrder
from jouled_collectors.power.settings import IntervalSeconds, Watts


class ModbusMeterSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """One `[[power.modbus.meters]]`."""

    name: Annotated[str, Meta(min_length=1, description="Name of the device, unique on the node.")]
    host: Annotated[str, Meta(min_length=1, description="The meter, or the gateway that it is wired to.")]
    port: Annotated[int, Meta(ge=1, le=65535, description="TCP port.")] = 502
    unit: Annotated[int, Meta(ge=0, le=255, description="Address of the meter behind a gateway (unit id).")] = 1
    profile: Annotated[
        str,
        Meta(description="Where its registers are: `schneider_iem3000`, `janitza_umg`, or one of `profiles_file`."),
    ] = ""
    power: Annotated[
        PowerRegister | None,
        Meta(description='Its power register, as `{ address = 3060, type = "float32", unit = "kW" }`.'),
    ] = None
    energy: Annotated[
        EnergyRegister | None,
        Meta(description='Its energy register, as `{ address = 3204, type = "int64", unit = "Wh" }`.'),
    ] = None
    first_address: Annotated[
        Literal[0, 1] | None, Meta(description="What the vendor's list of registers counts from. Unset: the profile's.")
    ] = None
    word_order: Annotated[
        WordOrder | None, Meta(description="Which register of a number comes first. Unset: the profile's, else `big`.")
    ] = None
    reading: Annotated[
        Literal["auto", "energy", "power"],
        Meta(
            description="Which of the two to take. `auto`: the power where there is a register of it; counters of Wh"
            " are too coarse, one step being 4.5 s at 800 W."
        ),
    ] = "auto"
    role: Annotated[
        Literal["feed", "outlet", "node"],
        Meta(description="What it measures: one `outlet`, the whole `node`, or a `feed` of it."),
    ] = "feed"
    feed: Annotated[str, Meta(description="Name of the feed that it belongs to, as a node's A and B outlets do.")] = ""
    max_watts: Annotated[
        Watts | None, Meta(description="Most that it can carry; above three times it, no reading.")
    ] = None
    average_seconds: Annotated[
        float, Meta(ge=0, le=60, description="What a power averages over: it is stamped half of that before the read.")
    ] = 1.0

    def __post_init__(self) -> None:
        if not self.profile and self.power is None and self.energy is None:
            raise ValueError(f"{self.name} needs a profile, or a power or energy register")


class ModbusSettings(PowerSettings, kw_only=True):
    """Settings of `[power.modbus]`. interval_seconds: unset, 1."""

    meters: Annotated[list[ModbusMeterSettings], Meta(min_length=1, description="The meters.")]
    profiles_file: Annotated[
        str, Meta(description="More profiles (TOML), in the form of the package's modbus_profiles.toml.")
    ] = ""
    timeout_seconds: Annotated[
        float, Meta(gt=0, le=10, description="How long a meter is waited for, to connect and to answer each.")
    ] = 1.0
    interval_seconds: IntervalSeconds | None = None

    def __post_init__(self) -> None:
        names = [meter.name for meter in self.meters]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two meters are called {name}")
