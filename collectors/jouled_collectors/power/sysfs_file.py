"""Files of one value under /sys: behind a descriptor that is kept, or read once."""

import errno
import os
from pathlib import Path

_STALE = frozenset({errno.ENODEV, errno.EIO, errno.ESTALE})
_LONGEST = 64
"""Bytes of the longest value: 20 digits of 64 bits, a unit and a time stamp."""


class StaleFileError(OSError):
    """The driver behind a kept descriptor went away, as when its module is loaded again; it is closed now."""


class SysfsFile:
    """One file behind a kept descriptor: a pread costs a tenth of opening the file again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def read(self) -> bytes:
        """The content now. Raises `OSError`, and `StaleFileError` where a kept descriptor has lost its driver."""
        if self._descriptor is None:
            self._descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._descriptor, _LONGEST, 0)
        try:
            return os.pread(self._descriptor, _LONGEST, 0)
        except OSError as error:
            self.close()
            if error.errno in _STALE:
                raise StaleFileError(error.errno, error.strerror, str(self.path)) from error
            raise

    def close(self) -> None:
        """Let go of the descriptor; the next read opens the path again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def exists(path: Path) -> bool:
    """Whether it is there and may be reached; unlike `Path.exists` it takes a closed folder on the way for a no."""
    return os.access(path, os.F_OK)


def text(path: Path) -> str:
    """The content without the space around it; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def positive_number(path: Path) -> int | None:
    """A positive whole number, or `None`: firmware writes 0 for what it does not tell."""
    return whole_number(text(path)) or None


def whole_number(word: str) -> int | None:
    """The number that a word of digits is; `None` for anything else."""
    return int(word) if word.isascii() and word.isdigit() and len(word) < _LONGEST else None
