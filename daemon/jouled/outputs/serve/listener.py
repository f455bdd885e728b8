"""The TCP sockets: accepts connections within the limits, each with the TLS settings of its moment.

asyncio's own server knows neither a connection's peer nor its handshake, and keeps one TLS context for ever.
"""

import asyncio
import errno
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from jouled.outputs.serve.connection import Connection
from jouled.outputs.serve.limits import Seats, peer_of

_log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
UNREAD_SECONDS = 30.0
"""The kernel ends a connection whose peer takes nothing of what is sent to it for so long."""

_FAREWELL_SECONDS = 1.0
_BACKLOG = 128
_PAUSE_SECONDS = 1.0
"""Between two tries to accept while the process or the system has no file left."""


async def bind(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of a host.

    Raises:
        OSError: there is none, or one may not be used.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, address in dict.fromkeys(found):
        try:
            sockets.append(socket.create_server(address, family=family, backlog=_BACKLOG))
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                _close(sockets)
                raise
            missing = error  # localhost has an IPv6 address on many hosts without IPv6
    if not sockets and missing is not None:
        raise missing
    for listening in sockets:
        listening.setblocking(False)
    return sockets


class Listener:
    """Takes connections until it is stopped."""

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        make_protocol: Callable[[], asyncio.Protocol],
        context: Callable[[], ssl.SSLContext | None],
        refused: Counter[str],
    ) -> None:
        """Begin; `context` is asked at every connection, None means plain HTTP."""
        self._sockets = sockets
        self._make_protocol = make_protocol
        self._context = context
        self._refused = refused
        self._seats = Seats()
        self._open: set[Connection] = set()
        self._none_open = asyncio.Event()
        self._beginning: set[asyncio.Task[None]] = set()
        self._accepting = [asyncio.create_task(self._accept(listening)) for listening in sockets]

    async def stop(self) -> None:
        """Take no more. What is open lives on; a TLS handshake does not."""
        tasks = [*self._accepting, *self._beginning]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        _close(self._sockets)

    async def end_all(self) -> None:
        """Give the last answers a second to be read, then end what is still open."""
        await self._until_none_is_open()
        for connection in self._open:
            connection.abort()
        await self._until_none_is_open()

    async def _until_none_is_open(self) -> None:
        if self._open:
            self._none_open.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._none_open.wait(), _FAREWELL_SECONDS)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)  # a flood of connections may have its turn, not all of the loop's time
            try:
                # At once, and not by loop.sock_accept(): what that has accepted is lost when it is cancelled.
                accepted, address = listening.accept()
            except BlockingIOError:
                await _until_readable(listening)
                continue
            except ConnectionError:
                continue  # it has gone again
            except OSError as error:
                _log.warning("no connection can be accepted now: %s", error.strerror)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            peer = peer_of(address[0])
            if reason := self._seats.refusal(peer):
                self._refused[reason] += 1
                accepted.close()
                continue
            accepted.setblocking(False)
            self._seats.take(peer)
            connection = self._opened(peer)
            task = loop.create_task(self._begin(accepted, connection))
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)
            task.add_done_callback(partial(self._has_begun, accepted, connection, peer))

    def _opened(self, peer: str) -> Connection:
        connection = Connection(self._make_protocol(), self._refused, lambda: self._end(connection, peer))
        self._open.add(connection)
        return connection

    async def _begin(self, accepted: socket.socket, connection: Connection) -> None:
        """Shake hands and hand over to the HTTP protocol."""
        context = self._context()
        seconds = {"ssl_handshake_timeout": HANDSHAKE_SECONDS, "ssl_shutdown_timeout": _FAREWELL_SECONDS}
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNREAD_SECONDS * 1000))
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: connection, accepted, ssl=context, **(seconds if context else {})
            )
        except OSError:
            self._refused["tls_handshake"] += 1

    def _has_begun(self, accepted: socket.socket, connection: Connection, peer: str, _: "asyncio.Task[None]") -> None:
        """Close what never got as far, also where the task was cancelled before its first step."""
        if not connection.has_begun:
            accepted.close()
            self._end(connection, peer)

    def _end(self, connection: Connection, peer: str) -> None:
        self._seats.leave(peer)
        self._open.discard(connection)
        if not self._open:
            self._none_open.set()


async def _until_readable(listening: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(listening, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(listening)


def _close(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()
