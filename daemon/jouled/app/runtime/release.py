"""Asks the running daemon to let go of the GPUs."""

import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from jouled.app.runtime.ask import ask


class _Released(Struct):
    released: list[str]
    seconds: float


def release(path: Path, seconds: float) -> int:
    """Make the daemon behind this socket release its devices for so many seconds, and say which; the exit code.

    Raises `JouledError` if no daemon answers there.
    """
    told = msgspec.json.decode(ask(path, "/api/v1/release", {"seconds": seconds}), type=_Released)
    if not told.released:
        sys.stdout.write("nothing to release: no source holds a device open\n")
        return 0
    sys.stdout.write(f"released for {told.seconds:g} s: {', '.join(told.released)}\n")
    return 0
