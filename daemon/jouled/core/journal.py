"""What the core took between two commits, in order: replayed on the state before, it gives the state after.

The core is deterministic, so a state and the inputs since are as good as the state now, and far smaller to write.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec
from msgspec.structs import astuple

from jouled.core.pipeline import Input, Pipeline
from jouled.model.device import Device, Quality
from jouled.model.engine import Engine, EngineSample
from jouled.model.readings import ClockStep, DeviceStatus, EnergyReading, PowerReading, SourceReport
from jouled.model.requests import RequestEvent, RequestStart

Reading = EnergyReading | PowerReading | DeviceStatus

_ITEMS: tuple[type, ...] = (
    Device,
    Engine,
    EnergyReading,
    PowerReading,
    DeviceStatus,
    EngineSample,
    RequestEvent,
    RequestStart,
    SourceReport,
    ClockStep,
)
_NUMBERS = {item: number for number, item in enumerate(_ITEMS)}
_COUNTERS = "c"
MOST_ENTRIES = 300_000
"""Inputs that no commit has yet; beyond them (a disk that hangs for minutes) the core has to be saved as a whole."""

_encode = msgspec.msgpack.Encoder().encode


class Journal:
    """Inputs and the moments of `advance` since the last time it was emptied; `is_whole`: none were dropped."""

    def __init__(self) -> None:
        self._entries: list[Any] = []
        self._readings = 0
        self.is_whole = True

    def __len__(self) -> int:
        return len(self._entries) + self._readings

    def fed(self, item: Input, reason: str) -> None:
        """The core was fed an item, and refused it for a reason or took it."""
        self._entries.append((_NUMBERS[type(item)], item, reason))

    def fed_readings(self, readings: Sequence[Reading]) -> None:
        """The core was fed many readings."""
        self._entries.append(readings)
        self._readings += len(readings)

    def advanced(self, now_ns: int) -> None:
        """Time has passed."""
        self._entries.append(now_ns)
        if len(self) > MOST_ENTRIES:
            self.clear()
            self.is_whole = False

    def clear(self) -> None:
        """Forget everything: the state that follows holds it."""
        self._entries = []
        self._readings = 0
        self.is_whole = True

    def take(self) -> bytes:
        """Everything since the last time, encoded; the journal is empty then."""
        entries: list[Any] = []
        for entry in self._entries:
            if isinstance(entry, int | tuple):
                entries.append(entry)
            else:
                entries += _packed(entry)
        self.clear()
        return _encode(entries)


def _packed(readings: Sequence[Reading]) -> list[Any]:
    """Counter readings without the names of their fields: there may be thousands a second."""
    packed: list[Any] = []
    for kind, run in groupby(readings, type):
        if kind is EnergyReading:
            packed.append((_COUNTERS, [astuple(reading) for reading in run]))
        else:
            packed += [(_NUMBERS[kind], reading, "") for reading in run]
    return packed


def replay(data: bytes, pipeline: Pipeline) -> None:
    """Do again what a journal holds; receipts that become final are those that were committed with it.

    Raises `msgspec.MsgspecError` for damaged bytes, and whatever the core raises.
    """
    for entry in msgspec.msgpack.decode(data):
        if isinstance(entry, int):
            pipeline.advance(entry)
        elif entry[0] == _COUNTERS:
            pipeline.feed_readings(
                EnergyReading(device, t_ns, microjoules, Quality(quality))
                for device, t_ns, microjoules, quality in entry[1]
            )
        else:
            number, item, reason = entry
            pipeline.feed_again(msgspec.convert(item, type=_ITEMS[number]), reason)
