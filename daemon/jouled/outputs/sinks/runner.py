"""Carries one stream of the spool to one sink: in order, in batches, again and again until the other side has it.

The sink says what became of a delivery; waiting, trying again and counting are done here, alike for all of them.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from jouled.api import Delivery
from jouled.model.errors import JouledError, SinkError
from jouled.model.points import Kind, NumberedReceipt, Points
from jouled.outputs.backoff import Backoff
from jouled.outputs.sinks.counts import SinkCounts
from jouled.outputs.sinks.place import Place, Receiver
from jouled.outputs.store import Behind, DeadLetter

FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS = 1.0, 60.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
DAMAGED = "damaged"
UNREACHABLE = "unreachable"
"""The reason of a `SinkError` where nobody answered: the receiver may have died, and forgotten its last seconds."""

_MAY_BE_DEATH = frozenset({"timeout", "server_error"})
_LONG_TROUBLE = 3
"""So many of these before anything is taken are no slow answer: a host that starts again, a proxy before a dead one."""
_MESSAGE_LENGTH = 500

_log = logging.getLogger(__name__)

Record = Points | NumberedReceipt
Read = Callable[[int, int], Awaitable[Behind[Record]]]
"""Records behind a number, at most so many."""
Send = Callable[[Sequence[Record]], Awaitable[Delivery]]


class Sleep(Protocol):
    """Waits; a test gives one that does not."""

    async def __call__(self, seconds: float, /) -> None:
        """Wait for so many seconds."""
        ...


class Runner:
    """One stream of one sink.

    place: how far the sink has come; the next commit keeps it. trouble: why the last delivery failed, empty while they
    succeed. dead_letters: records that were refused for good since somebody took them over.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        *,
        read: Read,
        send: Send,
        most: int,
        timeout_seconds: float,
        place: Place,
        receiver: Receiver,
        counts: SinkCounts,
        wall_ns: Callable[[], int],
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.name = name
        self.kind = kind
        self.place = place
        self._receiver = receiver
        self._deaths_seen = receiver.deaths
        self.trouble = ""
        self.dead_letters: list[DeadLetter] = []
        self._read = read
        self._send = send
        self._most = self._now = most
        self._timeout_seconds = timeout_seconds
        self._counts = counts
        self._wall_ns = wall_ns
        self._now_ns = now_ns
        self._sleep = sleep
        self._unanswered = 0
        self._news = asyncio.Event()
        self._backoff = Backoff(FIRST_WAIT_SECONDS, LAST_WAIT_SECONDS)

    def wake(self) -> None:
        """There may be something new in the spool."""
        self._news.set()

    async def run(self) -> None:
        """Carry until cancelled."""
        while True:
            self._news.clear()
            wait_seconds = await self.step()
            if wait_seconds is None:
                await self._news.wait()
            elif wait_seconds > 0.0:
                await self._sleep(wait_seconds)

    async def drain(self) -> None:
        """Carry until nothing waits or a delivery fails."""
        while await self.step() == 0.0:
            pass

    async def step(self) -> float | None:
        """One delivery. Returns seconds to wait before the next one; `None`: until there is something new."""
        if self._deaths_seen != self._receiver.deaths:
            self._deaths_seen = self._receiver.deaths
            self.place.go_back()
        try:
            records, damaged = await self._read(self.place.at, self._now)
            if not records:
                return self._pass(damaged, self.place.taken)
            async with asyncio.timeout(self._timeout_seconds):
                delivery = await self._send(records)
        except Exception as error:  # noqa: BLE001 - whatever a sink raises, its records are kept
            return self._failed(error)
        if not delivery.taken:
            return self._backoff.next_seconds()
        taken_before = self.place.taken
        self._taken(records, delivery)
        self._pass([number for number in damaged if number <= self.place.at], taken_before)
        self._now = min(self._most, 2 * self._now)
        return 0.0

    def _pass(self, damaged: Sequence[int], taken: int) -> float | None:
        """Leave damaged records behind; those up to `taken` have been counted."""
        if not damaged:
            return None
        lost = sum(number > taken for number in damaged)
        if lost:
            self._counts.lost(self.kind, DAMAGED, lost)
            _log.error("sink %s: %d %s in the spool cannot be read and are lost", self.name, lost, self.kind)
        self.place.advance(damaged[-1], self._now_ns())
        return 0.0

    def _failed(self, error: Exception) -> float:
        reason, message = _told(error, self._timeout_seconds)
        self._counts.failed(reason)
        if isinstance(error, TimeoutError):
            # A receiver that is too slow for as many may take half in time; else it would be sent them for ever.
            self._now = max(1, self._now // 2)
        self._unanswered += reason in _MAY_BE_DEATH
        if reason == UNREACHABLE or self._unanswered == _LONG_TROUBLE:
            self._receiver.deaths += 1
        if not self.trouble:
            unknown = error if reason == "error" and not isinstance(error, JouledError) else None
            _log.warning("sink %s takes no %s, they are kept: %s", self.name, self.kind, message, exc_info=unknown)
        self.trouble = message
        asked = error.retry_after_seconds if isinstance(error, SinkError) else None
        wait_seconds = self._backoff.next_seconds()
        return wait_seconds if asked is None else max(wait_seconds, min(asked, LONGEST_RETRY_AFTER_SECONDS))

    def _taken(self, records: Sequence[Record], delivery: Delivery) -> None:
        wall_ns = self._wall_ns()
        # What comes again has been counted; that the other side refuses a repeat is no loss.
        repeated = sum(record.number <= self.place.taken for record in records[: delivery.taken])
        rejected = [refused for refused in delivery.rejected if refused.index >= repeated]
        results = {
            "accepted": delivery.taken - repeated - len(rejected),
            "rejected": len(rejected),
            "repeated": repeated,
        }
        self.place.advance(records[delivery.taken - 1].number, self._now_ns())
        self._counts.taken(self.kind, results, wall_ns)
        for refused in rejected:
            dead = DeadLetter(
                sink=self.name,
                kind=self.kind,
                record=records[refused.index].number,
                wall_ns=wall_ns,
                reason=refused.reason,
                message=refused.message[:_MESSAGE_LENGTH],
            )
            self.dead_letters.append(dead)
        if rejected:
            self._complain(len(rejected), rejected[0].message)
        if self.trouble:
            _log.info("sink %s takes %s again", self.name, self.kind)
        self.trouble, self._unanswered = "", 0
        self._backoff.reset()

    def _complain(self, rejected: int, message: str) -> None:
        total = self._counts.records[self.kind]["rejected"]
        if (
            total - rejected
        ).bit_length() < total.bit_length():  # as they double: a sink that refuses all floods no log
            _log.warning("sink %s has refused %d %s for good, the last ones: %s", self.name, total, self.kind, message)


def _told(error: Exception, timeout_seconds: float) -> tuple[str, str]:
    """A word for the counter and a sentence for the log."""
    if isinstance(error, SinkError):
        return error.reason, str(error)
    if isinstance(error, TimeoutError):
        return "timeout", f"no answer within {timeout_seconds:g} s"
    return "error", f"{type(error).__name__}: {error}"
