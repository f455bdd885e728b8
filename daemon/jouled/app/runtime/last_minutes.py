"""The last ten minutes of what the core was fed, kept in memory and written as a recording when an engine fails.

Each second is one gzip member of recording lines, so a file is the members one after the other. Ten minutes at 10 Hz of
12 devices take 1.3 MiB, and 0.06 % of a core to keep.
"""

import asyncio
import logging
import os
import time
import zlib
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from jouled.app.runtime.recording import Item, LineEncoder
from jouled.model.device import Device
from jouled.model.engine import Engine
from jouled.model.readings import ClockStep
from jouled.model.snapshot import Snapshot

MOST_SECONDS = 600
MOST_BYTES = 16 * 1024 * 1024
"""Compressed; a flood of requests shortens the time that is kept, never the memory of the daemon."""

_GZIP_WINDOW = 31  # zlib's number for a gzip header around the largest window
_FASTEST = 1

_log = logging.getLogger(__name__)


class _Second(Struct, frozen=True, gc=False):
    begun_ns: int
    wall_minus_core_ns: int
    lines: bytes


class LastMinutes:
    """A bounded ring of seconds. `boot_offset_ns`: core time minus boot time."""

    def __init__(self, *, node: str, started_ns: int, boot_offset_ns: int) -> None:
        self._encoder = LineEncoder(boot_offset_ns)
        self._node = node
        self._begun_ns = started_ns
        self._items: list[Item] = []
        self._seconds: deque[_Second] = deque()
        self._bytes = 0
        self._devices: dict[str, Device] = {}
        self._engines: dict[str, Engine] = {}

    def take(self, item: Item) -> None:
        """See what the core is fed with."""
        self._items.append(item)

    def turn(self, now_ns: int) -> None:
        """Close a second; the oldest goes when there are too many."""
        wall_minus_core_ns = self._encoder.wall_minus_core_ns
        self._remember_descriptions()
        text = b"".join(self._encoder.line(item) for item in self._items)
        self._items.clear()
        if text:
            packed = zlib.compress(text, _FASTEST, _GZIP_WINDOW)
            self._seconds.append(_Second(self._begun_ns, wall_minus_core_ns, packed))
            self._bytes += len(packed)
        self._begun_ns = now_ns
        while len(self._seconds) > MOST_SECONDS or self._bytes > MOST_BYTES:
            self._bytes -= len(self._seconds.popleft().lines)

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
            *(second.lines for second in self._seconds),
        ]

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
