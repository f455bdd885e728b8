"""One sensor of the host under /sys: which files it is, and what their content says."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from jouled.api import Reading
from jouled.model.device import Device, DeviceKind
from jouled.model.errors import SourceError, SourceState
from jouled.model.readings import EnergyReading, PowerReading

MICROWATTS_PER_WATT = 1_000_000
SENTINELS = frozenset(
    {
        0xFFFF,
        0xFFFF * 1_000,
        0xFFFF * 1_000_000,
        0xFFFF_FFFF,
        0xFFFF_FFFF * 1_000,
        0x7FFF_FFFF_FFFF_FFFF,
        0xFFFF_FFFF_FFFF_FFFF,
    }
)
"""All bits set means "not known", and drivers scale it like a value: ACPI tells 0xFFFFFFFF mW for a power that it
cannot measure, and acpi_power_meter makes 4294967295000 µW of it (ACPI 6.5, _PMM; sustainable-computing-io/kepler#897).
"""

MOST_MICRO = 2**63 - 1
"""Microjoules that the books hold: 300 years at 1 kW."""

_NEVER_ZERO = frozenset({DeviceKind.NODE, DeviceKind.CPU_PACKAGE, DeviceKind.MODULE})
"""What reads the gauge runs on these: 0 W is no power of theirs."""


@dataclass(frozen=True, slots=True)
class Sensor:
    """A device and the files that meter it.

    counts_energy: a counter, else a gauge. unit_micro: how many microjoules or microwatts one unit of the files is;
    of several files (millivolts and milliamperes) the product counts. window_ns: what a gauge averages over.
    """

    device: Device
    files: tuple[Path, ...]
    counts_energy: bool
    unit_micro: int = 1
    window_ns: int = 0

    def reading(self, contents: Sequence[bytes], t_ns: int) -> Reading:
        """What the files' contents, read at `t_ns`, say. Raises `SourceError` where they make no plausible value."""
        values = [_number(path, content) for path, content in zip(self.files, contents, strict=True)]
        micro = prod(values) * self.unit_micro
        refusal = self._refusal(values, micro)
        if refusal:
            told = " and ".join(f"{path} holds {value}" for path, value in zip(self.files, values, strict=True))
            raise SourceError(SourceState.DOWN, refusal[0], f"{told}: {refusal[1]}")
        if self.counts_energy:
            return EnergyReading(self.device.name, t_ns, micro)
        return PowerReading(self.device.name, t_ns - self.window_ns // 2, micro / MICROWATTS_PER_WATT)

    def _refusal(self, values: Sequence[int], micro: int) -> tuple[str, str] | None:
        """Reason and words, if this is no value."""
        wrap = self.device.wrap_microjoules
        if micro < 0:
            return "negative", "less than nothing"
        if self.counts_energy and wrap is not None:
            return None if micro <= wrap else ("beyond_range", f"its range is {wrap} µJ")
        if not SENTINELS.isdisjoint(values):
            return "sentinel", 'that says "not known"'
        if micro > MOST_MICRO:
            return "beyond_range", "more than any sensor has seen"
        if not self.counts_energy and micro == 0 and self.device.kind in _NEVER_ZERO:
            return "zero", "what runs here draws power"
        return None


def _number(path: Path, content: bytes) -> int:
    """The first word: a unit and a time stamp may follow."""
    word = next(iter(content.split()), b"")
    if not word.removeprefix(b"-").isdigit():
        raise SourceError(SourceState.DOWN, "garbage", f"{path} holds no number but {content!r}")
    return int(word)
