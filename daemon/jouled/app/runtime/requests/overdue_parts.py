"""Takes from a receiver what has waited too long for its other parts."""

import asyncio
import logging
import time

from jouled.api import JoinsParts
from jouled.app.runtime.requests.hand_over import Accept, Count, hand_over

EVERY_SECONDS = 1.0

_log = logging.getLogger(__name__)


async def release_overdue(name: str, receiver: JoinsParts, accept: Accept, count: Count) -> None:
    """Ask every second until cancelled. `name` is the receiver's, for the log."""
    has_failed = False
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        try:
            received = receiver.overdue(time.monotonic_ns())
        except Exception:  # noqa: BLE001 - the boundary to plug-ins: a bug in one stops no other
            if not has_failed:
                _log.exception("the receiver %s failed unexpectedly; said once", name)
            has_failed = True
            count("receiver_failed", 1)
            continue
        if received.requests or received.rejected_count:
            await hand_over(name, accept, received)
