"""Power meters that speak Modbus TCP, such as those of switchboards. Their registers: modbus_profiles.toml."""

import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal, cast

import msgspec

from jouled.api import Clock, PowerSettings, PowerSource, Reading
from jouled.model.device import Device
from jouled.model.errors import SourceError, SourceState
from jouled_collectors.power.modbus_gateway import Address, Gateway, Meter
from jouled_collectors.power.modbus_registers import PROFILES_FILE, Profile, read_profiles
from jouled_collectors.power.modbus_settings import ModbusMeterSettings, ModbusSettings

DEFAULT_INTERVAL_SECONDS = 1.0
"""Such meters compute a power about once a second."""

WAIT_SECONDS = 0.5
"""How long a read waits for answers; a later one is handed out by the next read, with its own time stamp."""

OPEN_SECONDS = 3.0


class ModbusCollector:
    """Asks meters in threads, one for each host."""

    name: ClassVar[str] = "modbus"
    isolation: ClassVar[Literal["thread", "process"]] = "thread"
    settings_type: ClassVar[type[PowerSettings]] = ModbusSettings

    def open(self, settings: PowerSettings, clock: Clock) -> PowerSource:
        """Ask every meter once. Raises `SourceError`, also where none answers."""
        if find_spec("pymodbus") is None:
            message, mend = "pymodbus is not installed", f"Install it: {sys.executable} -m pip install 'jouled[modbus]'"
            raise SourceError(SourceState.ABSENT, "no_library", message, mend=mend)
        options = cast("ModbusSettings", settings)
        source = ModbusSource(options, _meters(options), clock)
        try:
            source.open()
        except SourceError:
            source.close()
            raise
        return source


class ModbusSource:
    """The meters of all hosts."""

    def __init__(self, settings: ModbusSettings, meters: Sequence[Meter], clock: Clock) -> None:
        self.parts: Mapping[str, SourceError | None] = {}
        self.interval_seconds = settings.interval_seconds or DEFAULT_INTERVAL_SECONDS
        self._meters = meters
        # Those too that were never heard: without them a feed of two would look whole with one.
        self.devices: Sequence[Device] = tuple(meter.device for meter in meters)
        by_address: dict[Address, list[Meter]] = {}
        for meter in meters:
            by_address.setdefault(Address(meter.settings.host, meter.settings.port), []).append(meter)
        self._gateways = [
            Gateway(address, behind, settings.timeout_seconds, clock) for address, behind in by_address.items()
        ]

    def open(self) -> None:
        """Wait for the first answers. Raises `SourceError`."""
        for gateway in self._gateways:
            gateway.begin()
        self._wait(OPEN_SECONDS)
        self._raise_if_none_works()

    def read(self) -> list[Reading]:
        """Ask every meter that is due. Raises `SourceError` if none works."""
        for gateway in self._gateways:
            gateway.begin()
        self._wait(WAIT_SECONDS)
        self._raise_if_none_works()
        self.parts = {meter.settings.name: meter.error for meter in self._meters}
        return [reading for gateway in self._gateways for reading in gateway.take()]

    def close(self) -> None:
        """Hang up."""
        for gateway in self._gateways:
            gateway.close()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for gateway in self._gateways:
            gateway.wait(max(deadline - time.monotonic(), 0.0))

    def _raise_if_none_works(self) -> None:
        errors = [meter.error for meter in self._meters if meter.error is not None]
        is_undecided = any(error.reason == "waiting" for error in errors)
        if len(errors) == len(self._meters) and not is_undecided:
            raise errors[0]


def _meters(settings: ModbusSettings) -> list[Meter]:
    profiles = dict(read_profiles(PROFILES_FILE))
    if path := settings.profiles_file:
        try:
            profiles.update(read_profiles(Path(path)))
        except OSError as error:
            message, mend = f"profiles_file {path} cannot be read: {error.strerror}", "Let the daemon's user read it"
            raise SourceError(SourceState.DENIED, "profiles_file", message, mend=mend) from error
        except ValueError as error:
            message, mend = f"profiles_file {path} cannot be used: {error}", f"Give it the form of {PROFILES_FILE}"
            raise SourceError(SourceState.DENIED, "profiles_file", message, mend=mend) from error
    try:
        return [Meter(meter, _profile(meter, profiles)) for meter in settings.meters]
    except ValueError as error:
        mend = "Check meters of [power.modbus]"
        raise SourceError(SourceState.DENIED, "configuration", str(error), mend=mend) from error


def _profile(meter: ModbusMeterSettings, profiles: Mapping[str, Profile]) -> Profile:
    """The meter's profile, with the registers that its own settings give. Raises `ValueError`."""
    if meter.profile and meter.profile not in profiles:
        raise ValueError(f"{meter.name}: there is no profile {meter.profile}, only {', '.join(sorted(profiles))}")
    profile = profiles.get(meter.profile, Profile())
    return msgspec.structs.replace(profile, power=meter.power or profile.power, energy=meter.energy or profile.energy)
