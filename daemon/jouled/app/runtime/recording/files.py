"""Lines out of a recording and into one: plain, gzip or Zstandard, of bounded length, whatever is in the file."""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from msgspec import Struct

from jouled.model.errors import JouledError

LONGEST_LINE = 1 << 20
"""Bytes; the longest line that the daemon writes is an engine with some hundred devices, a few kilobytes."""

_CHUNK = 1 << 16
_COMPRESSED_CHUNK = 1 << 11  # both formats can expand it some 1000-fold (Zstandard more): bounds what one step yields
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_WINDOW = 31  # zlib's number for a gzip header around the largest window


class RecordingError(JouledError):
    """The file as a whole cannot be read or written."""


class Damage(Struct, frozen=True):
    """A place that cannot be read: a short reason for the count, a sentence for the reader."""

    reason: str
    message: str


class _DamagedError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.damage = Damage(reason, message)


def lines(path: Path) -> Iterator[tuple[int, bytes | Damage]]:
    """Number (from 1) and bytes of every line. What breaks off or is too long comes as `Damage` in its place.

    Raises `RecordingError` if there is no such file, or its compression cannot be undone here.
    """
    try:
        with path.open("rb") as file:
            yield from _split(_plain(file, path))
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror or error}") from None


def _split(chunks: Iterable[bytes]) -> Iterator[tuple[int, bytes | Damage]]:
    too_long = Damage("too_long", f"longer than {LONGEST_LINE} bytes")
    number, rest, skipping = 0, b"", False
    try:
        for chunk in chunks:
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                number += 1
                yield number, (too_long if skipping or len(line) > LONGEST_LINE else line)
                skipping = False
            if len(rest) > LONGEST_LINE:
                skipping, rest = True, b""
    except _DamagedError as error:
        yield number + 1, error.damage
        return
    if skipping or rest:
        yield number + 1, (too_long if skipping else rest)


def _plain(file: IO[bytes], path: Path) -> Iterator[bytes]:
    first = file.read(len(_ZSTD_MAGIC))
    file.seek(0)
    if first.startswith(_GZIP_MAGIC):
        return _decompressed(file, lambda: zlib.decompressobj(_GZIP_WINDOW), zlib.error)
    if first == _ZSTD_MAGIC:
        zstandard = _zstandard(path)
        return _decompressed(file, lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError)
    if first and path.suffix in {".gz", ".zst"}:
        raise RecordingError(f"{path} is not compressed as its name says")
    return iter(lambda: file.read(_CHUNK), b"")


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


def _decompressed(file: IO[bytes], start: Callable[[], _Decompressor], broken: type[Exception]) -> Iterator[bytes]:
    stream = start()
    while data := file.read(_COMPRESSED_CHUNK):
        while data:
            if stream.eof:  # several compressed files in a row are one
                stream = start()
            try:
                yield stream.decompress(data)
            except broken as error:
                raise _DamagedError("corrupt", f"the compressed data is damaged: {error}") from None
            data = stream.unused_data if stream.eof else b""
    if not stream.eof:
        raise _DamagedError("truncated", "the compressed data breaks off")


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise RecordingError(
            f"{path} is a Zstandard file, which this installation cannot handle",
            mend="Install the extra: pip install 'jouled[zstd]'",
        ) from None
    return zstandard


class LineFile:
    """A new file that takes whole lines; the end of its name says whether and how it is compressed.

    What was flushed can be read even if the writer is killed. Raises `RecordingError` if the file exists already, so
    that no recording is ever overwritten.
    """

    def __init__(self, path: Path) -> None:
        self._compressor: Any = None
        self._flush_mode = 0
        if path.suffix == ".gz":
            self._compressor, self._flush_mode = zlib.compressobj(wbits=_GZIP_WINDOW), zlib.Z_SYNC_FLUSH
        elif path.suffix == ".zst":
            zstandard = _zstandard(path)
            self._compressor = zstandard.ZstdCompressor().compressobj()
            self._flush_mode = zstandard.COMPRESSOBJ_FLUSH_BLOCK
        try:
            self._file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        except FileExistsError:
            raise RecordingError(f"{path} exists already", mend="Give a new name, or remove it first") from None
        except OSError as error:
            raise RecordingError(f"{path} cannot be written: {error.strerror or error}") from None

    def write(self, lines: bytes) -> None:
        """Add whole lines, their ends included."""
        self._file.write(self._compressor.compress(lines) if self._compressor else lines)

    def flush(self) -> None:
        """Hand everything so far to the system."""
        if self._compressor:
            self._file.write(self._compressor.flush(self._flush_mode))
        self._file.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._file.closed:
            return
        if self._compressor:
            self._file.write(self._compressor.flush())
        self._file.close()
