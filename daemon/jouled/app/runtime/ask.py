"""Asks the running daemon over its Unix socket."""

import http.client
import socket
from pathlib import Path
from typing import Any

import msgspec

from jouled.model.errors import JouledError

_TIMEOUT_SECONDS = 15.0


class NoDaemonError(JouledError):
    """Nobody answers on the socket."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=_TIMEOUT_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_SECONDS)
        self.sock.connect(str(self._path))


def ask(path: Path, route: str, content: dict[str, Any] | None = None) -> bytes:
    """POST to the daemon behind this socket, or GET without content; the body of its answer.

    Raises:
        NoDaemonError: no daemon answers there.
        JouledError: it refuses.
    """
    connection = _UnixConnection(path)
    try:
        if content is None:
            connection.request("GET", route)
        else:
            connection.request("POST", route, msgspec.json.encode(content))
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise NoDaemonError(
            f"no daemon answers on {path}: {reason}",
            mend="Start it with `jouled run`, name its directory by --state DIR, or run this as its user",
        ) from error
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise JouledError(f"the daemon answered {answer.status}: {body.decode(errors='replace').strip()}")
    return body
