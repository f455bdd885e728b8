"""The last ten minutes of what the core was fed, kept in memory and written as a recording when an engine fails.

Readings are kept packed and become recording lines only when a file is written: there may be thousands a second, and
the file is hardly ever wanted. A file is gzip members, one after the other; within a second readings come last.
"""

import asyncio
import logging
import os
import time
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from jouled.app.runtime.recording.recording import Item, LineEncoder
from jouled.model.device import Device
from jouled.model.engine import Engine
from jouled.model.readings import ClockStep, EnergyReading, PowerReading
from jouled.model.snapshot import Snapshot

MOST_SECONDS = 600
MOST_BYTES = 16 * 1024 * 1024
"""Compressed; a flood of requests shortens the time that is kept, never the memory of the daemon."""

_GZIP_WINDOW = 31  # zlib's number for a gzip header around the largest window
_FASTEST = 1

_Reading = EnergyReading | PowerReading
_PACKER = msgspec.msgpack.Encoder()
_UNPACKER = msgspec.msgpack.Decoder(list[_Reading])

_log = logging.getLogger(__name__)


class _Second(Struct, frozen=True, gc=False):
    begun_ns: int
    wall_minus_core_ns: int
    lines: bytes
    readings: bytes

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return len(self.lines) + len(self.readings)


class LastMinutes:
    """A bounded ring of seconds. `boot_offset_ns`: core time minus boot time."""

    def __init__(self, *, node: str, started_ns: int, boot_offset_ns: int) -> None:
        self._encoder = LineEncoder(boot_offset_ns)
        self._node = node
        self._begun_ns = started_ns
        self._items: list[Item] = []
        self._readings: list[_Reading] = []
        self._seconds: deque[_Second] = deque()
        self._bytes = 0
        self._devices: dict[str, Device] = {}
        self._engines: dict[str, Engine] = {}

    def take(self, item: Item) -> None:
        """See what the core is fed with."""
        if isinstance(item, EnergyReading | PowerReading):
            self._readings.append(item)
        else:
            self._items.append(item)

    def take_all(self, items: Sequence[Item]) -> None:
        """See many items at once."""
        for item in items:
            self.take(item)

    def turn(self, now_ns: int) -> None:
        """Close a second; the oldest goes when there are too many."""
        wall_minus_core_ns = self._encoder.wall_minus_core_ns
        self._remember_descriptions()
        text = b"".join(self._encoder.line(item) for item in self._items)
        if text or self._readings:
            packed = zlib.compress(text, _FASTEST, _GZIP_WINDOW) if text else b""
            readings = zlib.compress(_PACKER.encode(self._readings), _FASTEST)
            self._seconds.append(_Second(self._begun_ns, wall_minus_core_ns, packed, readings))
            self._bytes += self._seconds[-1].size
        self._items.clear()
        self._readings.clear()
        self._begun_ns = now_ns
        while len(self._seconds) > MOST_SECONDS or self._bytes > MOST_BYTES:
            self._bytes -= self._seconds.popleft().size

    def members(self, now_ns: int) -> list[bytes]:
        """The parts of a recording up to now: what the devices and engines are, and every second."""
        self.turn(now_ns)
        if not self._seconds:
            return []
        first = self._seconds[0]
        encoder = LineEncoder(self._encoder.boot_offset_ns)
        head = [encoder.header(self._node, first.begun_ns + first.wall_minus_core_ns)]
        told: list[Item] = [ClockStep(first.begun_ns, first.wall_minus_core_ns)]
        told += [*self._devices.values(), *self._engines.values()]
        head += [encoder.line(item) for item in told]
        return [
            zlib.compress(b"".join(head), _FASTEST, _GZIP_WINDOW),
            *(member for second in self._seconds for member in self._members_of(second) if member),
        ]

    def _members_of(self, second: _Second) -> tuple[bytes, bytes]:
        encoder = LineEncoder(self._encoder.boot_offset_ns)
        encoder.line(ClockStep(second.begun_ns, second.wall_minus_core_ns))
        text = b"".join(encoder.line(reading) for reading in _UNPACKER.decode(zlib.decompress(second.readings)))
        return second.lines, zlib.compress(text, _FASTEST, _GZIP_WINDOW) if text else b""

    def _remember_descriptions(self) -> None:
        for item in self._items:
            if isinstance(item, Device):
                self._devices[item.name] = item
            elif isinstance(item, Engine):
                self._engines[item.name] = item


class QuarantineRecorder:
    """Writes the last minutes to the state directory, once, when the core has set an engine aside."""

    def __init__(self, last_minutes: LastMinutes, directory: Path) -> None:
        self._last_minutes = last_minutes
        self._directory = directory
        self._said = ""

    async def look(self, snapshot: Snapshot) -> Snapshot:
        """The snapshot, with where the recording is if it is degraded."""
        if not snapshot.degraded:
            return snapshot
        if not self._said:
            members = self._last_minutes.members(snapshot.t_ns)
            self._said = await asyncio.to_thread(_save, self._directory, members)
            _log.error("%s; %s", "; ".join(snapshot.degraded), self._said)
        return replace(snapshot, degraded=(*snapshot.degraded, self._said))


def _save(directory: Path, members: Sequence[bytes]) -> str:
    path = directory / f"quarantine-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.jsonl.gz"
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.writelines(members)
    except OSError as error:
        return f"the recording of the last minutes could not be written to {path}: {error.strerror}"
    return f"the last minutes are recorded in {path}"
