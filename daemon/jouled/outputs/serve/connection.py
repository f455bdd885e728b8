"""One connection by TCP: it counts while it is open, and the header of a request has to come in time.

aiohttp has one clock for a connection, which closes it when no whole request came for the keep-alive time. That is too
long for a header that drips, and nobody would count it.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from aiohttp import web

from jouled.outputs.serve.answers import Handler

HEADER_SECONDS = 10.0
"""From the start of a connection, or the first byte of a later request, to the end of the header."""


class Connection(asyncio.Protocol):
    """Stands between the transport and aiohttp's protocol and passes everything on.

    has_begun: it was made; only then `on_end` is called once it is over.
    """

    def __init__(self, inner: asyncio.Protocol, refused: Counter[str], on_end: Callable[[], None]) -> None:
        self.has_begun = False
        self._inner = inner
        self._refused = refused
        self._on_end = on_end
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A header is awaited from now on."""
        self.has_begun = True
        self._transport = cast("asyncio.Transport", transport)
        self._await_header()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """More of a header or of a body."""
        if self._timer is None and not self._is_answering:
            self._await_header()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The peer sends no more."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The peer is slow to read."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The peer has read."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop_timer()
        if isinstance(exc, TimeoutError):  # the kernel gave up on it, see `listener.UNREAD_SECONDS`
            self._refused["answer_not_read"] += 1
        self._inner.connection_lost(exc)
        self._on_end()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A header came whole; what comes until the answer is the body, which `bodies` watches."""
        self._stop_timer()
        self._is_answering = True
        try:
            yield
        finally:
            self._is_answering = False

    def abort(self) -> None:
        """End it without another word."""
        if self._transport is not None:
            self._transport.abort()

    def _await_header(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(HEADER_SECONDS, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._refused["header_too_slow"] += 1
        self.abort()


@web.middleware
async def arrival(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the connection that a header has come; through the Unix socket nobody waits for it."""
    connection = request.transport.get_protocol() if request.transport is not None else None
    if not isinstance(connection, Connection):
        return await handler(request)
    with connection.answering():
        return await handler(request)
