"""What a message of an MQTT meter says: its power, its energy counter, or what is wrong with it. Pure.

Fields and units as in power-sources.md 6.3, from documents only: Shelly Gen2 `apower` W and `aenergy.total` Wh,
Tasmota `ENERGY.Power` W and `ENERGY.Total` kWh, Zigbee2MQTT `power` W and `energy` kWh.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from jouled_collectors.power.mqtt_meter_settings import EnergyUnit, MeterSettings

LARGEST_BYTES = 65_536
"""Of a payload. Tasmota's are below 1 kB, a full status of a Shelly below 10 kB."""

MICROJOULES: dict[EnergyUnit, int] = {"Wh": 3_600_000_000, "kWh": 3_600_000_000_000, "J": 1_000_000}

MOST_MICROJOULES = 2**63 - 1
"""The books hold 64 bits: 2.5 GWh."""

SENTINELS = frozenset({32767.0, 65535.0, 6553.5, 2147483647.0, 4294967295.0, 281474976710655.0})
"""What devices send for "not measured": the largest signed and unsigned numbers of 16 and 32 bits, of 48 bits (Zigbee
metering), and 0xFFFF with one decimal (Zigbee plugs). A true value that hits one exactly costs one reading.
"""

FINEST_DECIMALS = 6
"""Digits beyond are noise of floating point: Zigbee2MQTT sends 12.340000000000002."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{0,20})?([eE][+-]?[0-9]{1,3})?", re.ASCII)
_GONE = frozenset({"offline", "false", "0"})
_THERE = frozenset({"online", "true", "1"})
_NOTIFICATIONS = ("NotifyStatus", "NotifyFullStatus")


class Said(Struct, frozen=True, kw_only=True):
    """What one message says; absent is `None`.

    step_microjoules: the last digit of the energy as it is written. faults: a word for each field that is there and
    cannot be used (`not_json`, `missing`, `not_a_number`, `negative`, `sentinel`, `implausible`, `too_large`).
    """

    watts: float | None = None
    microjoules: int | None = None
    step_microjoules: int = 0
    faults: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether it tells neither power nor energy."""
        return self.watts is None and self.microjoules is None


class _FaultError(ValueError):
    """A field cannot be used; the word for it."""


def said(meter: MeterSettings, topic: str, payload: bytes) -> Said:
    """Read a message of this meter that came on one of its topics. Never raises, whatever the bytes are."""
    if len(payload) > LARGEST_BYTES:
        return Said(faults=("too_large",))
    try:
        content = json.loads(payload)
    except (ValueError, RecursionError):
        return Said(faults=("not_json",))
    match meter.kind:
        case "shelly":
            return _shelly(meter, topic, content)
        case "tasmota":
            return _values(content, ("ENERGY", "Power"), ("ENERGY", "Total"), "kWh")
        case "zigbee2mqtt":
            return _values(content, ("power",), ("energy",), "kWh")
        case "json":
            power, energy = path_of(meter.power_path), path_of(meter.energy_path)
            return _values(content, power, energy, meter.energy_unit)


def available(payload: bytes) -> bool | None:
    """Whether a message on an availability topic says that the device is there; `None`: it says neither."""
    text = payload[:LARGEST_BYTES].decode(errors="replace").strip()
    if text.startswith("{"):
        try:
            text = str(json.loads(text).get("state"))
        except (ValueError, RecursionError):
            return None
    word = text.lower()
    return False if word in _GONE else True if word in _THERE else None


def path_of(text: str) -> Sequence[str] | None:
    """The keys of a path; `None` of an empty one. `.` has none: it means the whole message."""
    if not text:
        return None
    if text.startswith("/"):
        return text[1:].split("/")
    return [key for key in text.split(".") if key]


def _shelly(meter: MeterSettings, topic: str, content: Any) -> Said:
    """A status of the component has its fields; a notification has those that changed, of any component."""
    if topic != meter.topic:
        component = meter.topic.rpartition("/")[2]
        if not isinstance(content, dict) or content.get("method") not in _NOTIFICATIONS:
            return Said()
        content = _at(content, ("params", component))
        if not isinstance(content, dict) or not content.keys() & {"apower", "aenergy"}:
            return Said()
    return _values(content, ("apower",), ("aenergy", "total"), "Wh")


def _values(content: Any, power: Sequence[str] | None, energy: Sequence[str] | None, unit: EnergyUnit) -> Said:
    faults: list[str] = []
    watts = _field(content, power, faults)
    amount = _field(content, energy, faults)
    if watts is None and amount is None:
        return Said(faults=tuple(faults or ["missing"]))
    if amount is None:
        return Said(watts=watts, faults=tuple(faults))
    if amount * MICROJOULES[unit] >= MOST_MICROJOULES:
        return Said(watts=watts, faults=(*faults, "implausible"))
    step = MICROJOULES[unit] // 10 ** _decimals(amount)
    microjoules = round(amount * MICROJOULES[unit])
    return Said(watts=watts, microjoules=microjoules, step_microjoules=step, faults=tuple(faults))


def _field(content: Any, path: Sequence[str] | None, faults: list[str]) -> float | None:
    value = None if path is None else _at(content, path)
    if value is None:
        return None
    try:
        return _number(value)
    except _FaultError as fault:
        faults.append(str(fault))
        return None


def _at(content: Any, path: Sequence[str]) -> Any:
    """What stands there; `None` where nothing does."""
    for key in path:
        if isinstance(content, dict) and key in content:
            content = content[key]
        elif isinstance(content, list) and key.isascii() and key.isdigit() and int(key) < len(content):
            content = content[int(key)]
        else:
            return None
    return content


def _number(value: Any) -> float:
    """A usable number, also where it is written as text."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _FaultError("not_a_number")
    try:
        number = float(value)
    except OverflowError:
        raise _FaultError("implausible") from None
    if not math.isfinite(number):
        raise _FaultError("not_a_number")
    if number < 0:
        raise _FaultError("negative")
    if number in SENTINELS:
        raise _FaultError("sentinel")
    return number


def _decimals(number: float) -> int:
    """Decimals that the number is written with, up to `FINEST_DECIMALS`."""
    return len(f"{number:.{FINEST_DECIMALS}f}".rstrip("0").rpartition(".")[2])
