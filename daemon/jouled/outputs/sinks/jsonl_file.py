"""A file of lines that only grows by whole lines, and is put aside when it is large."""

import os
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from io import FileIO
from itertools import pairwise
from pathlib import Path

_MODE = 0o640
_BLOCK_BYTES = 1024 * 1024


class LinesFile:
    """The file at `path`, and `files_kept` older ones: `path.1` is the youngest of them.

    Nothing stays open between two calls, so that the file may be moved or removed by others. Blocks; not for two
    threads at once.
    """

    def __init__(self, path: Path, *, max_bytes: int, files_kept: int, fsync: bool) -> None:
        self._paths = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, files_kept + 1))]
        self._max_bytes = max_bytes
        self._fsync = fsync

    def append(self, lines: Sequence[bytes]) -> int:
        """Append the first lines, as many as one file has room for; returns how many, at least one.

        A line that is longer than a whole file has one of its own.

        Raises:
            OSError: none of them is in the file.
        """
        with closing(self._opened()) as file:
            size = _whole(file.fileno())
            if size < os.fstat(file.fileno()).st_size:
                file.truncate(size)
        if size and size + len(lines[0]) > self._max_bytes:
            self._put_aside()
            size = 0
        number, wanted = 1, size + len(lines[0])
        while number < len(lines) and wanted + len(lines[number]) <= self._max_bytes:
            wanted += len(lines[number])
            number += 1
        with closing(self._opened()) as file:
            self._write(file, b"".join(lines[:number]), size)
        return number

    def backwards(self) -> Iterator[bytes]:
        """All lines without their ends, the last one first, on through the older files. Raises `OSError`."""
        for path in self._paths:
            with suppress(FileNotFoundError), path.open("rb") as file:
                yield from _backwards(file.fileno())

    def _opened(self) -> FileIO:
        is_new = not self._paths[0].exists()
        file = FileIO(self._paths[0], "a+", opener=_open)
        if is_new:
            os.fchmod(file.fileno(), _MODE)
            self._sync_folder()
        return file

    def _write(self, file: FileIO, data: bytes, size: int) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
            if self._fsync:
                os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):  # then the next append cuts off what is torn, and a reader finds what is whole
                file.truncate(size)
            raise

    def _put_aside(self) -> None:
        for older, newer in pairwise(reversed(self._paths)):
            with suppress(FileNotFoundError):  # a crash between two of these leaves a gap
                newer.replace(older)
        self._sync_folder()

    def _sync_folder(self) -> None:
        if self._fsync:
            folder = os.open(self._paths[0].parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _open(path: str, flags: int) -> int:
    return os.open(path, flags, _MODE)


def _whole(descriptor: int) -> int:
    """Bytes up to the end of the last line; behind it lies what a crash left of another one."""
    end = os.fstat(descriptor).st_size
    while end:
        begin = max(end - _BLOCK_BYTES, 0)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _backwards(descriptor: int) -> Iterator[bytes]:
    begin, rest = _whole(descriptor), b""
    while begin:
        end, begin = begin, max(begin - _BLOCK_BYTES, 0)
        rest, *lines = (os.pread(descriptor, end - begin, begin) + rest).split(b"\n")
        yield from filter(None, reversed(lines))
    if rest:
        yield rest
