"""Whole lines of files that others append to, each line once.

A file is known by its inode and by a hash of its first bytes: renaming it changes neither, while a new file under a
used inode, or one that was emptied and written anew, has other bytes. The device's number is left out, for it may
change with a reboot.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path

from msgspec import Struct

from jouled.app.runtime.requests.follow_positions import Position, Positions, load, save

READ_BYTES = 1024 * 1024
"""What one read brings into memory, unless a single line is longer."""

LONGEST_LINE_BYTES = 8 * 1024 * 1024
"""A longer line is skipped. A prompt of a million tokens takes about as much, as text and as numbers."""

_HEAD_BYTES = 256
_LIVE_FILES = 8
"""Files that are looked at in every poll: the newest ones. Older ones only where something of them is unread."""
_SETTLED_NS = 2_000_000_000
"""A folder that changed within this time may change again without a new time stamp."""

_log = logging.getLogger(__name__)


class Piece(Struct, frozen=True):
    """Whole lines of one file in their order, without their ends, and how many were too long.

    written_ns: Unix time of the last writing to the file that was seen; all lines were there then.
    """

    lines: Sequence[bytes]
    too_long: int = 0
    written_ns: int = 0


class FollowedFiles:
    """The files of one folder that match a pattern, from the oldest to the newest; used by one thread at a time.

    Without a state file it begins at the end of what is there: that was written when nobody metered. A file that comes
    later, or came between two runs, is read from its beginning.

    lost_files: how many were removed while something in them was unread.
    """

    def __init__(self, directory: Path, pattern: str, state_file: Path) -> None:
        self.lost_files = 0
        self._directory = directory
        self._pattern = pattern
        self._state_file = state_file
        kept = load(state_file, str(directory))
        self._is_first_start = kept is None
        self._positions = kept or {}
        self._scanned_ns = -1
        self._live: list[str] = []
        self._dry: dict[int, tuple[int, int]] = {}  # size and time of change of what is read to its end, by inode

    def read(self) -> Piece | None:
        """The next whole lines; `None` where there are none. Raises OSError where folder or file cannot be read."""
        self._scan_if_changed()
        trouble: OSError | None = None
        for name in self._live:
            try:
                piece = self._read_file(name)
            except OSError as error:
                trouble = error
            else:
                if piece is not None:
                    return piece
        if trouble is not None:
            raise trouble
        return None

    def save(self) -> None:
        """Keep how far reading is. Raises OSError."""
        save(self._state_file, Positions(directory=str(self._directory), by_inode=self._positions))

    def _scan_if_changed(self) -> None:
        try:
            changed_ns = self._directory.stat().st_mtime_ns
        except FileNotFoundError:
            self._begin({})  # what will come was not there at the start
            raise
        if changed_ns != self._scanned_ns:
            is_settled = time.time_ns() - changed_ns > _SETTLED_NS
            self._scan()
            self._scanned_ns = changed_ns if is_settled else -1

    def _scan(self) -> None:
        found = sorted(self._entries(), key=lambda entry: (entry[1].st_mtime_ns, entry[0]))
        if self._is_first_start:
            self._begin({status.st_ino: self._at_the_end(name, status.st_size) for name, status in found})
        self._forget_removed({status.st_ino for _, status in found})
        newest = {name for name, _ in found[-_LIVE_FILES:]}
        self._live = [name for name, status in found if name in newest or self._has_unread(status)]

    def _begin(self, positions: dict[int, Position]) -> None:
        if self._is_first_start:
            self._positions = positions
            self._is_first_start = False
            with contextlib.suppress(OSError):  # on a full disk: what comes is read all the same, and saved with it
                self.save()

    def _entries(self) -> Iterator[tuple[str, os.stat_result]]:
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if fnmatchcase(entry.name, self._pattern) and entry.is_file(follow_symlinks=False):
                    with contextlib.suppress(FileNotFoundError):  # removed in between
                        yield entry.name, entry.stat(follow_symlinks=False)

    def _at_the_end(self, name: str, size: int) -> Position:
        position = Position(offset=size, size=size)
        with contextlib.suppress(OSError), self._opened(name) as descriptor:
            position.skipping = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            _take_head(descriptor, position)
        return position

    def _forget_removed(self, present: set[int]) -> None:
        for inode in self._positions.keys() - present:
            gone = self._positions.pop(inode)
            self._dry.pop(inode, None)
            self.lost_files += gone.size > gone.offset

    def _has_unread(self, status: os.stat_result) -> bool:
        position = self._positions.get(status.st_ino)
        return position is None or position.offset != status.st_size

    def _read_file(self, name: str) -> Piece | None:
        try:
            status = os.lstat(self._directory / name)
            if self._dry.get(status.st_ino) == (status.st_size, status.st_mtime_ns):
                return None
            with self._opened(name) as descriptor:
                return self._read_lines(descriptor, name)
        except FileNotFoundError:
            self._scanned_ns = -1
            return None

    def _read_lines(self, descriptor: int, name: str) -> Piece | None:
        status = os.fstat(descriptor)
        position = self._positions.setdefault(status.st_ino, Position())
        if status.st_size < position.offset or not _has_head(descriptor, position):
            _log.info("%s was written anew: it is read from its beginning", self._directory / name)
            position = self._positions[status.st_ino] = Position()
        position.size = status.st_size
        piece = _next_lines(descriptor, position)
        if piece is None:
            self._dry[status.st_ino] = (status.st_size, status.st_mtime_ns)
        else:
            _take_head(descriptor, position)
        return piece

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int]:
        # Whoever writes there may put a link or a pipe under the name of a file that was seen.
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _next_lines(descriptor: int, position: Position) -> Piece | None:
    data, end = b"", 0
    for size in (READ_BYTES, LONGEST_LINE_BYTES):
        data = os.pread(descriptor, size, position.offset)
        end = data.rfind(b"\n")
        if end >= 0 or len(data) < size:
            break
    if end < 0:
        return _skip(position, len(data)) if len(data) >= LONGEST_LINE_BYTES else None
    lines = data[:end].split(b"\n")
    position.offset += end + 1
    if position.skipping:
        position.skipping = False
        lines = lines[1:]
    # Asked after reading: what was appended in between is not taken for older than it is.
    return Piece(lines, written_ns=os.fstat(descriptor).st_mtime_ns)


def _skip(position: Position, size: int) -> Piece:
    """A line that is too long is counted once and left out up to its end."""
    is_new = not position.skipping
    position.offset += size
    position.skipping = True
    return Piece((), too_long=int(is_new))


def _take_head(descriptor: int, position: Position) -> None:
    if position.head_bytes < _HEAD_BYTES:
        position.head_bytes = min(position.offset, _HEAD_BYTES)
        position.head = _head(descriptor, position.head_bytes)


def _has_head(descriptor: int, position: Position) -> bool:
    return position.head_bytes == 0 or _head(descriptor, position.head_bytes) == position.head


def _head(descriptor: int, size: int) -> str:
    return blake2b(os.pread(descriptor, size, 0), digest_size=8).hexdigest()
