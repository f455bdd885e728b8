"""Registers of Modbus meters: where they are, and what their words mean. Pure but for reading a file of profiles."""

import math
import struct
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

WordOrder = Literal["big", "little"]
RegisterType = Literal["uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"]

PROFILES_FILE = Path(__file__).with_name("modbus_profiles.toml")

_FORMATS: dict[RegisterType, str] = {
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "uint64": "Q",
    "int64": "q",
    "float32": "f",
    "float64": "d",
}
_WATTS = {"W": 1.0, "kW": 1000.0}
_MICROJOULES = {"Wh": 3_600_000_000, "kWh": 3_600_000_000_000, "J": 1_000_000}
_MOST_MICROJOULES = 2**63 - 1
_WRAPPING: tuple[RegisterType, ...] = ("uint16", "uint32")
"""Counters of 64 bits do not get so far, and signed ones are of meters that stop or start over at a decimal figure."""


class FaultError(ValueError):
    """A register holds no value; the word for it (`sentinel`, `not_a_number`, `negative`, `implausible`)."""


class PowerRegister(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A power gauge; fields as in modbus_profiles.toml."""

    address: Annotated[int, Meta(ge=0, le=65535)]
    type: RegisterType
    unit: Literal["W", "kW"]
    scale: float = 1.0
    input: bool = False

    def watts(self, words: Sequence[int], order: WordOrder) -> float:
        """The power. Raises `FaultError`."""
        return number(self.type, words, order) * self.scale * _WATTS[self.unit]


class EnergyRegister(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An energy counter; fields as in modbus_profiles.toml."""

    address: Annotated[int, Meta(ge=0, le=65535)]
    type: RegisterType
    unit: Literal["Wh", "kWh", "J"]
    scale: Annotated[float, Meta(gt=0)] = 1.0
    input: bool = False
    wraps_at: Annotated[int, Meta(gt=0)] | None = None

    @property
    def microjoules_per_count(self) -> int:
        """What a count is worth."""
        return round(self.scale * _MICROJOULES[self.unit])

    @property
    def wrap_microjoules(self) -> int | None:
        """The counter's range; `None`: not known, or beyond what the books hold (2^32 Wh are): it is never reached."""
        counts = self.wraps_at or (1 << 16 * size(self.type) if self.type in _WRAPPING else None)
        found = None if counts is None else counts * self.microjoules_per_count
        return None if found is None or found > _MOST_MICROJOULES else found

    def microjoules(self, words: Sequence[int], order: WordOrder) -> int:
        """The counter. Raises `FaultError`."""
        amount = number(self.type, words, order) * self.microjoules_per_count
        if amount > _MOST_MICROJOULES:
            raise FaultError("implausible")
        return round(amount)


class Profile(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a kind of meter has its registers."""

    power: PowerRegister | None = None
    energy: EnergyRegister | None = None
    first_address: Literal[0, 1] = 0
    word_order: WordOrder = "big"


def size(kind: RegisterType) -> int:
    """Registers of 16 bits that a number takes."""
    return struct.calcsize(f">{_FORMATS[kind]}") // 2


def number(kind: RegisterType, words: Sequence[int], order: WordOrder) -> float:
    """The number in these registers; an integer stays one.

    Raises `FaultError` for what is no value: negative (export), NaN, and what meters send for "not available": the
    largest unsigned number, the largest and the smallest signed one.
    """
    ordered = words if order == "big" else words[::-1]
    raw = struct.pack(f">{len(words)}H", *ordered)
    value: float = struct.unpack(f">{_FORMATS[kind]}", raw)[0]
    if not math.isfinite(value):
        raise FaultError("not_a_number")
    if not kind.startswith("float") and raw in _sentinels(kind):
        raise FaultError("sentinel")
    if value < 0:
        raise FaultError("negative")
    return value


def _sentinels(kind: RegisterType) -> tuple[bytes, ...]:
    rest = 2 * size(kind) - 1
    if kind.startswith("uint"):
        return (b"\xff" * (rest + 1),)
    return (b"\x7f" + b"\xff" * rest, b"\x80" + b"\x00" * rest)


def read_profiles(path: Path) -> Mapping[str, Profile]:
    """Profiles by name.

    Raises `OSError`, or `ValueError` with the reason where the file is no TOML (in UTF-8) or has another form.
    """
    return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), dict[str, Profile])
