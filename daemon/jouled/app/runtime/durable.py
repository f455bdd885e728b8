"""Answers to senders wait for the disk: what was accepted is in a synced commit, whatever happens next."""

import asyncio

from jouled.model.errors import JouledError

CROWD = 16
LONGEST_WAIT_SECONDS = 8.0
"""Commits come every second; OpenTelemetry's exporters give up after 10 s (OTEL_EXPORTER_OTLP_TIMEOUT)."""


class Durable:
    """Who waits for which commit. `begin` and `end` are called around every commit, by one task after another.

    crowd: set while so many wait that the next commit should not wait for its second.
    """

    def __init__(self) -> None:
        self.crowd = asyncio.Event()
        self._arrived: list[asyncio.Future[None]] = []
        self._covered: list[asyncio.Future[None]] = []
        self._has_ended = False

    async def wait(self) -> None:
        """Return once a commit holds everything that the core has been fed so far.

        Raises:
            JouledError: none does in time, or the daemon ends. The sender has to send it again; what the core knows
                already is not counted twice.
        """
        if self._has_ended:
            raise JouledError("jouled ends: send it again later")
        waiter = asyncio.get_running_loop().create_future()
        self._arrived.append(waiter)
        if len(self._arrived) >= CROWD:
            self.crowd.set()
        try:
            async with asyncio.timeout(LONGEST_WAIT_SECONDS):
                await waiter
        except TimeoutError:
            raise JouledError("the books cannot be committed: send it again later") from None

    def begin(self) -> None:
        """A commit takes what was fed up to now."""
        self._covered += [waiter for waiter in self._arrived if not waiter.done()]
        self._arrived = []
        self.crowd.clear()

    def end(self, *, committed: bool) -> None:
        """It is on disk, or the next one has to take it."""
        covered, self._covered = self._covered, []
        if not committed:
            self._arrived[:0] = [waiter for waiter in covered if not waiter.done()]
            return
        for waiter in covered:
            if not waiter.done():
                waiter.set_result(None)

    def refuse(self) -> None:
        """The daemon ends: nobody waits any longer."""
        self._has_ended = True
        for waiter in (*self._covered, *self._arrived):
            if not waiter.done():
                waiter.set_exception(JouledError("jouled ends: send it again later"))
