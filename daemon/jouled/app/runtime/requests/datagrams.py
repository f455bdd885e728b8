"""Datagrams of request receivers: a Unix socket for each, in the runtime directory, that nobody can stall."""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from jouled.api import DatagramIngest, MalformedBodyError, Received, ReceivedRequest
from jouled.app.runtime.engines.processes import parent_of
from jouled.app.runtime.requests.hand_over import Accept, Count, hand_over
from jouled.model.engine import Engine
from jouled.model.errors import JouledError

MOST_BYTES_A_TURN = 64 * 1024
"""Read in one turn of the loop: some two hundred requests, decoded in 2 ms."""

LEAST_BYTES = 512
"""What a datagram counts for at least: one that is empty takes its time, too."""

LONGEST_DATAGRAM_BYTES = 64 * 1024
MOST_HELD = 10_000
"""Requests held while the books cannot be committed; what comes then is dropped and counted."""

MOST_AT_ONCE = 200
"""Requests that the core takes in one turn of the loop, in some 3 ms."""

_MOST_PARENTS = 8
_LAST_TURNS = 64
_LAST_SECONDS = 1.0
_MODE = 0o660
_CREDENTIALS = struct.Struct("3i")  # struct ucred of Linux: pid, uid, gid

_log = logging.getLogger(__name__)


class Datagrams:
    """One receiver's socket."""

    def __init__(
        self,
        receiver: DatagramIngest,
        accept: Accept,
        count: Count,
        engines: Callable[[], Iterable[Engine]],
        runtime_directory: Path,
    ) -> None:
        self._receiver = receiver
        self._engines = engines
        self._accept = accept
        self._count = count
        self._path = runtime_directory / receiver.socket_name
        self._held: list[ReceivedRequest] = []
        self._arrived = asyncio.Event()
        self._has_failed = False

    async def run(self) -> None:
        """Receive until cancelled; what is there then is handed on for the last commit."""
        bound = self._bind()
        if bound is None:
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(bound, self._read, bound)
        try:
            while True:
                await self._arrived.wait()
                name = self._receiver.name
                await asyncio.gather(*(hand_over(name, self._accept, batch) for batch in self._take_held()))
        finally:
            loop.remove_reader(bound)
            with bound:
                await self._hand_on_the_rest(bound)

    def _bind(self) -> socket.socket | None:
        """The bound socket, in place of what a crash may have left; `None`, and a word in the log, if it cannot be."""
        if _is_answered(self._path):
            _log.error("receiver %s: another process receives at %s", self._receiver.name, self._path)
            return None
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._path.unlink(missing_ok=True)
            bound.bind(str(self._path))
            self._path.chmod(_MODE)
        except OSError as error:
            bound.close()
            reason = error.strerror or error
            _log.error("receiver %s: the socket %s cannot be made: %s", self._receiver.name, self._path, reason)
            return None
        return bound

    def _read(self, bound: socket.socket) -> bool:
        """Read some of what waits; whether there may be more."""
        read_bytes = 0
        while read_bytes < MOST_BYTES_A_TURN:
            try:
                datagram, ancillary, flags, _ = bound.recvmsg(
                    LONGEST_DATAGRAM_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size)
                )
            except BlockingIOError:
                return False
            read_bytes += max(len(datagram), LEAST_BYTES)
            if flags & socket.MSG_TRUNC:
                self._count("too_large", 1)
            else:
                self._decode(datagram, _sender_pid(ancillary))
        return True

    def _decode(self, datagram: bytes, pid: int | None) -> None:
        try:
            received = self._receiver.decode(datagram)
        except MalformedBodyError:
            self._count("malformed_datagram", 1)
            return
        except Exception:  # noqa: BLE001 - a foreign receiver may do anything
            self._count("decode_error", 1)
            if not self._has_failed:
                _log.exception("receiver %s: a datagram cannot be decoded; said once", self._receiver.name)
            self._has_failed = True
            return
        for rejected in received.rejected:
            self._count(rejected.reason, 1)
        for reason, number in received.more_rejected.items():
            self._count(reason, number)
        free = MOST_HELD - len(self._held)
        if len(received.requests) > free:
            self._count("not_kept", len(received.requests) - free)
        if received.requests and pid is not None:
            pid = self._engine_above(pid)
        self._held += [_told_by(request, pid) for request in received.requests[:free]]
        if self._held:
            self._arrived.set()

    def _engine_above(self, pid: int) -> int:
        """The engine's process that started the sender, itself if there is none: an engine may have several servers."""
        engines = {engine.pid for engine in self._engines()}
        above: int | None = pid
        for _ in range(_MOST_PARENTS):
            if above is None or above in engines:
                break
            above = parent_of(above)
        return above if above is not None and above in engines else pid

    def _take_held(self) -> list[Received]:
        held, self._held = self._held, []
        self._arrived.clear()
        starts = range(0, len(held), MOST_AT_ONCE)
        return [Received(requests=held[start : start + MOST_AT_ONCE]) for start in starts]

    async def _hand_on_the_rest(self, bound: socket.socket) -> None:
        """The daemon ends: nothing is answered any more, but the core takes it for its last commit."""
        with suppress(OSError):
            self._path.unlink()  # what nobody would read any more is not taken from its sender
        for _ in range(_LAST_TURNS):
            if not self._read(bound):
                break
        for batch in self._take_held():
            with suppress(JouledError, TimeoutError):
                await asyncio.wait_for(self._accept(batch), _LAST_SECONDS)


def _is_answered(path: Path) -> bool:
    """Whether somebody receives there; what a crash left behind is not answered and gets replaced."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe, suppress(OSError):
        probe.connect(str(path))
        return True
    return False


def _sender_pid(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """Who sent it, as the kernel says, in this process' own numbering; `None` where that has no number for it."""
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(content) == _CREDENTIALS.size:
            return _CREDENTIALS.unpack(content)[0] or None
    return None


def _told_by(request: ReceivedRequest, pid: int | None) -> ReceivedRequest:
    """The request with its sender's process as a hint, if it has none of its own."""
    if pid is None or request.hint.pid is not None:
        return request
    return replace(request, hint=replace(request.hint, pid=pid))
