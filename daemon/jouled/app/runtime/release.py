"""Asks the running daemon, over its Unix socket, to let go of the GPUs."""

import http.client
import socket
import sys
from pathlib import Path

import msgspec
from msgspec import Struct

from jouled.model.errors import JouledError

_TIMEOUT_SECONDS = 15.0


class _Released(Struct):
    released: list[str]
    seconds: float


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


def release(path: Path, seconds: float) -> int:
    """Make the daemon behind this socket release its devices for so many seconds, and say which; the exit code.

    Raises `JouledError` if no daemon answers there.
    """
    connection = _UnixConnection(path)
    try:
        connection.request("POST", "/api/v1/release", msgspec.json.encode({"seconds": seconds}))
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise JouledError(
            f"no daemon answers on {path}: {reason}",
            mend="Start it with `jouled run`, name its directory by --state DIR, or run this as its user",
        ) from error
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise JouledError(f"the daemon answered {answer.status}: {body.decode(errors='replace').strip()}")
    told = msgspec.json.decode(body, type=_Released)
    if not told.released:
        sys.stdout.write("nothing to release: no source holds a device open\n")
        return 0
    sys.stdout.write(f"released for {told.seconds:g} s: {', '.join(told.released)}\n")
    return 0
