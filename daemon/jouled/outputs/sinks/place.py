"""How far a sink has come in a stream, and how far back it goes where the receiver may have lost what it had taken.

A database that dies forgets what it has acknowledged and not yet synced. Behind an outage the sink therefore sends
again what it sent in the last seconds before it; the receiver knows repeats by their identity.
"""

from collections import deque

from jouled.model.units import NANOSECONDS_PER_SECOND, nanoseconds

MOST_REPEATS = 3
"""How often in a row the same records are sent again: behind a proxy that keeps breaking connections they would come
again for ever."""


class Receiver:
    """The other side of a sink, shared by its streams. deaths: how often it may have died."""

    def __init__(self) -> None:
        self.deaths = 0


class Place:
    """A place in a stream, at the beginning or behind an end of which nobody knows what it did to the receiver.

    taken: the number up to which the receiver has taken the stream at least once. certain: the number up to which it
    is trusted to have it for good. at: the number behind which the next delivery begins, between the two.
    """

    def __init__(self, taken: int, certain: int, resend_seconds: float) -> None:
        self.taken = taken
        self.certain = self.at = min(certain, taken) if resend_seconds > 0.0 else taken
        self._resend_ns = nanoseconds(resend_seconds)
        self._deliveries: deque[tuple[int, int]] = deque()
        self._repeats = 0

    def advance(self, number: int, now_ns: int) -> None:
        """The receiver has taken all up to `number`, at `now_ns` of a clock that never goes back."""
        self.at = max(self.at, number)
        self.taken = max(self.taken, self.at)
        if not self._resend_ns:
            self.certain = self.at
            return
        second = -(-now_ns // NANOSECONDS_PER_SECOND)
        if self._deliveries and self._deliveries[-1][0] == second:
            self._deliveries.pop()
        self._deliveries.append((second, self.at))
        # Only while it takes records does time make others certain: it may be dead since the last one.
        while self._deliveries and now_ns - self._deliveries[0][0] * NANOSECONDS_PER_SECOND >= self._resend_ns:
            _, self.certain = self._deliveries.popleft()
            self._repeats = 0

    def go_back(self) -> None:
        """The receiver was away: what is not certain is sent again."""
        if self.at == self.certain:
            return
        self._deliveries.clear()
        if self._repeats == MOST_REPEATS:
            self.certain, self._repeats = self.at, 0
        else:
            self.at = self.certain
            self._repeats += 1
