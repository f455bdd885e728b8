"""Writes points and receipts into a file, one JSON object a line."""

import asyncio
import errno
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, ClassVar

from msgspec import Meta, field

from jouled.api import Delivery, SinkSettings
from jouled.model.errors import ConfigurationError, SinkError
from jouled.model.points import Kind, NumberedReceipt, Points
from jouled.outputs.sinks.jsonl_file import LinesFile
from jouled.outputs.sinks.jsonl_lines import Key, key_in, key_of, line_of

MOST: Mapping[Kind, int] = {"points": 20, "receipts": 1_000}
"""Records of one delivery: some 2 MB."""

LOOKED_BACK_BYTES = 64 * 1024 * 1024
"""Lines that are searched at most for records that come again after a crash; a second's work, where the last commit
before it was that long ago."""

_MEBIBYTE = 1024 * 1024
_NOTHING: Future[Delivery] = Future()
_NOTHING.set_result(Delivery(0))
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class JsonlSettings(SinkSettings, kw_only=True, forbid_unknown_fields=True):
    """Which file, what goes into it, and how large it may be."""

    path: Annotated[str, Meta(description="The file, in a folder that exists. Older ones are `PATH.1`, `PATH.2` …")]
    streams: Annotated[list[Kind], Meta(description="What is written.")] = field(default_factory=lambda: ["receipts"])
    max_mebibytes: Annotated[int, Meta(description="Size at which a new file is begun.")] = 64
    files_kept: Annotated[int, Meta(description="Older files that are kept beside it.")] = 5
    fsync: Annotated[
        bool, Meta(description="Wait until the disk has it: without, a power failure takes the last seconds.")
    ] = True


class JsonlSink:
    """JSON Lines in a file."""

    name: ClassVar[str] = "jsonl"
    settings_type: ClassVar[type[SinkSettings]] = JsonlSettings

    def open(self, settings: SinkSettings, node: str) -> "OpenJsonl":
        """Check the settings; the file is opened by each delivery.

        Raises:
            ConfigurationError: settings that make no sense.
        """
        if not isinstance(settings, JsonlSettings):
            raise TypeError(f"not settings of this sink: {settings!r}")
        if not Path(settings.path).is_absolute():
            raise ConfigurationError(f"path {settings.path!r} does not begin with /", mend="Write the whole path")
        if not settings.streams:
            raise ConfigurationError("streams is empty", mend='Write ["receipts"], ["points"] or both')
        if settings.max_mebibytes < 1 or settings.files_kept < 1:
            raise ConfigurationError("max_mebibytes and files_kept are at least 1", mend="Write a higher number")
        return OpenJsonl(settings, node)


class OpenJsonl:
    """Appends lines; every record is there once, whatever comes again.

    A record that comes again is found among the last lines by its number, time and id. A thread of its own writes: a
    disk that hangs holds up no other work of the daemon.
    """

    def __init__(self, settings: JsonlSettings, node: str) -> None:
        self.most: Mapping[Kind, int] = {kind: MOST[kind] for kind in settings.streams}
        self._path = Path(settings.path)
        self._node = node
        self._file = LinesFile(
            self._path,
            max_bytes=settings.max_mebibytes * _MEBIBYTE,
            files_kept=settings.files_kept,
            fsync=settings.fsync,
        )
        self._there: dict[Kind, set[Key]] = {}  # records that are in the file and may come again
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="jsonl")
        self._writing: dict[Kind, Future[Delivery]] = {}

    async def points(self, moments: Sequence[Points]) -> Delivery:
        """Write moments. Raises `SinkError` where the disk does not take them."""
        return await self._append("points", moments)

    async def receipts(self, receipts: Sequence[NumberedReceipt]) -> Delivery:
        """Write receipts. Raises `SinkError` where the disk does not take them."""
        return await self._append("receipts", receipts)

    async def close(self) -> None:
        """End the thread, after what it is writing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _append(self, kind: Kind, records: Sequence[Points] | Sequence[NumberedReceipt]) -> Delivery:
        # What a disk that hangs has not finished keeps its records in memory: one of each stream, and no more.
        if not self._writing.get(kind, _NOTHING).done():
            raise SinkError("disk", f"{self._path}: the disk has not finished what it was given before")
        writing = self._writing[kind] = self._thread.submit(self._written, kind, records)
        return await asyncio.wrap_future(writing)

    def _written(self, kind: Kind, records: Sequence[Points | NumberedReceipt]) -> Delivery:
        try:
            if kind not in self._there:
                self._there[kind] = self._look_back(kind, records[0].number)
            taken = self._write_new(records, self._there[kind])
        except OSError as error:
            self._there.pop(kind, None)  # what is in the file now is for the file to tell
            raise self._failure(error) from error
        last = records[taken - 1].number
        later = {key for key in self._there[kind] if key[1] > last}
        # Those just written come again where the runner's time was up before they were on the disk.
        self._there[kind] = later.union(map(key_of, records[:taken]))
        return Delivery(taken)

    def _write_new(self, records: Sequence[Points | NumberedReceipt], there: set[Key]) -> int:
        """Write those that are not there; returns how many records are dealt with, from the first on."""
        places = [place for place, record in enumerate(records) if key_of(record) not in there]
        if not places:
            return len(records)
        written = self._file.append([line_of(records[place], self._node) for place in places])
        return places[written] if written < len(places) else len(records)

    def _look_back(self, kind: Kind, first: int) -> set[Key]:
        """Keys of the lines whose numbers are not below the first record's: numbers grow along the file."""
        found: set[Key] = set()
        looked = 0
        for line in self._file.backwards():
            looked += len(line)
            key = key_in(line)
            if looked > LOOKED_BACK_BYTES or (key is not None and key[0] == kind and key[1] < first):
                break
            if key is not None and key[0] == kind:
                found.add(key)
        return found

    def _failure(self, error: OSError) -> SinkError:
        message = f"{self._path} cannot be written: {error.strerror or error}"
        if error.errno in _DENIED:
            return SinkError("denied", message, mend=f"Let the daemon's user write in {self._path.parent}")
        mend = "Make room on its disk" if error.errno in _FULL else f"Check {self._path.parent} and its disk"
        return SinkError("disk", message, mend=mend)
