"""Takes from a receiver what has waited too long for its other parts."""

import asyncio
import time

from jouled.api import JoinsParts
from jouled.app.runtime.requests.hand_over import Accept, hand_over

EVERY_SECONDS = 1.0


async def release_overdue(name: str, receiver: JoinsParts, accept: Accept) -> None:
    """Ask every second until cancelled. `name` is the receiver's, for the log."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        received = receiver.overdue(time.monotonic_ns())
        if received.requests or received.rejected_count:
            await hand_over(name, accept, received)
