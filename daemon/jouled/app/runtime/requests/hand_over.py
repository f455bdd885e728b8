"""Gives the core what cannot be asked for again, until it is kept."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

from msgspec.structs import replace

from jouled.api import Received
from jouled.model.errors import JouledError
from jouled.outputs.backoff import Backoff

Accept = Callable[[Received], Awaitable[Received]]
"""Takes what was told and returns when it is kept; raises `JouledError` where it cannot be kept now."""

Count = Callable[[str, int], None]
"""Takes the reason of events that never reached the core, and how many."""


class NotKeptYetError(JouledError):
    """The core has taken it, but no commit holds it yet; `keep` waits for one, and may raise this again."""

    def __init__(self, message: str, keep: Callable[[], Awaitable[None]]) -> None:
        super().__init__(message)
        self.keep = keep


MOST_AT_ONCE = 200
"""Requests that the core takes in one turn of the loop, in some 3 ms."""

_log = logging.getLogger(__name__)


async def hand_over(name: str, accept: Accept, received: Received) -> None:
    """Return once all of it is kept; the caller reads nothing more meanwhile. `name` is the receiver's, for the log.

    Where the core could not even take it, it is offered again as a whole.
    """
    async with asyncio.TaskGroup() as group:
        for part in _parts(received):
            group.create_task(_hand_over(name, accept, part))


async def _hand_over(name: str, accept: Accept, part: Received) -> None:
    backoff = Backoff(1.0, 30.0)
    is_told = False
    keep: Callable[[], Awaitable[object]] = partial(accept, part)
    while True:
        try:
            await keep()
        except JouledError as error:
            if not is_told:
                _log.warning("%s reads no further for now: %s", name, error)
                is_told = True
            # What was refused is counted already, and what was taken would be counted as a duplicate.
            again = partial(accept, Received(requests=part.requests))
            keep = error.keep if isinstance(error, NotKeptYetError) else again
            await asyncio.sleep(backoff.next_seconds())
        else:
            return


def _parts(received: Received) -> Iterator[Received]:
    yield replace(received, requests=received.requests[:MOST_AT_ONCE])
    for start in range(MOST_AT_ONCE, len(received.requests), MOST_AT_ONCE):
        yield Received(requests=received.requests[start : start + MOST_AT_ONCE])
